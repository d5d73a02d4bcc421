"""The whole state of a run: numbers in one dataclass, tensors in one flat dict."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from quarflow.training.settings import TrainingSettings

__all__ = [
    "Average",
    "Counters",
    "adam_tensors",
    "assign",
    "copied",
    "fill_adam",
    "make_adam",
    "module_tensors",
]


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
    """Give live references to parameters and persistent buffers, shared ones once."""
    kept = module.state_dict().keys()
    named = [*module.named_parameters(), *module.named_buffers()]
    return {f"{prefix}{name}": tensor.detach() for name, tensor in named if name in kept}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy to own memory."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def assign(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of `target`, in place."""
    for name, tensor in target.items():
        tensor.copy_(source[name])


class Average:
    """A frozen copy of a flow that follows its weights by an exponential moving average.

    torch's `AveragedModel` walks through all modules at each step, half a millisecond for a small
    flow; here the lists are made once, and the averaging itself is torch's.
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


# What weight decay acts on: not biases, affine maps, theta, nor the diagonal blocks, whose size
# the norm takes out again.
DECAYED = ("weight", "off_diagonal", "off_center", "context")


def make_adam(flow: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Give Adam, fused where it can be, with decoupled weight decay on networks' weights.

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
    """Give live references to Adam's state, by parameter name."""
    state = optimizer.state
    return {
        f"optimiser/{key}/{name}": value
        for name, p in flow.named_parameters()
        if p in state
        for key, value in state[p].items()
    }
