r"""Slopes that keep a step invertible."""

from __future__ import annotations

import math

import torch.nn.functional as fn
from torch import Tensor

__all__ = ["LEAST_SLOPE", "above_minus_one"]

LEAST_SLOPE = 1e-3  # an invertible map may not be flat; this is how flat it may get


def above_minus_one(a: Tensor) -> Tensor:
    r"""Increasing map of the real line to :math:`(-1 + \epsilon, \infty)` that keeps 0 at 0.

    Example:
        >>> import torch
        >>> above_minus_one(torch.tensor([-100.0, 3.0]))
        tensor([-0.9990,  2.5694])
    """
    room = 1 - LEAST_SLOPE

    return fn.softplus(a + math.log(math.expm1(room))) - room
