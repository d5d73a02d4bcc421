"""One training step, to be timed by itself: the trainer's, without all that is around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["Step", "mean_nats"]

Loss = Callable[[Any, Tensor], Tensor]


def mean_nats(flow: Any, x: Tensor) -> Tensor:
    """Mean of -log p over rows, a scalar."""
    loss: Tensor = -flow().log_prob(x).mean()

    return loss


class Step:
    """Forward, backward, clipping, Adam.

    Arguments:
        model: What learns.
        rate: Adam's; 0 leaves the model as it is, and costs as much.
        loss: Of the model and a batch.
        clip: Largest norm of the gradient; None for no clipping.
        half: Whether the forward pass runs under bf16 autocast.
        optimizer: ``adam`` (the fused one: the least overhead for many small tensors), or
            ``adamax``.
        compile: Whether the loss goes through ``torch.compile``.
    """

    def __init__(
        self,
        model: nn.Module,
        rate: float = 0.0,
        loss: Loss = mean_nats,
        clip: float | None = None,
        half: bool = False,
        optimizer: Literal["adam", "adamax"] = "adam",
        compile: bool = False,
    ) -> None:
        self.model, self.clip, self.half = model, clip, half
        self.loss: Loss = torch.compile(loss) if compile else loss
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adamax(self.parameters, rate)
            if optimizer == "adamax"
            else torch.optim.Adam(self.parameters, rate, fused=True)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Take a step; returns the loss."""
        half = torch.autocast(x.device.type, torch.bfloat16) if self.half else nullcontext()
        with half:
            loss = self.loss(self.model, x)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()

        return loss.detach()

    def hold(self) -> None:
        """From now on leave the model as it is, and do not clip."""
        self.clip = None
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
