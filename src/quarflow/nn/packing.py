r"""Dense block-triangular matrices from the weights that exist, and back.

Off-diagonal weights stand row by row, diagonal blocks in (D, k_out, k_in); see
:func:`quarflow.nn.linear.triangular_index`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quarflow.modes import plain
from quarflow.native.calls import call, readable

__all__ = ["Packing", "assemble"]


@dataclass(frozen=True)
class Packing:
    """Where weights stand in T dense matrices.

    Attributes:
        index: Flat positions of the off-diagonal weights, then of the diagonal blocks, (T, n).
        features, units_in, units_out: D, k_in and k_out.
        reverse: For each step, whether its matrix is upper triangular.
    """

    index: Tensor
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


def assemble(off_diagonal: Tensor, diagonal: Tensor, packing: Packing) -> Tensor:
    """The dense matrices, shape (T, D k_out, D k_in).

    Arguments:
        off_diagonal: Shape (T, D (D - 1) / 2 k_out k_in).
        diagonal: Shape (T, D, k_out, k_in).
        packing: Where they belong.
    """
    if plain():
        return _scattered(off_diagonal, diagonal, packing)
    dense: Tensor = _Assemble.apply(off_diagonal, diagonal, packing)

    return dense


def _scattered(off_diagonal: Tensor, diagonal: Tensor, packing: Packing) -> Tensor:
    values = torch.cat((off_diagonal, diagonal.flatten(1)), dim=1)
    T, rows, columns = packing.shape
    flat = values.new_zeros(T, rows * columns).scatter(1, packing.index, values)

    return flat.unflatten(1, (rows, columns))


# Each is linear, and the other is its gradient: so they can be differentiated any number of times.
class _Assemble(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(off_diagonal: Tensor, diagonal: Tensor, packing: Packing) -> Tensor:
        if readable((off_diagonal, diagonal)):
            off, on = off_diagonal.contiguous(), diagonal.contiguous()
            dense = off.new_empty(packing.shape)
            call("assemble", dense.dtype, packing.numbers, off, on, dense)
            return dense

        return _scattered(off_diagonal, diagonal, packing)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.packing = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (*_Collect.apply(grad, ctx.packing), None)


class _Collect(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(dense: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        (T, _, _), D = packing.shape, packing.features
        k_out, k_in = packing.units_out, packing.units_in
        blocks = D * (D - 1) // 2
        if readable((dense,)):
            whole = dense.contiguous()
            off = whole.new_empty(T, blocks * k_out * k_in)
            on = whole.new_empty(T, D, k_out, k_in)
            call("collect", whole.dtype, packing.numbers, whole, off, on)
            return off, on
        values = dense.flatten(1).gather(1, packing.index)
        off, on = values.split((blocks * k_out * k_in, D * k_out * k_in), dim=1)

        return off.clone(), on.reshape(T, D, k_out, k_in)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.packing = inputs[1]

    @staticmethod
    def backward(ctx: Any, off: Tensor, on: Tensor) -> Any:
        return _Assemble.apply(off, on, ctx.packing), None
