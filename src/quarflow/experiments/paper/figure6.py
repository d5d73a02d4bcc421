"""Figure 6: where the eight modes go, flow by flow, in a residual flow."""

from __future__ import annotations

from functools import partial

from quarflow.experiments.paper.modes import modes

__all__ = ["figure6"]

figure6 = partial(modes, "figure6", "residual")
