"""Calling the kernels that put weights into dense matrices, and take them out again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from quarflow.backends.cpu.calls import call, contiguous, int64s, pointers
from quarflow.backends.shapes import Packing

__all__ = ["assemble", "collect"]

Sizes = list[tuple[int, ...]]


def assemble(packing: Packing, off: Sequence[Tensor], on: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The dense matrices of the layers, shapes (T, D k_out, D k_in)."""
    off, on = contiguous(off), contiguous(on)
    dense = tuple(map(on[0].new_empty, _sizes(packing)[0]))
    numbers = _numbers(packing, torch.get_num_threads())
    call("assemble", on[0].dtype, numbers, pointers(off), pointers(on), pointers(dense))

    return dense


def collect(packing: Packing, dense: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The off-diagonal weights of the layers, and their diagonal blocks."""
    dense = contiguous(dense)
    off, on = (list(map(dense[0].new_empty, sizes)) for sizes in _sizes(packing)[1:])
    numbers = _numbers(packing, torch.get_num_threads())
    call("collect", dense[0].dtype, numbers, pointers(dense), pointers(off), pointers(on))

    return off, on


@lru_cache
def _sizes(packing: Packing) -> tuple[Sizes, Sizes, Sizes]:
    """Of dense matrices, off-diagonal weights and diagonal blocks."""
    T, D = len(packing.reverse), packing.features
    layers = [(a, b) for b, a in pairwise(packing.units)]  # units out and in

    return (
        [(T, D * a, D * b) for a, b in layers],
        [(T, D * (D - 1) // 2 * a * b) for a, b in layers],
        [(T, D, a, b) for a, b in layers],
    )


@lru_cache
def _numbers(packing: Packing, threads: int) -> Any:
    T, layers = len(packing.reverse), len(packing.units) - 1

    return int64s(T, packing.features, layers, threads, *packing.reverse, *packing.units)
