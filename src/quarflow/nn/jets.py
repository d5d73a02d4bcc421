r"""Value, slope and curvature of an activation together, in as few passes as they need."""

from __future__ import annotations

import torch
from torch import Tensor

from quarflow.nn.activations import Activation

__all__ = ["jet", "value_and_slope"]


def value_and_slope(phi: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    """phi(z) and phi'(z)."""
    if phi.name == "lipswish":
        s = z.sigmoid()
        part = s / 1.1
        value = z * part
        return value, torch.addcmul(part, value, 1 - s)

    return phi(z)


def jet(phi: Activation, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi(z), phi'(z) and phi''(z).

    Example:
        >>> from quarflow.nn.activations import sin
        >>> jet(sin, torch.zeros(1))
        (tensor([0.]), tensor([1.]), tensor([-0.]))
    """
    if phi.name == "lipswish":
        s = z.sigmoid()
        part, rest = s / 1.1, 1 - s
        value = z * part
        curvature = part * rest * torch.addcmul(z + 2, z, s, value=-2)
        return value, torch.addcmul(part, value, rest), curvature
    value, slope = phi(z)

    return value, slope, phi.curvature(z, value, slope)
