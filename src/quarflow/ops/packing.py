r"""Dense block-triangular matrices from the weights that exist, and back.

Off-diagonal weights stand row by row of the matrix, or block by block; diagonal blocks in
(D, k_out, k_in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quarflow.backends.cpu.calls import call, readable
from quarflow.modes import plain

__all__ = ["Packing", "assemble"]


@dataclass(frozen=True)
class Packing:
    """Where weights stand in T dense matrices.

    Attributes:
        features, units_in, units_out: D, k_in and k_out.
        reverse: For each step, whether its matrix is upper triangular.
    """

    features: int
    units_in: int
    units_out: int
    reverse: tuple[bool, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the dense matrices."""
        D = self.features

        return len(self.reverse), D * self.units_out, D * self.units_in

    @property
    def numbers(self) -> list[int]:
        """As the kernels read them."""
        threads = torch.get_num_threads()
        sizes = len(self.reverse), self.features, self.units_out, self.units_in

        return [*sizes, threads, *self.reverse]

    def index(self, device: torch.device) -> Tensor:
        """Flat positions of the off-diagonal weights, row by row, then of the blocks, (T, n).

        Example:
            >>> Packing(2, 1, 1, (False, True)).index(torch.device("cpu"))  # [[1, 2], [3, 4]]
            tensor([[2, 0, 3],
                    [1, 0, 3]])
        """
        D, k_out, k_in = self.features, self.units_out, self.units_in
        width, total = D * k_in, D * (D - 1) // 2 * k_out * k_in
        row = torch.arange(D * k_out, device=device)
        counts = row.div(k_out, rounding_mode="floor") * k_in  # of weights in each row
        # The n-th weight stands n places on, and as many as rows before its own leave out.
        left_out = row * width - (counts.cumsum(0) - counts)
        lower = torch.arange(total, device=device)
        lower = lower + left_out.repeat_interleave(counts, output_size=total)
        upper = (D * k_out * width - 1 - lower).flip(0)  # turned by half a turn
        i, a, b = (torch.arange(n, device=device) for n in (D, k_out, k_in))
        blocks = ((i[:, None] * k_out + a) * width + i[:, None] * k_in)[..., None] + b
        ways = [torch.cat((strict, blocks.flatten())) for strict in (lower, upper)]

        return torch.stack([ways[reverse] for reverse in self.reverse])


def assemble(off_diagonal: Tensor, diagonal: Tensor, packing: Packing) -> Tensor:
    """The dense matrices, shape (T, D k_out, D k_in).

    Arguments:
        off_diagonal: Row by row, shape (T, D (D - 1) / 2 k_out k_in), or block by block,
            (T, D (D - 1) / 2, k_out, k_in).
        diagonal: Shape (T, D, k_out, k_in).
        packing: Where they belong.
    """
    if off_diagonal.dim() == 4:
        return _from_blocks(off_diagonal, diagonal, packing)
    if plain():
        return _scattered(off_diagonal, diagonal, packing)
    index = None if readable((off_diagonal, diagonal)) else packing.index(diagonal.device)
    dense: Tensor = _Assemble.apply(off_diagonal, diagonal, packing, index)

    return dense


def _from_blocks(off_diagonal: Tensor, diagonal: Tensor, packing: Packing) -> Tensor:
    (T, rows, columns), D, device = packing.shape, packing.features, diagonal.device
    low, high = torch.tril_indices(D, D, -1, device=device)
    step, own = torch.arange(T, device=device)[:, None], torch.arange(D, device=device)
    rows_of, columns_of = (
        torch.stack([b if r else a for r in packing.reverse])
        for a, b in ((low, high), (high, low))
    )
    blocks = diagonal.new_zeros(T, D, D, packing.units_out, packing.units_in)
    blocks = blocks.index_put((step, own.expand(T, D), own.expand(T, D)), diagonal)
    blocks = blocks.index_put((step, rows_of, columns_of), off_diagonal)

    return blocks.transpose(2, 3).reshape(T, rows, columns)


def _scattered(
    off_diagonal: Tensor, diagonal: Tensor, packing: Packing, index: Tensor | None = None
) -> Tensor:
    index = packing.index(diagonal.device) if index is None else index
    values = torch.cat((off_diagonal, diagonal.flatten(1)), dim=1)
    T, rows, columns = packing.shape
    flat = values.new_zeros(T, rows * columns)

    return flat.scatter(1, index, values).unflatten(1, (rows, columns))


# Each is linear, and the other is its gradient: so they can be differentiated any number of times.
class _Assemble(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        off_diagonal: Tensor, diagonal: Tensor, packing: Packing, index: Tensor | None
    ) -> Tensor:
        if index is None and readable((off_diagonal, diagonal)):
            off, on = off_diagonal.contiguous(), diagonal.contiguous()
            dense = off.new_empty(packing.shape)
            call("assemble", dense.dtype, packing.numbers, off, on, dense)
            return dense

        return _scattered(off_diagonal, diagonal, packing, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, _, ctx.packing, ctx.index = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        collect = _Collect.apply if torch.is_grad_enabled() else _Collect.forward

        return *collect(grad, ctx.packing, ctx.index), None, None


class _Collect(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(dense: Tensor, packing: Packing, index: Tensor | None) -> tuple[Tensor, Tensor]:
        (T, _, _), D = packing.shape, packing.features
        k_out, k_in = packing.units_out, packing.units_in
        blocks = D * (D - 1) // 2
        if index is None and readable((dense,)):
            whole = dense.contiguous()
            off = whole.new_empty(T, blocks * k_out * k_in)
            on = whole.new_empty(T, D, k_out, k_in)
            call("collect", whole.dtype, packing.numbers, whole, off, on)
            return off, on
        index = packing.index(dense.device) if index is None else index
        values = dense.flatten(1).gather(1, index)
        off, on = values.split((blocks * k_out * k_in, D * k_out * k_in), dim=1)

        return off.clone(), on.reshape(T, D, k_out, k_in)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.packing, ctx.index = inputs

    @staticmethod
    def backward(ctx: Any, off: Tensor, on: Tensor) -> Any:
        return _Assemble.apply(off, on, ctx.packing, ctx.index), None, None
