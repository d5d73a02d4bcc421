r"""What a column depends on: mutual information with each of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quarflow.density.questions_model import Answers, in_parts

__all__ = ["Influence", "dependence", "draw_rows", "everything_said", "influence"]


@dataclass(frozen=True)
class Influence:
    """What columns say about a target, in nats; all tensors (D), NaN at the target itself.

    Attributes:
        alone: Mutual information of each column with the target.
        alone_error: Its standard error.
        added: What each column says beyond all others: mutual information given them.
        added_error: Its standard error.
        all: Mutual information of all others together with the target, and its standard error.
    """

    alone: Tensor
    alone_error: Tensor
    added: Tensor
    added_error: Tensor
    all: tuple[float, float]


def influence(model: Answers, x: Tensor, target: int, c: Tensor | None = None) -> Influence:
    r"""Mutual information, as means over rows of what the model says with and without a column.

    .. math::
        I(t; j) = E \log p(t \mid x_j) - \log p(t), \quad
        I(t; j \mid rest) = E \log p(t \mid x_{-t}) - \log p(t \mid x_{-t,-j})

    Each log-density is exact for the model; the means are over the rows, so they have standard
    errors, and may come out below 0 where there is nothing. Rows lack what they lack: a missing
    cell says nothing. Rows without the target are left out.

    Arguments:
        model: Answers in data units.
        x: Rows (N, D), of the model or of the table; NaN where a cell is missing.
        target: Place of the column that the others may say something about.
        c: Context (N, C), or None; what it says is not counted.
    """
    there, log_prob = ~x.isnan(), _of_target(model, x, target, c)
    nothing, everything = log_prob(torch.zeros_like(there)), log_prob(there)
    D = x.shape[1]
    figures = torch.full((D, 4), torch.nan, dtype=torch.float64)
    for j in range(D):
        if j == target:
            continue
        only, less = torch.zeros_like(there), there.clone()
        only[:, j], less[:, j] = there[:, j], False
        first, second = _mean(log_prob(only) - nothing), _mean(everything - log_prob(less))
        figures[j] = torch.tensor([*first, *second])
    alone, alone_error, added, added_error = figures.unbind(1)

    return Influence(alone, alone_error, added, added_error, _mean(everything - nothing))


def everything_said(model: Answers, x: Tensor, c: Tensor | None = None) -> Tensor:
    """Mutual information of each column with all others together, in nats, (D).

    Arguments:
        model: Answers in data units.
        x: Rows (N, D); NaN where a cell is missing.
        c: Context (N, C), or None; what it says is not counted.
    """
    found = []
    for j in range(x.shape[1]):
        log_prob = _of_target(model, x, j, c)
        there = ~x.isnan()
        found.append(_mean(log_prob(there) - log_prob(torch.zeros_like(there)))[0])

    return torch.tensor(found, dtype=torch.float64)


def dependence(
    model: Answers, x: Tensor, places: Sequence[int], c: Tensor | None = None
) -> Tensor:
    """Mutual information of pairs of columns, in nats, (k, k); NaN on the diagonal.

    Each is taken from both sides, p(i | j) and p(j | i), which a model need not make quite equal.

    Arguments:
        model: Answers in data units.
        x: Rows (N, D); NaN where a cell is missing.
        places: Of k columns.
        c: Context (N, C), or None; what it says is not counted.
    """
    found = torch.full((len(places), len(places)), torch.nan, dtype=torch.float64)
    for row, target in enumerate(places):
        log_prob, there = _of_target(model, x, target, c), ~x.isnan()
        nothing = log_prob(torch.zeros_like(there))
        for place, j in enumerate(places):
            if j != target:
                only = torch.zeros_like(there)
                only[:, j] = there[:, j]
                found[row, place] = _mean(log_prob(only) - nothing)[0]

    return found


def _of_target(
    model: Answers, x: Tensor, target: int, c: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """Log-density (N) of a column as a function of the cells (N, D) that are given."""
    modelled = torch.zeros_like(x, dtype=torch.bool)
    modelled[:, target] = True
    here = ~x[:, target].isnan()

    def log_prob(given: Tensor) -> Tensor:
        found = in_parts(model.log_prob, x, given & ~modelled, modelled, c)
        return torch.where(here, found, torch.nan)

    return log_prob


def draw_rows(
    model: Answers, features: int, count: int, seed: int, c: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Rows (count, D) of the model, and their contexts.

    Arguments:
        model: Answers in data units.
        features: Number D of columns.
        count: How many.
        seed: Of the draws.
        c: Contexts (M, C) to draw at, or None.
    """
    generator = torch.Generator().manual_seed(seed)
    if c is not None:
        c = c[torch.randint(len(c), (count,), generator=generator)]
    x = torch.full((count, features), torch.nan, dtype=torch.float64)
    none = torch.zeros_like(x, dtype=torch.bool)

    def draw(x: Tensor, none: Tensor, c: Tensor | None) -> Tensor:
        return model.sample(x, none, ~none, c, generator)

    return in_parts(draw, x, none, c), c


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean of those that are finite, and its standard error."""
    values = values[values.isfinite()]
    if len(values) < 2:
        return float("nan"), float("nan")

    return float(values.mean()), float(values.std() / len(values) ** 0.5)
