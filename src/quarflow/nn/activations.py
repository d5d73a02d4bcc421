r"""Activations that give value and derivative together.

Each function maps a tensor of any shape to ``(phi(x), phi'(x))`` and satisfies
:math:`\sup_x |\phi'(x)| \le 1`, so that the product of the layer norms bounds the diagonal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Activation = Callable[[Tensor], tuple[Tensor, Tensor]]

__all__ = ["ACTIVATIONS", "Activation", "activation", "elu", "lipswish", "sin", "tanh"]


def elu(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""ELU with alpha = 1 (Clevert et al., 2015): the paper's choice.

    Its derivative has a kink at 0, so densities built on it are continuous but not smooth.

    Example:
        >>> elu(torch.tensor([-1.0, 2.0]))
        (tensor([-0.6321,  2.0000]), tensor([0.3679, 1.0000]))
    """
    below = torch.expm1(x.clamp(max=0))

    return torch.relu(x) + below, below + 1


def sin(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sine: infinitely smooth, bounded, and never saturated everywhere at once.

    Example:
        >>> sin(torch.tensor([0.0, 1.0]))
        (tensor([0.0000, 0.8415]), tensor([1.0000, 0.5403]))
    """
    return torch.sin(x), torch.cos(x)


def lipswish(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""LipSwish :math:`x \, \mathrm{sigmoid}(x) / 1.1` (Chen et al., 2019, section 4.2).

    The slope beta of the original is fixed at 1: the layers here are not normalised one by one,
    so the weights before the activation already set its scale.

    Example:
        >>> lipswish(torch.tensor([0.0, 1.0]))
        (tensor([0.0000, 0.6646]), tensor([0.4545, 0.8433]))
    """
    s = torch.sigmoid(x)
    value = x * s

    return value / 1.1, (s + value * (1 - s)) / 1.1


def tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Hyperbolic tangent: infinitely smooth and bounded.

    Example:
        >>> tanh(torch.tensor([0.0, 1.0]))
        (tensor([0.0000, 0.7616]), tensor([1.0000, 0.4200]))
    """
    t = torch.tanh(x)

    return t, 1 - t * t


ACTIVATIONS: dict[str, Activation] = {"elu": elu, "sin": sin, "lipswish": lipswish, "tanh": tanh}


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
