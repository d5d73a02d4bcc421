"""Adam: what it decays, and its state, there from the start and known by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quarflow.training.settings import TrainingSettings

__all__ = ["adam_tensors", "fill_adam", "make_adam"]

# What weight decay acts on: not biases, affine maps, theta, nor the diagonal blocks, whose size
# the norm takes out again.
DECAYED = ("weight", "off_diagonal", "off_center", "context")


def make_adam(flow: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Adam, fused where it can be, with decoupled weight decay on networks' weights.

    Or Adamax, if the settings ask for it.
    """
    named = [(n, p) for n, p in flow.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    if settings.optimizer == "adamax":
        return torch.optim.Adamax(parameters, settings.learning_rate, settings.betas)
    groups: list[dict[str, Any]] = [{"params": parameters}]  # one group is the fastest
    if settings.weight_decay:
        decayed = [n.rpartition(".")[2] in DECAYED for n, _ in named]
        groups = [
            {
                "params": [p for p, yes in zip(parameters, decayed, strict=True) if yes],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p, yes in zip(parameters, decayed, strict=True) if not yes]},
        ]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        decoupled_weight_decay=True,
        fused=fused or None,
    )


def fill_adam(optimizer: Any) -> None:
    """Make Adam's state now and not at the first step, so that it can be copied at any time."""
    for group in optimizer.param_groups:
        second = "exp_avg_sq" if "amsgrad" in group else "exp_inf"  # Adam's, or Adamax's
        for p in group["params"]:
            # where Adam itself keeps its count: with the parameter when fused, else on the CPU
            where = p.device if group.get("fused") else torch.device("cpu")
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=where),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                second: torch.zeros_like(p, memory_format=torch.preserve_format),
            }


def adam_tensors(flow: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Live references to Adam's state, by parameter name."""
    state = optimizer.state
    return {
        f"optimiser/{key}/{name}": value
        for name, p in flow.named_parameters()
        if p in state
        for key, value in state[p].items()
    }
