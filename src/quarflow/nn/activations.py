r"""Activations that give value and derivative together.

Each one maps a tensor of any shape to ``(phi(x), phi'(x))`` and satisfies
:math:`\sup_x |\phi'(x)| \le 1`, so that the product of the layer norms bounds the diagonal. The
second derivative, which training needs, follows from what the pass has computed already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ACTIVATIONS", "Activation", "activation", "elu", "lipswish", "sin", "tanh"]


@dataclass(frozen=True)
class Activation:
    """An activation phi with its derivatives.

    Attributes:
        name: As users write it.
        call: x to (phi(x), phi'(x)).
        curvature: (x, phi(x), phi'(x)) to phi''(x).
        curvature_needs_z: Whether the curvature reads x, so that x must be kept.
        doc: One line about it.

    Example:
        >>> sin(torch.tensor([0.0, 1.0]))
        (tensor([0.0000, 0.8415]), tensor([1.0000, 0.5403]))
    """

    name: str
    call: Callable[[Tensor], tuple[Tensor, Tensor]]
    curvature: Callable[[Tensor, Tensor, Tensor], Tensor]
    curvature_needs_z: bool = False
    doc: str = ""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative, of the shape of x."""
        return self.call(x)

    def __reduce__(self) -> tuple[Callable[[str], Activation], tuple[str]]:
        # Pickled by name: functions without a name of their own cannot be.
        return activation, (self.name,)


def _elu(x: Tensor) -> tuple[Tensor, Tensor]:
    below = torch.expm1(x.clamp(max=0))

    return torch.relu(x) + below, below + 1


FLAT = 700.0  # beyond it the sigmoid is 0 or 1 in any type; infinity times 0 would be no number


def _lipswish(x: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(x)

    return x.clamp(min=-FLAT) * s / 1.1, s * (1 + x.clamp(-FLAT, FLAT) * (1 - s)) / 1.1


def _lipswish_curvature(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    s = torch.sigmoid(x)

    return s * (1 - s) * (2 + x.clamp(-FLAT, FLAT) * (1 - 2 * s)) / 1.1


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.tanh(x)

    return t, 1 - t * t


elu = Activation(
    "elu",
    _elu,
    lambda x, value, slope: torch.where(value < 0, slope, torch.zeros_like(slope)),
    doc="ELU with alpha = 1 (Clevert et al., 2015), the paper's. Its derivative has a kink at 0, "
    "so densities built on it are continuous but not smooth.",
)
sin = Activation(
    "sin",
    lambda x: (torch.sin(x), torch.cos(x)),
    lambda x, value, slope: -value,
    doc="Sine: infinitely smooth, bounded, and never saturated everywhere at once.",
)
lipswish = Activation(
    "lipswish",
    _lipswish,
    _lipswish_curvature,
    curvature_needs_z=True,
    doc="x sigmoid(x) / 1.1 (Chen et al., 2019, section 4.2). The slope beta of the original is "
    "fixed at 1: layers are not normalised one by one here, so the weights already set it.",
)
tanh = Activation(
    "tanh",
    _tanh,
    lambda x, value, slope: -2 * value * slope,
    doc="Hyperbolic tangent: infinitely smooth and bounded.",
)

ACTIVATIONS: dict[str, Activation] = {a.name: a for a in (elu, sin, lipswish, tanh)}


def activation(name: str) -> Activation:
    """Look up an activation by name.

    Raises:
        ValueError: if there is no activation of that name.

    Example:
        >>> activation("tanh") is tanh
        True
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, not {name!r}.")

    return ACTIVATIONS[name]
