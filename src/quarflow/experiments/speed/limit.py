r"""The machine's limit: operations that a masked network must do, over the matrix rate.

Per row and step, a QuAR flow must multiply the allowed blocks of each layer (value pass) and,
from the second layer on, the diagonal blocks (diagonal pass: the derivative of the first layer is
its weights, the same for every row). A multiplication with its addition is two operations.
Training takes three times as many: forward, and backward to inputs and to weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["matrix_rate", "quar_operations"]

TRAINING = 3
SIDE = 1024  # larger ones are no faster


def quar_operations(
    features: int, units: Sequence[int], transforms: int, training: bool = False
) -> int:
    """Floating-point operations per row.

    Arguments:
        features: Number D of dimensions.
        units: Hidden units per dimension, layer by layer.
        transforms: Number of steps.
        training: Whether backward is counted, too.

    Example:
        >>> quar_operations(2, [3], transforms=1)  # 2 * (3 blocks of 3 + 3 of 3 + 2 diagonal of 3)
        48
    """
    layers = list(pairwise([1, *units, 1]))
    value = sum(features * (features + 1) // 2 * a * b for a, b in layers)
    diagonal = sum(features * a * b for a, b in layers[1:])

    return 2 * transforms * (value + diagonal) * (TRAINING if training else 1)


def matrix_rate(seconds: float = 0.2, device: str = "cpu") -> float:
    """Operations per second of a large float32 matrix product, with the threads torch has now."""
    import torch

    a, b = torch.randn(SIDE, SIDE, device=device), torch.randn(SIDE, SIDE, device=device)
    out = a @ b
    _wait(device)
    start, products = time.perf_counter(), 0
    while True:
        torch.mm(a, b, out=out)
        products += 1
        if device == "cpu" or products % 16 == 0:
            _wait(device)
            passed = time.perf_counter() - start
            if passed >= seconds:
                return 2 * SIDE**3 * products / passed


def _wait(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
