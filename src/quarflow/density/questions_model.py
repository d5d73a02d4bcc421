r"""What questions ask of a model of a table, in which each cell is given, modelled or absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["AT_ONCE", "Answers", "in_parts"]

AT_ONCE = 8192  # rows that a model is asked about in one call


class Answers(Protocol):
    """The functions that all questions come down to, in data units and float64.

    Rows ``x`` have shape (N, D), one number per column: categories are codes, NaN is missing.
    ``given`` and ``modelled`` are bool of the same shape, never both; what is neither is
    integrated out. ``c`` is the context, (N, C), or None.
    """

    def log_prob(
        self, x: Tensor, given: Tensor, modelled: Tensor, c: Tensor | None = None
    ) -> Tensor:
        """Log of the probability times density of the modelled cells, given others: (N)."""

    def sample(
        self,
        x: Tensor,
        given: Tensor,
        modelled: Tensor,
        c: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Rows (N, D) with the modelled cells drawn and those given kept; NaN where absent."""

    def noise(self, x: Tensor, given: Tensor, modelled: Tensor, c: Tensor | None = None) -> Tensor:
        """Normal scores (N, D) of the modelled numbers, 0 elsewhere.

        Of one modelled number alone, Phi of it is the cumulative distribution there.
        """

    def from_noise(
        self, z: Tensor, x: Tensor, given: Tensor, modelled: Tensor, c: Tensor | None = None
    ) -> Tensor:
        """Rows (N, D) whose modelled numbers have the scores z: the inverse of ``noise``."""

    def probabilities(
        self, x: Tensor, given: Tensor, column: int, c: Tensor | None = None
    ) -> Tensor:
        """Of the categories of a column, (N, K).

        Of a number with point masses: of each of these, and last of all other values together.
        """


def in_parts(compute: Callable[..., Tensor], *rows: Tensor | None) -> Tensor:
    """What a function gives for rows, (N, *), asked of at most ``AT_ONCE`` rows at a time.

    Arguments:
        compute: Takes parts of all of ``rows``.
        rows: Tensors of N rows, at least the first; None stays None.

    Example:
        >>> in_parts(lambda x, c: 2 * x, torch.arange(3), None)
        tensor([0, 2, 4])
    """
    first = rows[0]
    assert first is not None
    count = len(first)
    parts = []
    with torch.inference_mode():
        for start in range(0, max(count, 1), AT_ONCE):  # no rows are a part as well
            part = slice(start, start + AT_ONCE)
            parts.append(compute(*(None if r is None else r[part] for r in rows)))

    return torch.cat(parts).clone()
