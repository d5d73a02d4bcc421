"""Equal numbers of weights: how many a model really has, and the width that gives so many."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CannotMatch", "existing_weights", "match_width"]

WITHIN = 0.1


class CannotMatch(ValueError):
    """No width gives a model the number of weights that is asked for."""


def existing_weights(module: nn.Module) -> int:
    """Numbers that training can change anything with: masked-out weights do not exist.

    A layer with a ``mask`` of the shape of its ``weight`` is taken as masked, in every library.

    Example:
        >>> from quarflow.nn.made import MADE
        >>> made = MADE(3, (4,), reverse=[False], outputs=2)  # 18 of 36 weights, 10 biases
        >>> existing_weights(made)
        28
    """
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    for part in module.modules():
        mask, weight = getattr(part, "mask", None), getattr(part, "weight", None)
        if mask is not None and weight is not None and mask.shape == weight.shape:
            count -= int((mask == 0).sum())

    return count


def match_width(build: Callable[[int], nn.Module], target: int) -> tuple[int, int]:
    """The width whose number of weights is nearest to the target, and that number.

    Raises:
        CannotMatch: if even the nearest is not within 10 %.

    Example:
        >>> from torch import nn
        >>> match_width(lambda width: nn.Linear(10, width), 1100)
        (100, 1100)
    """
    counts: dict[int, int] = {}

    def count(width: int) -> int:
        if width not in counts:
            counts[width] = existing_weights(build(width))
        return counts[width]

    low, high = 1, 16
    while count(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        # Weights grow between linearly and quadratically with the width: aim between the two.
        middle = round(low + (high - low) * _part(target, count(low), count(high)))
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if count(middle) < target else (low, middle)
        if abs(count(middle) / target - 1) < 0.01:
            break
    width = min(counts, key=lambda w: abs(counts[w] - target))
    if abs(counts[width] / target - 1) > WITHIN:
        raise CannotMatch(f"no width gives {target:,} weights; the nearest is {counts[width]:,}")

    return width, counts[width]


def _part(target: int, low: int, high: int) -> float:
    if high <= low:
        return 0.5
    share = max(target - low, 0) / (high - low)

    return float(0.5 * (share + share**0.5))
