"""What training tells its listeners."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from quarflow.training.rows import Plan
from quarflow.training.state import Counters

__all__ = ["Event", "Kind", "Listener", "Teller"]

EVENT_SECONDS = 0.2  # between "step" events

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

    ``"step"`` comes a few times a second, not at each step. When a checkpoint is due at an
    evaluation, it has been written before that evaluation's event.

    Attributes:
        kind: What happened.
        message: A plain sentence for a log, or "" where the numbers say it all.
        epoch, step, total_steps: Where the run is; epoch counts from 1.
        progress: Used fraction of the budget of steps or of time, 0 to 1.
        seconds: Training time so far, over all resumed parts.
        seconds_left: Estimate for the budget, None before there is one.
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


class Teller:
    """Turns the numbers of a run into events for its listener."""

    def __init__(self, listener: Listener, plan: Plan) -> None:
        self.listener, self.plan = listener, plan
        self.rows_per_second = 0.0
        self.begin(0)

    def begin(self, step: int) -> None:
        """Measure the speed from this step on."""
        self.last, self.last_step = time.perf_counter(), step

    def due(self) -> bool:
        """Whether it is time for a "step"."""
        return time.perf_counter() - self.last > EVENT_SECONDS

    def tell(
        self,
        kind: Kind,
        counters: Counters,
        done: float,
        nats: float | None,
        message: str = "",
        record: dict[str, Any] | None = None,
    ) -> None:
        """Pass an event on to the listener.

        Arguments:
            kind: What happened.
            counters: Where the run is.
            done: The used fraction of its budget.
            nats: Mean training nats since the last evaluation.
            message, record: As in ``Event``.
        """
        step, plan = counters.step, self.plan
        if kind in ("step", "evaluation"):
            passed = max(time.perf_counter() - self.last, 1e-9)
            self.rows_per_second = (step - self.last_step) * plan.batch_size / passed
            self.begin(step)
        self.listener(
            Event(
                kind=kind,
                message=message,
                epoch=max(step - 1, 0) // plan.steps_per_epoch + 1,
                step=step,
                total_steps=plan.total_steps,
                progress=done,
                seconds=counters.seconds,
                seconds_left=counters.seconds * (1 - done) / done if done > 0 else None,
                rows_per_second=self.rows_per_second,
                learning_rate=counters.learning_rate,
                nats=nats,
                best=counters.best,
                record=record,
            )
        )
