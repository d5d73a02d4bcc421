"""Calling the kernel of the bound on a product of norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quarflow.backends.cpu.calls import MAX_LAYERS, call, pointers, readable

__all__ = ["gradients", "product", "usable"]

MAX_UNITS = 32  # wider blocks are better off with large matrix products


def usable(blocks: Sequence[Tensor], of_product: Tensor | None = None) -> bool:
    """Whether the kernel can bound these, shapes (*, m, n), or go back from their product."""
    return (
        1 < len(blocks) <= MAX_LAYERS
        and max([max(b.shape[-2:]) for b in blocks]) <= MAX_UNITS
        and readable(blocks)
        and (of_product is None or readable([of_product]))
    )


def product(blocks: Sequence[Tensor]) -> Tensor:
    """The product of the bounds of the balanced layers, shape (*), in float64."""
    blocks = [b.contiguous() for b in blocks]
    found = blocks[0].new_empty(blocks[0].shape[:-2], dtype=torch.float64)
    call("bounds", blocks[0].dtype, _numbers(blocks), pointers(blocks), found, None, None)

    return found


def gradients(blocks: Sequence[Tensor], of_product: Tensor) -> list[Tensor]:
    """The gradients of the blocks from that of the product."""
    blocks = [b.contiguous() for b in blocks]
    found = [torch.empty_like(b) for b in blocks]
    given = of_product.contiguous()
    call(
        "bounds", blocks[0].dtype, _numbers(blocks), pointers(blocks), None, given, pointers(found)
    )

    return found


def _numbers(blocks: Sequence[Tensor]) -> list[int]:
    units = [blocks[0].shape[-1], *[b.shape[-2] for b in blocks]]

    return [blocks[0].shape[:-2].numel(), len(blocks), torch.get_num_threads(), *units]
