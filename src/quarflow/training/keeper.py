"""Keeping the checkpoint of a run: when it is due, writing it, going on from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quarflow.training.checkpoint import CheckpointError, clear, has_checkpoint, read, write
from quarflow.training.learner import Learner
from quarflow.training.state import Counters

__all__ = ["Keeper"]


class Keeper:
    """The checkpoint of one run.

    Arguments:
        folder: Where it lies.
        identity: What it is a checkpoint of.
        seconds: Shortest time between two, 0 to write whenever it can be.
        writes: Whether this process writes; the others only read.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], seconds: float, writes: bool
    ) -> None:
        self.folder, self.identity = folder, identity
        self.seconds, self.writes = seconds, writes
        self.last = time.perf_counter()
        self.took = 0.0
        self.kept: int | None = None  # step of the checkpoint that is there
        self.failing = False

    def found(self, accelerator: Any) -> bool:
        """Whether there is one to go on from, for all processes.

        Raises:
            CheckpointError: If only some of them find it.
        """
        found = has_checkpoint(self.folder)
        if accelerator.num_processes > 1:
            sent = torch.tensor([float(found)], device=accelerator.device)
            share = accelerator.gather(sent).mean().item()
            if share not in (0.0, 1.0):
                raise CheckpointError(
                    f"Not all processes find the checkpoint in {self.folder}: it must be a folder "
                    "that all the machines share."
                )
        return found

    def clear(self) -> None:
        """Remove an older run's, or a later resume would take it up."""
        if self.writes:
            clear(self.folder)

    def due(self) -> bool:
        """Whether it is time; writing shall not take more than a twentieth of it."""
        wait = max(self.seconds, 20 * self.took) if self.seconds else 0.0
        return time.perf_counter() - self.last >= wait

    def save(self, learner: Learner, counters: Counters) -> str | None:
        """Write it; a sentence when that fails, the first time of several in a row."""
        begun = time.perf_counter()
        counters.train_total, counters.train_steps = float(learner.total), learner.steps
        tensors = learner.saved(with_good=counters.step != counters.good_step)
        trouble = None
        try:
            write(self.folder, tensors, counters, self.identity)
        except OSError as error:
            if not self.failing:
                kept = "none so far" if self.kept is None else f"that of step {self.kept}"
                trouble = (
                    f"The checkpoint of step {counters.step} could not be written to "
                    f"{self.folder} ({error.strerror or error}): training goes on, with {kept} "
                    "to resume from."
                )
            self.failing = True
        else:
            self.failing, self.kept = False, counters.step
        self.last = time.perf_counter()
        self.took = self.last - begun
        return trouble

    def take_up(self, learner: Learner, counters: Counters) -> int:
        """Restore everything from it; its step comes back."""
        found, then = read(self.folder, learner.tensors(), self.identity)
        learner.load(found)
        learner.total.fill_(then.train_total)
        learner.steps = then.train_steps
        vars(counters).update(vars(then))
        self.kept = counters.step
        return counters.step
