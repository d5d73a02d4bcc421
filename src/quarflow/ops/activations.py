r"""Activations that give value, slope and curvature together.

Each one maps a tensor of any shape to ``(phi(x), phi'(x))`` and satisfies
:math:`\sup_x |\phi'(x)| \le 1`, so that the product of the layer norms bounds the diagonal.
To add one is to add one entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ACTIVATIONS", "Activation", "activation", "elu", "lipswish", "sin", "tanh"]

Jet = tuple[Tensor, Tensor, Tensor]  # value, slope, curvature


@dataclass(frozen=True)
class Activation:
    """An activation phi with its derivatives.

    Attributes:
        name: As users write it.
        call: x to (phi(x), phi'(x)).
        curvature: (phi(x), phi'(x)) to phi''(x); None if it does not follow from them.
        from_x: x to (phi(x), phi'(x), phi''(x)), where the curvature needs x.
        doc: One line about it.

    Example:
        >>> sin(torch.tensor([0.0, 1.0]))
        (tensor([0.0000, 0.8415]), tensor([1.0000, 0.5403]))
        >>> sin.jet(torch.zeros(1))
        (tensor([0.]), tensor([1.]), tensor([-0.]))
    """

    name: str
    call: Callable[[Tensor], tuple[Tensor, Tensor]]
    curvature: Callable[[Tensor, Tensor], Tensor] | None = None
    from_x: Callable[[Tensor], Jet] | None = None
    doc: str = ""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope, of the shape of x."""
        return self.call(x)

    def jet(self, x: Tensor) -> Jet:
        """Value, slope and curvature, of the shape of x."""
        if self.from_x is not None:
            return self.from_x(x)
        assert self.curvature is not None
        value, slope = self.call(x)

        return value, slope, self.curvature(value, slope)

    def __reduce__(self) -> tuple[Callable[[str], Activation], tuple[str]]:
        # Pickled by name: functions without a name of their own cannot be.
        return activation, (self.name,)


def _elu(x: Tensor) -> tuple[Tensor, Tensor]:
    below = torch.expm1(x.clamp(max=0))

    return torch.relu(x) + below, below + 1


FLAT = 700.0  # beyond it the sigmoid is 0 or 1 in any type; infinity times 0 would be no number


def _lipswish(x: Tensor) -> tuple[Tensor, Tensor]:
    s, bounded = x.sigmoid(), x.clamp(-FLAT, FLAT)
    part = s / 1.1

    return x.clamp(min=-FLAT) * part, torch.addcmul(part, bounded * part, 1 - s)


def _lipswish_jet(x: Tensor) -> Jet:
    s, bounded = x.sigmoid(), x.clamp(-FLAT, FLAT)
    part, rest = s / 1.1, 1 - s
    curvature = part * rest * torch.addcmul(bounded + 2, bounded, s, value=-2)

    return x.clamp(min=-FLAT) * part, torch.addcmul(part, bounded * part, rest), curvature


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.tanh(x)

    return t, 1 - t * t


elu = Activation(
    "elu",
    _elu,
    lambda value, slope: torch.where(value < 0, slope, torch.zeros_like(slope)),
    doc="ELU with alpha = 1 (Clevert et al., 2015), the paper's. Its derivative has a kink at 0, "
    "so densities built on it are continuous but not smooth.",
)
sin = Activation(
    "sin",
    lambda x: (torch.sin(x), torch.cos(x)),
    lambda value, slope: -value,
    doc="Sine: infinitely smooth, bounded, and never saturated everywhere at once.",
)
lipswish = Activation(
    "lipswish",
    _lipswish,
    from_x=_lipswish_jet,
    doc="x sigmoid(x) / 1.1 (Chen et al., 2019, section 4.2). The slope beta of the original is "
    "fixed at 1: layers are not normalised one by one here, so the weights already set it.",
)
tanh = Activation(
    "tanh",
    _tanh,
    lambda value, slope: -2 * value * slope,
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
