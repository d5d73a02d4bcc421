r"""The Lipschitz Trick: a network's output scaled so that its diagonal stays below sigma.

.. math:: F = \frac{\sigma}{\theta + P} \, N, \quad
    |d_i| \le \frac{\sigma P_i}{\theta_i + P_i} \le \sigma < 1

where N is any network with activations no steeper than 1, P a certified upper bound on the
product of its layer norms, and :math:`\theta \ge 0` is learned. Weights stay free: what would
make the norms large makes the scale small.

The scale is computed in float64 whatever the type of the weights, so that one set of weights is
one model, and only what it is multiplied with is rounded.

Reference:
    | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020), section 4.2
    | https://arxiv.org/abs/2009.07419
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.ops.bounds import EPS

__all__ = [
    "MAX_SIGMA",
    "OutputScale",
    "check_sigma",
    "limited",
    "lipschitz_trick",
    "refuse_overflow",
    "theta_parameter",
]

MAX_SIGMA = 0.9999  # so that 1 + d stays well above 0 in float32

# Rounding of sigma, of sigma / P * P and of the products must not lift abs(d) above sigma.
MARGIN = 1 - 4 * EPS
LEAST = torch.finfo(torch.float32).tiny ** 0.5
UNDERFLOW = 1e-9  # what denormal numbers, which are rounded coarsely, can add to abs(d)
ROOM, LAST_ROOM = 2.0**-20, 2.0**-10  # of the range of a type: points far out need the rest
LARGEST = 1e150  # squares of it are finite in float64, in which bounds are computed


def check_sigma(sigma: float) -> None:
    """Refuse a bound that would not be strict.

    Raises:
        ValueError: if sigma is not above 0 and below 1 by some margin.
    """
    if not 0 < sigma <= MAX_SIGMA:
        raise ValueError(
            f"sigma must be above 0 and at most {MAX_SIGMA}, not {sigma}: the bound on abs(d) is "
            f"strict, in float32 too."
        )


def theta_parameter(steps: int, features: int) -> nn.Parameter:
    """What theta is the softplus of, shape (T, D), at its start."""
    # softplus(-4) = 0.02: at first nearly all of the budget that sigma allows.
    return nn.Parameter(torch.full((steps, features), -4.0))


class OutputScale(NamedTuple):
    """What the last layer is multiplied with, in float64, and the certified bound on abs(d)."""

    factor: Tensor
    bound: Tensor

    def times(self, tensor: Tensor) -> Tensor:
        """A tensor of shape (T, outputs, ...), scaled, in its own type."""
        factor = self.factor.reshape(*self.factor.shape, *(1,) * (tensor.dim() - 2))

        return (tensor.double() * factor).to(tensor.dtype)


def lipschitz_trick(theta_raw: Tensor | None, sigma: float, P: Tensor) -> OutputScale:
    r"""Scale of the outputs of all steps, and the certified bound on abs(d) that it gives.

    Arguments:
        theta_raw: Softplus of it is theta, shape (T, D); None for theta = 0.
        sigma: Strict bound on abs(d).
        P: Upper bounds on the product of the layer norms, shape (T, D), or (T, 1) if it is that
            of all dimensions.

    Returns:
        Both of shape (T, D) or (T, 1).

    Example:
        >>> scale = lipschitz_trick(None, 0.5, torch.full((1, 2), 4.0))
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
    weights: Sequence[Tensor], biases: Sequence[Tensor], scale: OutputScale
) -> None:
    r"""Refuse weights with which hidden units overflow, or could at a point that lies far out.

    Looked at where no gradient is taken: training has an eye on its loss. Weights that are no
    numbers are not looked at: neither are the results.

    Arguments:
        weights: Effective weights of the layers, shapes (T, out, in) or (T, out, taps, in), the
            last one not scaled.
        biases: Of the layers, not scaled, without what a context adds.
        scale: What the last layer will be multiplied with.

    Raises:
        ValueError: if the weights are too large for their type.

    Example:
        >>> weights, biases = [torch.full((1, 1, 1), 1e37)], [torch.zeros(1, 1)]
        >>> scale = lipschitz_trick(None, 0.5, torch.ones(1, 1))
        >>> with torch.no_grad():
        ...     refuse_overflow(weights, biases, scale)
        Traceback (most recent call last):
            ...
        ValueError: The weights are too large for float32, up to 1.0e+37: ...
    """
    if torch.is_grad_enabled() or not _has_values(weights[0]):
        return
    tensors = (*weights, *biases, scale.factor, scale.bound)
    sizes = torch.stack([extreme.double() for t in tensors for extreme in torch.aminmax(t)])
    *found, factor, bound = sizes.abs().view(-1, 2).amax(1).tolist()
    if not max(found) < math.inf:  # NaN compares false
        return
    L, dtype = len(weights), weights[0].dtype
    fans = [weight.shape[2:].numel() for weight in weights]
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
