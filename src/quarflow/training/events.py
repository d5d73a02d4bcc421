"""What training tells its listeners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Event", "Kind", "Listener"]

Kind = Literal[
    "start",
    "step",
    "evaluation",
    "cut",
    "recovery",
    "checkpoint",
    "unsaved",  # a checkpoint that could not be written
    "interrupt",
    "end",
]


@dataclass(frozen=True)
class Event:
    """A moment of a run, in the main process.

    `"step"` comes a few times a second, not at each step. When a checkpoint is due at an
    evaluation, it has been written before that evaluation's event.

    Attributes:
        kind: What happened.
        message: A plain sentence for a log, or "" where the numbers say it all.
        epoch, step, total_steps: Where the run is; epoch counts from 1.
        progress: Used fraction of the budget of steps or of time, 0 to 1.
        seconds: Training time so far, over all resumed parts.
        seconds_left: Estimate for the budget, None before it can be told.
        rows_per_second: Over all processes, since the last "step" or "evaluation" event.
        learning_rate: Of the last step.
        nats: Mean training nats since the last evaluation, None before the first step.
        best: Lowest validation nats so far, None before the first evaluation.
        record: The line of the history, for "evaluation".
    """

    kind: Kind
    message: str
    epoch: int
    step: int
    total_steps: int
    progress: float
    seconds: float
    seconds_left: float | None
    rows_per_second: float
    learning_rate: float
    nats: float | None
    best: float | None
    record: dict[str, Any] | None = None


Listener = Callable[[Event], None]
