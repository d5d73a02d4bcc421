r"""Certified upper bounds on spectral norms.

The one place where norms are bounded. Power iteration approaches the norm from *below*, so a
bound made of it can be violated; everything here approaches from above.
"""

from __future__ import annotations

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
        3.7024
    """
    m, n = weight.shape[-2:]
    tiny = torch.finfo(weight.dtype).tiny
    slack = 1 + 4 * (min(m, n) + 2) * torch.finfo(weight.dtype).eps

    # Rescaling by the largest entry keeps the Gram matrix of very large or small weights finite.
    size = weight.detach().abs().amax(dim=(-2, -1)).clamp_min(tiny)
    weight = weight / size[..., None, None]

    if min(m, n) == 1:
        return slack * size * _root_of_squares(weight, (-2, -1))

    gram = weight.mT @ weight if n <= m else weight @ weight.mT
    log_norm = torch.zeros_like(size)  # of the factor taken out of gram so far
    power = 1.0
    for _ in range(squarings):
        frobenius = _root_of_squares(gram, (-2, -1))
        gram = gram / frobenius[..., None, None]
        log_norm = log_norm + frobenius.log() / power
        gram = gram @ gram
        power *= 2
    log_norm = log_norm + _root_of_squares(gram, (-2, -1)).log() / power

    return slack * size * torch.exp(log_norm / 2)


def _root_of_squares(x: Tensor, dim: tuple[int, int]) -> Tensor:
    # The derivative of the root at an all-zero matrix is infinite: stay just above it.
    return (x * x).sum(dim=dim).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
