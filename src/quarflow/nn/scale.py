r"""The Lipschitz Trick: the scale of a branch's output that keeps abs(d) below sigma.

It is computed in float64 whatever the type of the weights, so that one set of weights is one
model, and only what it is multiplied with is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.nn.norms import EPS

__all__ = ["OutputScale", "limited", "output_scale", "refuse_overflow"]

# Rounding of sigma, of sigma / P * P and of the products must not lift abs(d) above sigma.
MARGIN = 1 - 4 * EPS
LEAST = torch.finfo(torch.float32).tiny ** 0.5
UNDERFLOW = 1e-9  # what denormal numbers, which are rounded coarsely, can add to abs(d)
ROOM, LAST_ROOM = 2.0**-20, 2.0**-10  # of the range of a type: points far out need the rest
LARGEST = 1e150  # squares of it are finite in float64, in which bounds are computed


class OutputScale(NamedTuple):
    """What the last layer is multiplied with, in float64, and the certified bound on abs(d)."""

    factor: Tensor
    bound: Tensor

    def times(self, tensor: Tensor) -> Tensor:
        """A tensor of shape (T, outputs, ...), scaled, in its own type."""
        factor = self.factor.reshape(*self.factor.shape, *(1,) * (tensor.dim() - 2))

        return (tensor.double() * factor).to(tensor.dtype)


def output_scale(P: Tensor, theta_raw: Tensor | None, sigma: float) -> OutputScale:
    r"""The scale :math:`\sigma / (\theta + P)` of the outputs of all steps.

    Arguments:
        P: Certified bound on the product of the layer norms, shape (T, D) or (T, 1).
        theta_raw: What :math:`\theta` is the softplus of, shape (T, D), or None where it is 0.
        sigma: Strict bound on abs(d).

    Returns:
        Scale and bound, shapes (T, D) or (T, 1).

    Example:
        >>> scale = output_scale(torch.full((1, 2), 4.0), None, 0.5)
        >>> scale.times(torch.ones(1, 2, 3)).round(decimals=3)
        tensor([[[0.1250, 0.1250, 0.1250],
                 [0.1250, 0.1250, 0.1250]]])
    """
    P, sigma = P.double(), sigma * MARGIN
    total = P if theta_raw is None else fn.softplus(theta_raw.double()) + P
    # P = theta = 0 only if the branch vanishes: any finite scale is right there.
    factor = sigma / total.clamp_min(LEAST)

    return OutputScale(factor, (factor * P + UNDERFLOW).clamp_max(sigma))


def limited(weight: Tensor, norm: Tensor, coeff: float) -> tuple[Tensor, Tensor]:
    r"""Weights of norm at most ``coeff``, :math:`W / \max(1, \|W\| / \text{coeff})`.

    Arguments:
        weight: Shape (T, ...).
        norm: Certified upper bounds on their norms, shape (T).
        coeff: Largest norm.

    Returns:
        The weights, in their type, and the bounds on their norms, shape (T).

    Example:
        >>> limited(torch.tensor([[[8.0]]]), torch.tensor([8.0]), 0.5)
        (tensor([[[0.5000]]]), tensor([0.5000]))
    """
    norm, coeff = norm.double(), coeff * MARGIN
    excess = (norm / coeff).clamp_min(1).reshape(-1, *(1,) * (weight.dim() - 1))

    return (weight.double() / excess).to(weight.dtype), norm.clamp_max(coeff).to(weight.dtype)


def refuse_overflow(
    weights: Sequence[Tensor], biases: Sequence[Tensor], scale: OutputScale, taps: int = 1
) -> None:
    r"""Refuse weights with which hidden units overflow, or could at a point that lies far out.

    Looked at where no gradient is taken: training has an eye on its loss. Weights that are no
    numbers are not looked at: neither are the results.

    Arguments:
        weights: Effective weights of the layers, shapes (*, out, in), the last one not scaled.
        biases: Of the layers, not scaled, without what a context adds.
        scale: What the last layer will be multiplied with.
        taps: How many outputs of the last layer are summed.

    Raises:
        ValueError: if the weights are too large for their type.

    Example:
        >>> weights, biases = [torch.full((1, 1, 1), 1e35)], [torch.zeros(1, 1)]
        >>> with torch.no_grad():
        ...     refuse_overflow(weights, biases, output_scale(torch.tensor([[1e35]]), None, 0.9))
        >>> with torch.no_grad():
        ...     refuse_overflow(weights, biases, output_scale(torch.tensor([[0.0]]), None, 0.9))
        Traceback (most recent call last):
            ...
        ValueError: The weights are too large for float32, up to 1.0e+35: ...
    """
    if torch.is_grad_enabled() or not _has_values(weights[0]):
        return
    tensors = (*weights, *biases, scale.factor, scale.bound)
    sizes = torch.stack([extreme.double() for t in tensors for extreme in torch.aminmax(t)])
    *found, factor, bound = sizes.abs().view(-1, 2).amax(1).tolist()
    if not max(found) < math.inf:  # NaN compares false
        return
    L, dtype = len(weights), weights[0].dtype
    fans = [weight.shape[-1] for weight in weights]
    fans[-1] *= taps
    reach, last = 1.0, 1.0  # of hidden units and tangents, and of F, for x up to 1
    for fan, size, bias in zip(fans, found[:L], found[L:], strict=True):
        reach, last = max(reach, last), last * size * fan + bias
    most = torch.finfo(dtype).max
    if math.isnan(bound) or reach > min(LARGEST, most * ROOM) or last * factor > most * LAST_ROOM:
        raise ValueError(
            f"The weights are too large for {str(dtype).removeprefix('torch.')}, up to "
            f"{max(found[:L]):.1e}: what the network computes with them could exceed its range. "
            f"Train with a lower learning rate"
            + (", or use double() on the model." if dtype == torch.float32 else ".")
        )


def _has_values(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that may be looked at: it is not traced, nor without any."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or tensor.device.type == "meta":
        return False
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    try:
        return bool(tensor.data_ptr())  # those of torch.func have none
    except RuntimeError:
        return False
