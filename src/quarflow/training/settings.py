"""What a training run is told, and what it gives back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["TrainingError", "TrainingResult", "TrainingSettings"]

WHOLE = {  # the least of each
    "batch_size": 1,
    "max_epochs": 1,
    "warmup_steps": 0,
    "patience": 0,
    "cuts": 0,
    "seed": 0,
    "evaluate_every": 1,
}
OPTIONAL = ("evaluate_every", "minutes", "clip")
CHOICES = {
    "schedule": ("cosine", "constant"),
    "precision": ("float32", "bf16"),
    "optimizer": ("adam", "adamax"),
    "keep": ("best", "last"),
}


class TrainingError(ValueError):
    """Training cannot go on; the message says what to try."""


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the result of a run, besides the flow and the rows.

    Arguments:
        batch_size: Rows per step, over all processes together.
        learning_rate: Adam's rate after the warm-up, before schedule and cuts.
        schedule: ``"cosine"`` lets the rate fall to 0 over the budget, ``"constant"`` does not.
        max_epochs: Passes over the training rows, at most.
        minutes: Time budget, at most; None for no limit. Resumed time counts.
        warmup_steps: Steps in which the rate rises linearly to ``learning_rate``.
        patience: Evaluations without improvement before a cut (or the end); 0 never stops early.
        cuts: How often the rate is cut, from the best weights, before stopping early.
        cut_factor: What a cut multiplies the rate by.
        min_improvement: Nats by which the validation must improve to count as improvement.
        ema: Decay of the averaged weights, which are the ones evaluated and kept; 0 for none.
            Early on it is less: ``min(ema, (1 + n) / (10 + n))`` at step n.
        clip: Largest global norm of the gradient; None for no clipping.
        weight_decay: Decoupled, on the networks' weights only (not on biases, scales, theta or
            diagonal blocks).
        betas: Adam's.
        seed: Of the order of the rows and of their noise.
        evaluate_every: Steps between evaluations; None derives it from the data: once an epoch,
            but never more than 1,000 steps and (in whole epochs) never fewer than 20 apart.
        evaluate_start: Whether the weights before the first step are evaluated as well, as the
            first to keep and to improve on.
        precision: ``"bf16"`` runs the training steps (not the evaluations) under autocast.
        compile: Pass the loss through ``torch.compile``.
        checkpoint_seconds: Shortest time between two checkpoints, more if writing one is slow;
            0 writes at each evaluation.
        optimizer: ``"adam"``, or ``"adamax"``, which has no weight decay.
        keep: ``"best"`` keeps the averaged weights that were best on the validation rows,
            ``"last"`` those of the last evaluation: for rows that are always new, nothing has to
            be chosen.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> TrainingSettings(batch_size=0)
        Traceback (most recent call last):
        ...
        ValueError: batch_size must be an integer of at least 1, got 0.
    """

    batch_size: int = 512
    learning_rate: float = 1e-3
    max_epochs: int = 100
    minutes: float | None = None
    warmup_steps: int = 100
    patience: int = 10
    cuts: int = 2
    cut_factor: float = 0.3
    min_improvement: float = 1e-4
    ema: float = 0.999
    clip: float | None = 10.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    seed: int = 0
    evaluate_every: int | None = None
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False
    checkpoint_seconds: float = 5.0
    schedule: Literal["cosine", "constant"] = "cosine"
    evaluate_start: bool = False
    optimizer: Literal["adam", "adamax"] = "adam"
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        for name, least in WHOLE.items():
            self._check_whole(name, least)
        for name in ("learning_rate", "minutes", "clip"):
            self._check_number(name, zero=False)
        for name in ("weight_decay", "min_improvement", "checkpoint_seconds"):
            self._check_number(name, zero=True)
        object.__setattr__(self, "betas", tuple(self.betas))
        fractions = {"ema": self.ema, "betas[0]": self.betas[0], "betas[1]": self.betas[1]}
        for name, value in fractions.items():
            if not _is_number(value) or not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}.")
        if not _is_number(self.cut_factor) or not 0 < self.cut_factor < 1:
            raise ValueError(f"cut_factor must be between 0 and 1, got {self.cut_factor!r}.")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                known = " or ".join(map(repr, choices))
                raise ValueError(f"{name} must be {known}, got {value!r}.")
        if self.optimizer == "adamax" and self.weight_decay:
            raise ValueError("weight_decay is for optimizer='adam' only: set one of the two.")

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is None and name in OPTIONAL:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")

    def _check_number(self, name: str, zero: bool) -> None:
        value = getattr(self, name)
        if value is None and name in OPTIONAL:
            return
        if not _is_number(value) or value < 0 or (value == 0 and not zero):
            least = "of at least 0" if zero else "above 0"
            raise ValueError(f"{name} must be a number {least}, got {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class TrainingResult:
    """What a run did; the flow itself holds the best averaged weights afterwards.

    Attributes:
        history: One dict per evaluation: epoch, step, seconds, train_nats, valid_nats,
            learning_rate. Before the first step train_nats is None.
        best: Lowest validation nats, those of the weights that were kept.
        best_step: The step they were reached at.
        stopped: A sentence: why training ended.
        interrupted: Whether it was ended by a signal, so that ``resume`` would go on.
        steps, seconds: Over all resumed parts together.
        steps_per_epoch, evaluate_every: As derived from the data.
        device: Where it trained.
        resumed_at: The step a checkpoint was taken up at, if it was.
        recoveries: One sentence for each time it stepped back from a non-finite value.
    """

    history: list[dict[str, Any]]
    best: float
    best_step: int
    stopped: str
    interrupted: bool
    steps: int
    seconds: float
    steps_per_epoch: int
    evaluate_every: int
    device: str
    resumed_at: int | None = None
    recoveries: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        """Passes over the training rows, with the fraction of the last one."""
        return self.steps / self.steps_per_epoch
