"""A table like real ones, from a seed: correlated, skewed, with long tails."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["correlated_rows"]


def correlated_rows(rows: int, features: int, seed: int = 0) -> Tensor:
    """Standardised rows (rows, features), float32.

    About D / 2 skewed factors mixed into D columns, bent, with noise; every third column has
    long tails. The columns depend on the seed and D alone, however many rows there are.

    Arguments:
        rows, features: How many.
        seed: Of the columns and of the rows.

    Example:
        >>> x = correlated_rows(1000, 8)
        >>> x.shape, bool((torch.corrcoef(x.T).triu(1).abs() > 0.3).any())
        (torch.Size([1000, 8]), True)
    """
    shape = torch.Generator().manual_seed(seed)
    factors = features // 2 + 1
    mixing = torch.randn(features, factors, generator=shape, dtype=torch.float64)
    mixing = mixing / mixing.norm(dim=1, keepdim=True)
    draws = torch.Generator().manual_seed(seed + 1)
    s = torch.randn(rows, factors, generator=draws, dtype=torch.float64)
    s = s + 0.4 * (s * s - 1)
    x = s @ mixing.T
    x = x + 0.5 * torch.sin(2 * x.roll(1, dims=1))
    x = x + 0.3 * torch.randn(rows, features, generator=draws, dtype=torch.float64)
    x[:, ::3] = x[:, ::3] * x[:, ::3].abs().sqrt()

    return ((x - x.mean(0)) / x.std(0)).float()
