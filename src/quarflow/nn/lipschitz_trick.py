r"""The Lipschitz Trick: a network's output scaled so that its diagonal stays below sigma.

.. math:: F = \frac{\sigma}{\theta + P} \, N, \quad
    |d_i| \le \frac{\sigma P_i}{\theta_i + P_i} \le \sigma < 1

where N is any network with activations no steeper than 1, P a certified upper bound on the
product of its layer norms, and :math:`\theta \ge 0` is learned. Weights stay free: what would
make the norms large makes the scale small.

Reference:
    | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020), section 4.2
    | https://arxiv.org/abs/2009.07419
"""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

__all__ = ["MAX_SIGMA", "check_sigma", "lipschitz_trick", "theta_parameter"]

MAX_SIGMA = 0.9999  # so that 1 + d stays well above 0 in float32


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


def lipschitz_trick(
    theta_raw: Tensor | None, sigma: float, P: Tensor, features: int
) -> tuple[Tensor, Tensor]:
    r"""Scale of the output, and the certified bound on abs(d) that it gives.

    Arguments:
        theta_raw: Softplus of it is theta, shape (T, D); None for theta = 0.
        sigma: Strict bound on abs(d).
        P: Upper bounds on the product of the layer norms, shape (T, D), or (T, 1) if it is that
            of all dimensions.
        features: Number D of dimensions.

    Returns:
        Both of shape (T, D).

    Example:
        >>> scale, bound = lipschitz_trick(None, 0.5, torch.tensor([[2.0, 4.0]]), 2)
        >>> scale, bool((bound <= 0.5).all())
        (tensor([[0.2500, 0.1250]]), True)
    """
    slack = P if theta_raw is None else fn.softplus(theta_raw) + P
    # Rounding of sigma / P * P, and of sigma itself, must not lift abs(d) above sigma.
    sigma = sigma * (1 - 4 * torch.finfo(P.dtype).eps)
    # P = theta = 0 only if the branch vanishes: any finite scale is right there.
    scale = sigma / slack.clamp_min(torch.finfo(P.dtype).tiny ** 0.5)
    scale = scale.expand(len(P), features)

    return scale, scale * P
