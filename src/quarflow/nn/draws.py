"""Initial values that follow from the seed alone, whatever the default dtype is."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normal_", "uniform_"]


@torch.no_grad()
def normal_(tensor: Tensor, std: float = 1.0) -> Tensor:
    """Fill with normal numbers, drawn in float32 for tensors of every type.

    Example:
        >>> same = []
        >>> for dtype in (torch.float32, torch.float64):
        ...     _ = torch.manual_seed(0)
        ...     same.append(normal_(torch.empty(3, dtype=dtype)).float())
        >>> torch.equal(*same)
        True
    """
    drawn = torch.empty_like(tensor, dtype=torch.float32).normal_(std=std)

    return tensor.copy_(drawn)


@torch.no_grad()
def uniform_(tensor: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Fill with numbers between two, drawn in float32 for tensors of every type."""
    drawn = torch.empty_like(tensor, dtype=torch.float32).uniform_(low, high)

    return tensor.copy_(drawn)
