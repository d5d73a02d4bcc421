"""The whole state of a run: numbers in one dataclass, tensors in one flat dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Counters", "assign", "copied", "module_tensors"]


@dataclass
class Counters:
    """The numbers of a run, as they go into a checkpoint."""

    step: int = 0
    good_step: int = 0  # of the last good state
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    reference: float | None = None  # of Plateau
    stale: int = 0  # of Plateau
    cuts: int = 0  # of Plateau
    rate_factor: float = 1.0  # halved at each recovery
    train_total: float = 0.0  # sum of the losses since the last evaluation
    train_steps: int = 0
    learning_rate: float = 0.0
    evaluation_seconds: float = 0.0
    stopped: str | None = None
    recoveries: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Live references to parameters and persistent buffers, shared ones once."""
    kept = module.state_dict().keys()
    named = [*module.named_parameters(), *module.named_buffers()]
    return {f"{prefix}{name}": tensor.detach() for name, tensor in named if name in kept}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy to own memory."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def assign(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of ``target``, in place."""
    for name, tensor in target.items():
        tensor.copy_(source[name])
