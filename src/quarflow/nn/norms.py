r"""Certified upper bounds on spectral norms.

The one place where norms are bounded. Power iteration approaches the norm from *below*, so a
bound made of it can be violated; everything here approaches from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["NORMS", "balanced", "spectral_bound"]

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
    slack = 1 + 4 * (max(m, n) + 2) * torch.finfo(weight.dtype).eps

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


def balanced(blocks: Sequence[Tensor]) -> list[Tensor]:
    r"""Rescale hidden units so that the product of the layers' norms is a tighter bound.

    The slopes of elementwise activations are diagonal matrices, which commute with positive
    diagonal ones, so for any such :math:`S_l` the product of the norms of
    :math:`S_l^{-1} W_l S_{l-1}` bounds the same derivative. With

    .. math:: S_{l,j} = \sqrt{
            \|\text{row } j \text{ of } W_l\| \,/\, \|\text{column } j \text{ of } W_{l+1}\|}

    what enters a unit and what leaves it have equal norms. For layers of rank one the bound then
    is the sum over paths of absolute products, which is attained.

    Arguments:
        blocks: Weights of successive layers, shapes (*, m, n).

    Returns:
        The rescaled weights, in their shapes.

    Example:
        >>> first, last = torch.tensor([[4.0], [1.0]]), torch.tensor([[0.5, 2.0]])
        >>> unbalanced = first.norm() * last.norm()
        >>> a, b = (block.norm() for block in balanced([first, last]))
        >>> bool(a * b < 4.01 < unbalanced)  # the sum over paths is 4 * 0.5 + 1 * 2 = 4
        True
    """
    blocks = list(blocks)
    for i in range(len(blocks) - 1):
        entering = torch.linalg.vector_norm(blocks[i], dim=-1)  # (*, m)
        leaving = torch.linalg.vector_norm(blocks[i + 1], dim=-2)  # (*, m)
        # A unit cut off on either side must not make the scale zero or infinite.
        floor = 1e-3 * torch.maximum(entering, leaving) + torch.finfo(entering.dtype).tiny ** 0.25
        scale = ((entering + floor) / (leaving + floor)).sqrt()
        blocks[i] = blocks[i] / scale[..., :, None]
        blocks[i + 1] = blocks[i + 1] * scale[..., None, :]

    return blocks
