"""Figure 4: where the eight modes go, flow by flow, in an autoregressive flow."""

from __future__ import annotations

from functools import partial

from quarflow.experiments.paper.modes import modes

__all__ = ["figure4"]

figure4 = partial(modes, "figure4", "autoregressive")
