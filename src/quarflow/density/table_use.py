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

__all__ = ["CHUNK", "chunk_rows", "in_chunks", "refuse_unsure"]

# Rows computed at once: at most so many, and hidden layers of at most 2 MiB for each thread.
CHUNK, CHUNK_NUMBERS = 8192, 1 << 18


def chunk_rows(widest: int) -> int:
    """Rows to compute at once where hidden layers have so many units, a power of 2."""
    rows = CHUNK_NUMBERS * torch.get_num_threads() // widest

    return int(min(2 ** max(rows.bit_length() - 1, 6), CHUNK))


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
    keep_freed_memory()
    found = []
    with torch.inference_mode():
        p: FlowDistribution = model() if context is None else None  # type: ignore[assignment]
        for start in range(0, max(len(rows), 1), size):  # no rows are a chunk as well
            part = slice(start, start + size)
            if context is not None:
                p = model(torch.from_numpy(context[part]))
            try:
                found.append(compute(p, torch.from_numpy(rows[part])))
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
