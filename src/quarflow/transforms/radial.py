r"""The radial step: towards or away from one point."""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.transforms.base import Transform
from quarflow.transforms.slopes import above_minus_one

__all__ = ["RadialStep"]


class RadialStep(Transform):
    r"""Radial step :math:`f(x) = x + \frac{\beta}{\alpha + r} (x - x_0)`, :math:`r = |x - x_0|`.

    .. math:: \det J = \Big(1 + \frac{\beta}{\alpha + r}\Big)^{D - 1}
        \Big(1 + \frac{\alpha \beta}{(\alpha + r)^2}\Big)

    It is invertible when :math:`\alpha > 0` and :math:`\beta > -\alpha`. The inverse is a
    quadratic equation for r.

    Reference:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), appendix A.2
        | https://arxiv.org/abs/1505.05770

    Arguments:
        center: x_0, shape (*, D).
        alpha: Softplus of it is alpha, shape (*, 1).
        beta: Sets beta / alpha, which is above -1 and 0 where this is 0, shape (*, 1).

    Example:
        >>> step = RadialStep(torch.zeros(2), torch.zeros(1), torch.tensor([-3.0]))
        >>> x = torch.tensor([0.5, -1.0])
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-5)
        True
    """

    def __init__(self, center: Tensor, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.center = center
        self.alpha = fn.softplus(alpha).clamp_min(1e-6)
        self.beta = self.alpha * above_minus_one(beta)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact, at the cost of one norm."""
        offset = x - self.center
        reach = self.alpha + _norm(offset)
        pull = self.beta / reach
        z = x + pull * offset
        ladj = (x.shape[-1] - 1) * torch.log1p(pull) + torch.log1p(pull * self.alpha / reach)

        return z, ladj.squeeze(-1).expand(z.shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """In closed form."""
        offset = z - self.center
        distance = _norm(offset)
        # r^2 + p r - alpha * distance = 0, by the formula that does not cancel
        p = self.alpha + self.beta - distance
        root = (p * p + 4 * self.alpha * distance).sqrt()
        above = p > 0
        far = torch.where(above, 1.0, root - p) / 2
        near = 2 * self.alpha * distance / torch.where(above, root + p, 1.0)
        r = torch.where(above, near, far)
        x = self.center + offset / (1 + self.beta / (self.alpha + r))

        return x, -self.call_and_ladj(x)[1]

    def __repr__(self) -> str:
        return f"RadialStep(features={self.center.shape[-1]})"


def _norm(x: Tensor) -> Tensor:
    # The derivative of the root at 0 is infinite: stay just above it.
    return (x * x).sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
