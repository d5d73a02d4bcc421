"""Calling the kernel of the bound on a product of norms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from quarflow.backends.cpu.calls import call, contiguous, int64s, pointers

__all__ = ["product_bound", "product_gradients"]


def product_bound(blocks: Sequence[Tensor]) -> Tensor:
    """The product of the bounds of the balanced layers (*, m, n), shape (*), in float64."""
    blocks = contiguous(blocks)
    found = blocks[0].new_empty(blocks[0].shape[:-2], dtype=torch.float64)
    numbers = _numbers(*map(Tensor.size, blocks), threads=torch.get_num_threads())
    call("bounds", blocks[0].dtype, numbers, pointers(blocks), found, None, None)

    return found


def product_gradients(blocks: Sequence[Tensor], of_product: Tensor) -> list[Tensor]:
    """The gradients of the blocks from that of the product."""
    blocks, given = contiguous(blocks), of_product.contiguous()
    found = list(map(torch.empty_like, blocks))
    numbers = _numbers(*map(Tensor.size, blocks), threads=torch.get_num_threads())
    dtype = blocks[0].dtype
    call("bounds", dtype, numbers, pointers(blocks), None, given, pointers(found))

    return found


@lru_cache
def _numbers(*sizes: torch.Size, threads: int) -> Any:
    units = [sizes[0][-1], *[size[-2] for size in sizes]]

    return int64s(sizes[0][:-2].numel(), len(sizes), threads, *units)
