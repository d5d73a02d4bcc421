"""Figure 5: where the eight modes go, flow by flow, in a QuAR flow."""

from __future__ import annotations

from functools import partial

from quarflow.experiments.paper.modes import modes

__all__ = ["figure5"]

figure5 = partial(modes, "figure5", "quar")
