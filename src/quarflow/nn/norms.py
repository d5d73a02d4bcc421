r"""Certified upper bounds on spectral norms.

The one place where norms are bounded. Power iteration approaches the norm from *below*, so a
bound made of it can be violated; everything here approaches from above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["NORMS", "spectral_bound"]

NORMS = ("dimension", "operator")


def spectral_bound(weight: Tensor, squarings: int = 6) -> Tensor:
    r"""Upper bound on the largest singular value, by Gram iteration.

    With :math:`G = W^\top W` and rank :math:`r`,

    .. math:: \|W\|_2 \le \big\| G^{2^t} \big\|_F^{2^{-t}/2} \le r^{2^{-t}/4} \, \|W\|_2

    The bound is stateless and differentiable; it is exact for vectors. Rounding is covered by a
    relative slack of a few units in the last place per multiplication.

    Reference:
        | Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration
        | (Delattre et al., ICML 2023), https://arxiv.org/abs/2305.16173

    Arguments:
        weight: Matrices, shape (*, m, n).
        squarings: Number t of squarings.

    Returns:
        The bounds, shape (*).

    Example:
        >>> W = torch.tensor([[2.0, 3.0], [0.0, 1.0]], dtype=torch.float64)
        >>> round(spectral_bound(W).item(), 4)  # not 2, the norm of the diagonal part
        3.7025
    """
    m, n = weight.shape[-2:]
    tiny = torch.finfo(weight.dtype).tiny
    slack = 1 + 4 * (min(m, n) + 2) * torch.finfo(weight.dtype).eps

    # Rescaling by the largest entry keeps the Gram matrix of very large or small weights finite.
    size = weight.detach().abs().amax(dim=(-2, -1)).clamp_min(tiny)
    weight = weight / size[..., None, None]
    if min(m, n) == 1:
        # The derivative of the root at an all-zero matrix is infinite: stay just above it.
        norm = (weight * weight).sum(dim=(-2, -1)).clamp_min(tiny).sqrt()
    else:
        norm = _GramNorm.apply(weight if n <= m else weight.mT, squarings)

    return slack * size * norm


def _powers(weight: Tensor, squarings: int) -> tuple[list[Tensor], Tensor]:
    """Normalised G, G^2, G^4, ..., and the bound on the norm of the weight."""
    gram = weight.mT @ weight
    log_norm = torch.zeros_like(gram[..., 0, 0])
    powers = []
    for i in range(squarings + 1):
        frobenius = torch.linalg.vector_norm(gram, dim=(-2, -1))
        frobenius = frobenius.clamp_min(torch.finfo(gram.dtype).tiny)
        powers.append(gram / frobenius[..., None, None])
        log_norm = log_norm + frobenius.log() * 2.0**-i
        if i < squarings:
            gram = powers[-1] @ powers[-1]

    return powers, torch.exp(log_norm / 2)


class _GramNorm(torch.autograd.Function):
    r"""The bound with its gradient in closed form, :math:`b \, W K / \mathrm{tr}(K G)` with
    :math:`K = G^{2^{t+1} - 1}`, at half the cost of going back through the squarings.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, squarings: int) -> Tensor:
        return _powers(weight, squarings)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.squarings = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        powers, bound = _powers(weight, ctx.squarings)
        K = powers[0]
        for power in powers[1:]:
            K = K @ power  # stays well inside the range: each factor has norm 1
        trace = (K * (weight.mT @ weight)).sum(dim=(-2, -1))
        trace = trace.clamp_min(torch.finfo(trace.dtype).tiny)

        return (grad * bound / trace)[..., None, None] * (weight @ K), None
