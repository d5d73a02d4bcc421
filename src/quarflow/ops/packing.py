r"""Dense block-triangular matrices from the weights that exist, and back.

Off-diagonal weights stand row by row of the matrix, or block by block; diagonal blocks in
(D, k_out, k_in).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from quarflow.backends.shapes import Packing
from quarflow.modes import torch_only
from quarflow.ops.backend import Backend, backend_for, signed

__all__ = ["Packing", "assemble", "assemble_blocks"]

Tensors = Sequence[Tensor]


def assemble(off_diagonal: Tensors, diagonal: Tensors, packing: Packing) -> tuple[Tensor, ...]:
    """The dense matrices of successive layers, shapes (T, D k_out, D k_in).

    Arguments:
        off_diagonal: Row by row, shapes (T, D (D - 1) / 2 k_out k_in).
        diagonal: Shapes (T, D, k_out, k_in).
        packing: Where they belong.

    Example:
        >>> packing = Packing(2, (1, 1), (False, True))
        >>> assemble([torch.tensor([[5.0], [6.0]])], [torch.ones(2, 2, 1, 1)], packing)[0]
        tensor([[[1., 0.],
                 [5., 1.]],
        <BLANKLINE>
                [[1., 6.],
                 [0., 1.]]])
    """
    backend = backend_for("packing", packing, (*off_diagonal, *diagonal))
    if backend is None and torch_only():
        return _scattered(off_diagonal, diagonal, packing)
    indexes = [] if backend else _indexes(packing, diagonal[0].device)
    # without gradients there is nothing to remember, and torch.compile sees through the function
    assembled = _Assemble.apply if torch.is_grad_enabled() else _Assemble.forward
    dense: tuple[Tensor, ...] = assembled(packing, backend, *off_diagonal, *diagonal, *indexes)

    return dense


def assemble_blocks(off_diagonal: Tensor, diagonal: Tensor, packing: Packing) -> Tensor:
    """The dense matrices of one layer, shape (T, D k_out, D k_in).

    Arguments:
        off_diagonal: Block by block, shape (T, D (D - 1) / 2, k_out, k_in).
        diagonal: Shape (T, D, k_out, k_in).
        packing: Where they belong.
    """
    D, (k_in, k_out), reverse = packing
    T, device = len(reverse), diagonal.device
    low, high = torch.tril_indices(D, D, -1, device=device)
    step, own = torch.arange(T, device=device)[:, None], torch.arange(D, device=device)
    rows_of = torch.stack([high if r else low for r in reverse])
    columns_of = torch.stack([low if r else high for r in reverse])
    blocks = diagonal.new_zeros(T, D, D, k_out, k_in)
    blocks = blocks.index_put((step, own.expand(T, D), own.expand(T, D)), diagonal)
    blocks = blocks.index_put((step, rows_of, columns_of), off_diagonal)

    return blocks.transpose(2, 3).reshape(T, D * k_out, D * k_in)


def _indexes(packing: Packing, device: torch.device) -> list[Tensor]:
    """Of each layer, flat positions of the off-diagonal weights, row by row, then of the blocks,
    (T, n).

    Example:
        >>> _indexes(Packing(2, (1, 1), (False, True)), torch.device("cpu"))  # [[1, 2], [3, 4]]
        [tensor([[2, 0, 3],
                [1, 0, 3]])]
    """
    ways = [_positions(packing.features, a, b, device) for a, b in pairwise(packing.units)]

    return [torch.stack([way[reverse] for reverse in packing.reverse]) for way in ways]


def _positions(D: int, k_in: int, k_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of a lower and of an upper triangular matrix."""
    width, total = D * k_in, D * (D - 1) // 2 * k_out * k_in
    row = torch.arange(D * k_out, device=device)
    counts = row.div(k_out, rounding_mode="floor") * k_in  # of weights in each row
    # The n-th weight stands n places on, and as many as rows before its own leave out.
    left_out = row * width - (counts.cumsum(0) - counts)
    lower = torch.arange(total, device=device)
    lower = lower + left_out.repeat_interleave(counts, output_size=total)
    upper = (D * k_out * width - 1 - lower).flip(0)  # turned by half a turn
    i, a, b = (torch.arange(n, device=device) for n in (D, k_out, k_in))
    blocks = (((i[:, None] * k_out + a) * width + i[:, None] * k_in)[..., None] + b).flatten()

    return torch.cat((lower, blocks)), torch.cat((upper, blocks))


def _scattered(
    off_diagonal: Tensors, diagonal: Tensors, packing: Packing, indexes: Tensors = ()
) -> tuple[Tensor, ...]:
    """:func:`assemble` in torch."""
    D, T = packing.features, len(packing.reverse)
    dense = []
    indexes = indexes or _indexes(packing, diagonal[0].device)
    for off, on, index, (a, b) in zip(
        off_diagonal, diagonal, indexes, pairwise(packing.units), strict=True
    ):
        values = torch.cat((off, on.flatten(1)), dim=1)
        flat = values.new_zeros(T, D * b * D * a).scatter(1, index, values)
        dense.append(flat.unflatten(1, (D * b, D * a)))

    return tuple(dense)


def _gathered(
    dense: Tensors, packing: Packing, indexes: Tensors = ()
) -> tuple[list[Tensor], list[Tensor]]:
    """Its transpose in torch."""
    D, T, off, on = packing.features, len(packing.reverse), [], []
    indexes = indexes or _indexes(packing, dense[0].device)
    for matrix, index, (a, b) in zip(dense, indexes, pairwise(packing.units), strict=True):
        values, blocks = matrix.flatten(1).gather(1, index), D * a * b
        rest, own = values.split((values.shape[1] - blocks, blocks), dim=1)
        off.append(rest.clone())
        on.append(own.reshape(T, D, b, a))

    return off, on


# Each is linear, and the other is its gradient: so they can be differentiated any number of times.
class _Assemble(torch.autograd.Function):
    """The indexes, where no backend is used, come last: to make them once, outside of vmap."""

    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(packing: Packing, backend: Backend | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        L = len(packing.units) - 1
        off, on, indexes = tensors[:L], tensors[L : 2 * L], tensors[2 * L :]
        if backend is not None:
            return backend.assemble(packing, off, on)

        return _scattered(off, on, packing, indexes)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.packing, _, *tensors = inputs
        ctx.indexes = tensors[2 * (len(ctx.packing.units) - 1) :]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        backend = None if ctx.indexes else backend_for("packing", ctx.packing, grads)
        collect = _Collect.apply if torch.is_grad_enabled() else _Collect.forward
        found = collect(ctx.packing, backend, *grads, *ctx.indexes)

        return None, None, *found, *[None] * len(ctx.indexes)


class _Collect(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(packing: Packing, backend: Backend | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        L = len(packing.units) - 1
        if backend is not None:
            off, on = backend.collect(packing, tensors[:L])
        else:
            off, on = _gathered(tensors[:L], packing, tensors[L:])

        return *off, *on

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.packing, _, *tensors = inputs
        ctx.indexes = tensors[len(ctx.packing.units) - 1 :]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        backend = None if ctx.indexes else backend_for("packing", ctx.packing, grads)
        dense = _Assemble.apply(ctx.packing, backend, *grads, *ctx.indexes)

        return None, None, *dense, *[None] * len(ctx.indexes)
