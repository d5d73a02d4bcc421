r"""Many rows through a density: in chunks, and with what rounding may have moved told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarflow.backends.cpu.allocator import keep_freed_memory
from quarflow.density.data_units import DataUnits
from quarflow.flows import FlowDistribution
from quarflow.solvers import InversionError, listed
from quarflow.transforms.trust import Amplification

__all__ = ["CHUNK", "CHUNK_NUMBERS", "by_parts", "in_chunks", "refuse_unsure"]

# Rows computed at once: at most so many, and hidden layers of at most 2 MiB for each thread.
CHUNK, CHUNK_NUMBERS = 8192, 1 << 18


def in_chunks(
    model: DataUnits,
    rows: NDArray[np.float64],
    context: NDArray[np.float64] | None,
    compute: Callable[[FlowDistribution, Tensor], Tensor],
    size: int,
) -> NDArray[Any]:
    """Something of each row, in chunks; weights are bound once when there is no context.

    Arguments:
        model: The density, in float64.
        rows: Shape (n, D).
        context: Shape (n, C), or None.
        compute: Of a distribution and some rows (m, D), shape (m, *).
        size: Rows at once.

    Raises:
        InversionError: with the number of the row that the chunk begins at.
    """
    with torch.inference_mode():
        p: FlowDistribution = model() if context is None else None  # type: ignore[assignment]

    def bound(x: Tensor, c: Tensor | None) -> Tensor:
        return compute(p if c is None else model(c), x)

    return by_parts(bound, rows, context, size)


def by_parts(
    compute: Callable[[Tensor, Tensor | None], Tensor],
    rows: NDArray[np.float64],
    context: NDArray[np.float64] | None,
    size: int,
) -> NDArray[Any]:
    """Something of each row and its context, in chunks.

    Arguments:
        compute: Of some rows (m, D) and contexts (m, C) or None, shape (m, *).
        rows, context, size: As of :func:`in_chunks`.

    Raises:
        InversionError: with the number of the row that the chunk begins at.
    """
    keep_freed_memory()
    found = []
    with torch.inference_mode():
        for start in range(0, max(len(rows), 1), size):  # no rows are a chunk as well
            part = slice(start, start + size)
            c = None if context is None else torch.from_numpy(context[part])
            try:
                found.append(compute(torch.from_numpy(rows[part]), c))
            except InversionError as error:
                if start == 0:
                    raise
                told = f"Counted from row {start}: {error}"
                raise InversionError(error.failed, len(rows), error.residual, 0.0, told) from error

    return torch.cat(found).numpy()


def refuse_unsure(errors: Sequence[Amplification], checked: bool) -> None:
    """Warn, or if it is to be checked raise, where rounding may have moved a row.

    Raises:
        InversionError: naming the rows.
    """
    limit = errors[0].limit
    unsure = torch.cat([e.error for e in errors]) > limit
    if not unsure.any():
        return
    told = (
        f"{int(unsure.sum())} of {len(unsure)} rows of Z meet so steep an inverse that "
        f"rounding alone may move them by more than {limit:.0e}, relative to their size "
        f"in standardised units: {listed(unsure)}."
    )
    if checked:
        raise InversionError(int(unsure.sum()), len(unsure), 0.0, limit, told)
    warnings.warn(told, stacklevel=3)
