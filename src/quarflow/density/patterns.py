r"""Which columns of a training row are given, modelled or absent: drawn anew for each batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["draw_patterns", "pack", "unpack"]

# Of the rows that are not modelled whole: what is asked of them.
CONDITIONAL, MARGINAL, SINGLE = 0.35, 0.2, 0.2


def draw_patterns(
    there: Tensor,
    generator: torch.Generator,
    whole: float = 0.4,
    blocks: Sequence[Sequence[int]] = (),
) -> tuple[Tensor, Tensor]:
    """Masks (n, D) of what is given and what is modelled, for rows of which some cells are there.

    Besides whole rows there are: all that is there split in given and modelled; marginals, with
    nothing given; a single column given some others; and all three kinds of columns. How many
    columns are of which kind varies from row to row, evenly from none to all. Each row with
    anything in it has a modelled column.

    Arguments:
        there: Which cells hold a value, (n, D).
        generator: Of the patterns.
        whole: The part of the rows that are modelled whole.
        blocks: Columns that are one variable together, and are all of one kind in each row.

    Example:
        >>> there = torch.ones(1000, 3, dtype=torch.bool)
        >>> given, modelled = draw_patterns(there, torch.Generator().manual_seed(0))
        >>> bool((given & modelled).any()), 400 < int(modelled.all(1).sum()) < 600
        (False, True)
    """
    n, D = there.shape
    home = there.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64, device=home)

    kind, cell = uniform(n, 1), uniform(n, D)
    # even over all shares (modelled, given, absent) that add up to 1
    shares = -uniform(n, 3).clamp_min(1e-300).log()
    rest = (kind - whole) / max(1 - whole, 1e-12)
    conditional = (rest >= 0) & (rest < CONDITIONAL)
    marginal = (rest >= CONDITIONAL) & (rest < CONDITIONAL + MARGINAL)
    single = (rest >= CONDITIONAL + MARGINAL) & (rest < CONDITIONAL + MARGINAL + SINGLE)
    nothing = torch.zeros_like(kind, dtype=torch.bool)
    left_out = torch.cat([single, marginal, conditional], 1)
    shares = torch.where(left_out, 0.0, shares)
    shares = shares / shares.sum(1, keepdim=True)
    modelled = cell < shares[:, :1]
    given = ~modelled & (cell < shares[:, :2].sum(1, keepdim=True))
    # one column that is modelled in any case
    free = there.clone()
    for block in blocks:
        free[:, block[1:]] = False
    place = torch.where(free, uniform(n, D), -1.0).argmax(1, keepdim=True)
    sure = nothing.expand(n, D).scatter(1, place, True)
    modelled, given = modelled | sure, given & ~sure
    whole_rows = rest < 0
    given, modelled = given & ~whole_rows, modelled | whole_rows
    for block in blocks:
        first = list(block[:1])
        given[:, block], modelled[:, block] = given[:, first], modelled[:, first]

    return given & there, modelled & there


def pack(given: Tensor, modelled: Tensor, c: Tensor | None) -> Tensor:
    """Masks (N, D) and context (N, C) side by side, as the training loop hands them on."""
    parts = [given.double(), modelled.double(), *([] if c is None else [c.double()])]

    return torch.cat(parts, 1)


def unpack(packed: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """What :func:`pack` was given, for so many columns.

    Example:
        >>> mask = torch.tensor([[True, False]])
        >>> unpack(pack(mask, ~mask, None), 2)
        (tensor([[ True, False]]), tensor([[False,  True]]), None)
    """
    given, modelled, c = packed.tensor_split([columns, 2 * columns], 1)

    return given > 0, modelled > 0, c if c.shape[1] else None
