"""Rows, and which of them each step takes: every choice follows from (seed, kind, number)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quarflow.seeds import seeded
from quarflow.training.settings import TrainingSettings

__all__ = ["Plan", "Rows", "Sampler", "validation_batch", "validation_rows", "weights_of"]


class Rows(Protocol):
    """Indexable training data that adds its own noise.

    An optional attribute ``device`` says where ``index`` and ``generator`` should live (default:
    the CPU); the batch is moved to the training device in any case. An optional ``first`` says how
    many rows the data-dependent initialisation should see (default: 1,024). An optional
    ``weights``, shape (n) on that device and with a mean of 1, weighs the rows: losses and
    validation nats are then weighted means. An optional method ``identity()`` gives digests of
    the data by name (default: of all batches), by which a checkpoint knows its data again.
    """

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """(x, c) of the rows ``index``, shapes (n, features) and (n, context) or None."""
        ...


@dataclass(frozen=True)
class Plan:
    """How training rows are cut into steps, epochs and evaluations.

    A last batch that is not full is dropped, unless it is the only one.

    Example:
        >>> Plan.of(1000, TrainingSettings(batch_size=64, max_epochs=10))
        Plan(batch_size=64, steps_per_epoch=15, total_steps=150, evaluate_every=30)
    """

    batch_size: int
    steps_per_epoch: int
    total_steps: int
    evaluate_every: int

    @classmethod
    def of(cls, rows: int, settings: TrainingSettings) -> Plan:
        """The plan for so many training rows."""
        batch_size = min(settings.batch_size, rows)
        per_epoch = rows // batch_size
        every = settings.evaluate_every
        if every is None:
            if per_epoch > 1000:
                parts = -(-per_epoch // 1000)
                every = -(-per_epoch // parts)
            else:
                every = per_epoch * -(-20 // per_epoch)
        total = per_epoch * settings.max_epochs
        return cls(batch_size, per_epoch, total, min(every, total))


class Sampler:
    """The batches of training steps; a process takes its share of each.

    Arguments:
        rows: The training rows.
        plan: How they are cut into steps.
        seed: Of their order and their noise.
        rank, world: Number of this process, and how many there are.
    """

    def __init__(self, rows: Rows, plan: Plan, seed: int, rank: int = 0, world: int = 1) -> None:
        self.rows, self.plan, self.seed, self.rank, self.world = rows, plan, seed, rank, world
        self.device = torch.device(getattr(rows, "device", "cpu"))
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def indices(self, step: int) -> Tensor:
        """The rows of this process's share of a step, shape (n,)."""
        epoch, i = divmod(step, self.plan.steps_per_epoch)
        if epoch != self._epoch:  # of the whole epoch, on the CPU: the same on every device
            generator = seeded(self.seed, "order", epoch)
            self._order = torch.randperm(len(self.rows), generator=generator).to(self.device)
            self._epoch = epoch
        size = self.plan.batch_size
        index = self._order[i * size : (i + 1) * size]
        if self.world == 1:
            return index
        even = len(index) // self.world * self.world  # equal shares: the mean of means is right
        return index[self.rank : even : self.world]

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """(x, c) of this process's share of a step."""
        noise = seeded(self.seed, "noise", step, self.rank, device=self.device)
        return self.rows.batch(self.indices(step), noise)

    def weights(self, step: int) -> Tensor | None:
        """Weights of this process's rows of a step, shape (n); None if all count the same."""
        return weights_of(self.rows, self.indices(step))

    def first(self) -> tuple[Tensor, Tensor | None]:
        """The (x, c) for data-dependent initialisation, the same in every process."""
        least = getattr(self.rows, "first", 1024)
        size, generator = max(least, self.plan.batch_size), seeded(self.seed, "first")
        weights = weights_of(self.rows)
        if weights is None:
            index = torch.randperm(len(self.rows), generator=generator)[:size]
        else:  # rows that stand for many come often
            total = weights.cpu().cumsum(0)
            places = torch.rand(size, generator=generator, dtype=total.dtype) * total[-1]
            index = torch.searchsorted(total, places).clamp(max=len(total) - 1)
        index = index.to(self.device)
        return self.rows.batch(index, seeded(self.seed, "first noise", device=self.device))


def weights_of(rows: Rows, index: Tensor | None = None) -> Tensor | None:
    """Weights of rows, shape (n), or of some of them; None if all count the same."""
    weights: Tensor | None = getattr(rows, "weights", None)

    return weights if weights is None or index is None else weights[index]


def validation_rows(rows: Rows, number: int, size: int) -> Tensor:
    """Which rows one batch of validation rows has; see :func:`validation_batch`."""
    device = torch.device(getattr(rows, "device", "cpu"))

    return torch.arange(number * size, min((number + 1) * size, len(rows)), device=device)


def validation_batch(
    rows: Rows, number: int, size: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """The (x, c) of one batch of validation rows, with the same noise at each evaluation.

    Arguments:
        rows: The validation rows.
        number: Of the batch, from 0.
        size: Rows in a batch; the last may have fewer.
        seed: Of the noise.
    """
    index = validation_rows(rows, number, size)
    return rows.batch(index, seeded(seed, "validation", number, device=index.device))
