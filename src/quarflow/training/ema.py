"""The averaged weights: an exponential moving average (EMA) that follows the flow."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["Average"]


class Average:
    """A frozen copy of a flow that follows its weights by an exponential moving average.

    torch's ``AveragedModel`` walks through all modules at each step, half a millisecond for a
    small flow; here the lists are made once, and the averaging itself is torch's.
    """

    def __init__(self, flow: nn.Module) -> None:
        self.module = deepcopy(flow).requires_grad_(False)
        self._mine = list(self.module.parameters())
        self._theirs = [parameter.detach() for parameter in flow.parameters()]
        self._buffers = list(zip(self.module.buffers(), flow.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Take a step's new weights in; buffers are copied."""
        get_ema_multi_avg_fn(decay)(self._mine, self._theirs, 0)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
