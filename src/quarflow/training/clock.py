"""The time of a run: what it has taken, what is left of its budget, the same in all processes."""

from __future__ import annotations

import time
from collections import deque
from signal import Signals
from typing import Any

import torch

from quarflow.training.interrupt import StopSignals
from quarflow.training.rows import Plan
from quarflow.training.schedule import progress
from quarflow.training.settings import TrainingSettings
from quarflow.training.state import Counters

__all__ = ["Clock"]


class Clock:
    """The seconds of a run, kept in its counters, and its budgets of steps and of time.

    Arguments:
        begun: When the run began, by ``time.perf_counter``.
        settings: For ``minutes`` and ``max_epochs``.
        plan: For the number of steps.
        counters: Where ``seconds`` and ``evaluation_seconds`` are kept.
        accelerator: An ``accelerate.Accelerator``; its processes all go by the slowest clock.
    """

    def __init__(
        self,
        begun: float,
        settings: TrainingSettings,
        plan: Plan,
        counters: Counters,
        accelerator: Any,
    ) -> None:
        self.started, self.settings, self.plan = begun, settings, plan
        self.counters, self.accelerator = counters, accelerator
        self.world: int = accelerator.num_processes
        self.last_steps = deque([0.0, 0.0], maxlen=2)  # seconds of the last two

    def resume(self) -> None:
        """Count on from the seconds of the counters; setting up is a part of the time."""
        self.started -= self.counters.seconds

    def leave_out(self, seconds: float) -> None:
        """Seconds that do not count."""
        self.started += seconds

    def stepped(self, seconds: float) -> None:
        """Note a step that took so long."""
        self.counters.seconds = time.perf_counter() - self.started
        self.last_steps.append(seconds)

    def evaluated(self, seconds: float) -> None:
        """Note an evaluation that took so long."""
        self.counters.seconds = time.perf_counter() - self.started
        self.counters.evaluation_seconds = seconds
        self.agree()

    def progress(self) -> float:
        """The used fraction of the budget."""
        seconds, minutes = self.counters.seconds, self.settings.minutes
        return progress(self.counters.step, self.plan.total_steps, seconds, minutes)

    def used_up(self) -> str | None:
        """A sentence if the budget of epochs or minutes is used up."""
        settings, counters = self.settings, self.counters
        if counters.step >= self.plan.total_steps:
            return f"Reached max_epochs = {settings.max_epochs}."
        if settings.minutes is not None:
            budget = 60 * settings.minutes
            # another step and the last evaluation have to fit in as well, unless that would
            # take half of it all; the first step is often slow
            reserve = min(counters.evaluation_seconds + min(self.last_steps), 0.5 * budget)
            if counters.seconds + reserve >= budget:
                return f"Used up its time budget (minutes={settings.minutes:.3g})."
        return None

    def late(self) -> bool:
        """Whether the time budget is used up now."""
        minutes = self.settings.minutes
        return minutes is not None and time.perf_counter() - self.started >= 60 * minutes

    def agree(self, signals: StopSignals | None = None) -> str | None:
        """The name of a signal that any process got; all take the slowest one's times over."""
        received = signals.received if signals is not None else None
        if self.world == 1:
            return received
        counters = self.counters
        number = 0.0 if received is None else float(Signals[received])
        mine = [number, counters.seconds, counters.evaluation_seconds, self.last_steps[-1]]
        number, counters.seconds, counters.evaluation_seconds, self.last_steps[-1] = self.most(
            mine
        )
        if number and signals is not None and signals.received is None:
            signals.received = Signals(int(number)).name  # all processes end in the same way
        return Signals(int(number)).name if number else None

    def most(self, mine: list[float]) -> list[float]:
        """The largest of each number over all processes."""
        if self.world == 1:
            return mine
        sent = torch.tensor([mine], dtype=torch.float64, device=self.accelerator.device)
        largest: list[float] = self.accelerator.gather(sent).amax(0).tolist()
        return largest
