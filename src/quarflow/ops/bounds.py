r"""Certified upper bounds on spectral norms.

The one place where norms are bounded. Power iteration approaches the norm from *below*, so a
bound made of it can be violated; everything here approaches from above.

One set of weights has one bound: it is given in float64, and what it leaves for rounding is the
same, that of float32, whatever the type of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quarflow.modes import torch_only
from quarflow.ops.backend import Backend, backend_for, signed

__all__ = [
    "balanced",
    "convolution_bound",
    "product_bound",
    "product_bound_reference",
    "spectral_bound",
]

EPS = torch.finfo(torch.float32).eps  # of the coarsest weights there are
TINY = torch.finfo(torch.float64).tiny
KEPT_NUMBERS = 2**22  # of powers of Gram matrices, for the gradient; more are computed anew


def spectral_bound(weight: Tensor, squarings: int = 6) -> Tensor:
    r"""Upper bound on the largest singular value, by Gram iteration.

    With :math:`G = W^\top W` and rank :math:`r`,

    .. math:: \|W\|_2 \le \big\| G^{2^t} \big\|_F^{2^{-t}/2} \le r^{2^{-t}/4} \, \|W\|_2

    The bound is stateless and differentiable; it is exact for vectors. Rounding, also of products
    with the matrix, is covered by a relative slack of a few units in float32's last place per
    multiplication. Where a gradient may be asked for, large products are taken in the type of the
    weights, for speed; otherwise in float64, so that equal weights have equal bounds.

    Reference:
        | Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration
        | (Delattre et al., ICML 2023), https://arxiv.org/abs/2305.16173

    Arguments:
        weight: Matrices, shape (*, m, n), in float32 or float64.
        squarings: Number t of squarings.

    Returns:
        The bounds, shape (*), in float64.

    Raises:
        ValueError: if the weights are of another type.

    Example:
        >>> W = torch.tensor([[2.0, 3.0], [0.0, 1.0]], dtype=torch.float64)
        >>> round(spectral_bound(W).item(), 4)  # not 2, the norm of the diagonal part
        3.7025
    """
    return _spectral_bound(weight, squarings, _working(weight))


def _working(weight: Tensor) -> torch.dtype:
    """What large products of a weight are taken in."""
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"Weights in {str(weight.dtype).removeprefix('torch.')} are too coarse to bound their "
            f"norm: keep them in float32, and use torch.autocast for speed."
        )

    return weight.dtype if torch.is_grad_enabled() else torch.float64


def _spectral_bound(weight: Tensor, squarings: int, working: torch.dtype) -> Tensor:
    m, n = weight.shape[-2:]
    slack = 1 + 4 * (max(m, n) + 2) * EPS
    weight = weight.double()

    # Rescaling by the largest entry keeps the Gram matrix of very large or small weights finite.
    size = weight.detach().abs().amax(dim=(-2, -1)).clamp_min(TINY)
    weight = weight / size[..., None, None]
    if min(m, n) == 1:
        # The derivative of the root at an all-zero matrix is infinite: stay just above it.
        norm = (weight * weight).sum(dim=(-2, -1)).clamp_min(TINY).sqrt()
    else:
        tall = (weight if n <= m else weight.mT).to(working)
        norm = _powers(tall, squarings)[1] if torch_only() else _GramNorm.apply(tall, squarings)[0]

    return slack * size * norm.double()


def _powers(weight: Tensor, squarings: int) -> tuple[list[Tensor], Tensor]:
    """Multiples of G, G^2, G^4, ..., and the bound on the norm of the weight."""
    gram = weight.mT @ weight
    log_norm = torch.zeros_like(gram[..., 0, 0])
    powers = []
    for i in range(squarings + 1):
        # The largest eigenvalue of a normalised n x n matrix is at least n^-1/2, so that of its
        # eighth power is at least n^-4: far enough from underflow to normalise every third time.
        if i % 3 == 0 or i == squarings:
            frobenius = torch.linalg.vector_norm(gram, dim=(-2, -1))
            frobenius = frobenius.clamp_min(torch.finfo(gram.dtype).tiny)
            gram = gram / frobenius[..., None, None]
            log_norm = log_norm + frobenius.log() * 2.0**-i
        powers.append(gram)
        if i < squarings:
            gram = gram @ gram

    return powers, torch.exp(log_norm / 2)


class _GramNorm(torch.autograd.Function):
    r"""The bound with its gradient in closed form, :math:`b \, W K / \mathrm{tr}(K G)` with
    :math:`K = G^{2^{t+1} - 1}`, at half the cost of going back through the squarings.
    """

    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(weight: Tensor, squarings: int) -> tuple[Tensor, ...]:
        powers, bound = _powers(weight, squarings)
        kept = powers if len(powers) * powers[0].numel() <= KEPT_NUMBERS else []

        return bound, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], *output)
        ctx.squarings = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        if grads[0] is None:
            return None, None
        weight, bound, *powers = ctx.saved_tensors
        if torch.is_grad_enabled() or not powers:  # for second derivatives, or not kept
            powers, bound = _powers(weight, ctx.squarings)
        K = powers[0]
        for power in powers[1:]:
            K = K @ power  # stays well inside the range
        trace = (K * (weight.mT @ weight)).sum(dim=(-2, -1))
        trace = trace.clamp_min(torch.finfo(trace.dtype).tiny)

        return (grads[0] * bound / trace)[..., None, None] * (weight @ K), None


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
        floor = 1e-3 * torch.maximum(entering, leaving) + TINY**0.25
        scale = ((entering + floor) / (leaving + floor)).sqrt()
        blocks[i] = blocks[i] / scale[..., :, None]
        blocks[i + 1] = blocks[i + 1] * scale[..., None, :]

    return blocks


def product_bound(blocks: Sequence[Tensor]) -> Tensor:
    r"""Upper bound on the product of the norms of successive layers, at its tightest scaling.

    The product of :func:`spectral_bound` over :func:`balanced` layers; with compiled kernels in
    one call for many small networks.

    Arguments:
        blocks: Weights of successive layers, shapes (*, m, n).

    Returns:
        The bounds, shape (*), in float64.

    Raises:
        ValueError: if the weights are in neither float32 nor float64.

    Example:
        >>> first, last = torch.tensor([[4.0], [1.0]]), torch.tensor([[0.5, 2.0]])
        >>> round(product_bound([first, last]).item(), 2)
        4.0
    """
    backend = backend_for("bounds", tuple(map(Tensor.size, blocks)), blocks)
    if backend is None:
        return product_bound_reference(blocks)
    bound: Tensor = _ProductBound.apply(backend, *blocks)

    return bound


def product_bound_reference(blocks: Sequence[Tensor]) -> Tensor:
    """:func:`product_bound` in torch."""
    working = _working(blocks[0])
    wide = balanced([block.double() for block in blocks])
    bounds = [_spectral_bound(block, 6, working) for block in wide]
    product = bounds[0]
    for bound in bounds[1:]:
        product = product * bound

    return product


class _ProductBound(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(backend: Backend, *blocks: Tensor) -> Tensor:
        return backend.product_bound(blocks)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        blocks = ctx.saved_tensors
        if not torch.is_grad_enabled():
            sizes = tuple(map(Tensor.size, blocks))
            backend = backend_for("bounds", sizes, blocks)
            if backend is not None and backend.takes("bounds", sizes, (grad,)):
                return None, *backend.product_gradients(blocks, grad)
        with torch.enable_grad():
            own = [b.view_as(b) for b in blocks]
            product = product_bound_reference(own)

        return None, *torch.autograd.grad(product, own, grad, create_graph=torch.is_grad_enabled())


def convolution_bound(
    weight: Tensor, taps: Sequence[tuple[int, int]], size: tuple[int, int], squarings: int = 6
) -> Tensor:
    r"""Upper bound on the spectral norm of zero-padded convolutions, at the size of the image.

    On a torus just large enough that nothing wraps around from one side of the image to the
    other, the zero-padded convolution is the circular one between an embedding and a
    restriction, so its norm is at most that of the circular one: the largest over frequencies
    :math:`\omega` of

    .. math:: \Big\| \sum_t W_t \, e^{i \langle \omega, t \rangle} \Big\|_2

    each bounded by Gram iteration as in :func:`spectral_bound`, always in float64. The gradient
    is that of the frequency with the largest bound.

    Reference:
        | Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration
        | (Delattre et al., ICML 2023), https://arxiv.org/abs/2305.16173
        | The Singular Values of Convolutional Layers (Sedghi et al., 2019)
        | https://arxiv.org/abs/1805.10408

    Arguments:
        weight: Shape (*, out, taps, in).
        taps: Offsets (row, column) of what is read.
        size: Height and width of the image.
        squarings: Number of squarings.

    Returns:
        The bounds, shape (*), in float64.

    Example:
        >>> W = torch.tensor([1.0, -2.0, 1.0]).view(1, 3, 1)
        >>> bound = convolution_bound(W, [(0, -1), (0, 1), (0, 0)], (1, 8))
        >>> dense = -2 * torch.eye(8).roll(1, 1).triu() + torch.eye(8)
        >>> dense = dense + torch.eye(8).roll(-1, 1).tril()
        >>> bool(torch.linalg.matrix_norm(dense, 2) <= bound)
        True
    """
    working = _working(weight)
    batch = weight.shape[:-3]
    inside = [t for t, (i, j) in enumerate(taps) if abs(i) < size[0] and abs(j) < size[1]]
    if len(inside) < len(taps):  # the others never meet a pixel
        weight, taps = weight[..., inside, :], [taps[t] for t in inside]
    flat = weight.reshape(-1, *weight.shape[-3:]).double()
    with torch.no_grad():
        bounds, waves = _at_frequencies(flat.detach(), taps, size, squarings)
        bound, worst = bounds.max(-1)  # (n)
        wave = waves[worst]  # (n, taps)
    real, imaginary = (torch.einsum("notc,nt->noc", flat, part) for part in (wave.real, wave.imag))
    # As a real matrix, with every singular value twice.
    matrix = torch.cat(
        (torch.cat((real, -imaginary), -1), torch.cat((imaginary, real), -1)), -2
    )  # (n, 2 out, 2 in)
    single = _spectral_bound(matrix, squarings, working)
    bound = (1 + 8 * EPS) * bound  # for rounding to the type of the weights

    # The value comes from all frequencies, the gradient from the worst.
    return (single * (bound / single.detach().clamp_min(TINY))).reshape(batch)


def _at_frequencies(
    weight: Tensor, taps: Sequence[tuple[int, int]], size: tuple[int, int], squarings: int
) -> tuple[Tensor, Tensor]:
    """Bounds at each frequency, shape (n, F), and the waves at the taps, (F, taps)."""
    rows, columns = (torch.tensor(o, device=weight.device) for o in zip(*taps, strict=True))
    height, width = (
        length + int(offsets.abs().max())
        for length, offsets in zip(size, (rows, columns), strict=True)
    )
    # Real weights: frequencies k and -k have the same norm, so half of the columns do.
    k = torch.arange(height, device=weight.device, dtype=torch.double) / height
    m = torch.arange(width // 2 + 1, device=weight.device, dtype=torch.double) / width
    angle = (k[:, None, None] * rows + m[None, :, None] * columns).flatten(0, 1)  # (F, taps)
    waves = torch.polar(torch.ones_like(angle), 2 * torch.pi * angle)

    scale = weight.abs().amax(dim=(-3, -2, -1)).clamp_min(TINY)
    weight = weight / scale[:, None, None, None]
    out, T, inputs = weight.shape[1:]
    # Products of taps once, instead of the whole matrix at each frequency.
    if inputs <= out:
        gram = torch.einsum("notc,nosd->ntscd", weight, weight)  # W_t^T W_s
    else:
        gram = torch.einsum("notc,npsc->ntsop", weight, weight)  # W_t W_s^T
        waves = waves.conj()  # of W(omega) W(omega)^H instead of W(omega)^H W(omega)
    phases = waves.conj()[:, :, None] * waves[:, None, :]  # (F, T, T)
    G = torch.einsum("fts,ntsab->nfab", phases, gram.to(phases.dtype))
    log_norm = torch.zeros(G.shape[:2], dtype=torch.double, device=G.device)
    for i in range(squarings + 1):
        frobenius = torch.linalg.vector_norm(G, dim=(-2, -1)).clamp_min(1e-300)
        log_norm = log_norm + frobenius.log() * 2.0**-i
        if i < squarings:
            G = G / frobenius[..., None, None]
            G = G @ G
    # Rounding of the Gram matrix is relative to the sum of all squares, not to the norm.
    rounding = 4 * (out * T + inputs) * torch.finfo(torch.double).eps
    total = (weight * weight).sum(dim=(-3, -2, -1))  # (n)
    bound = (torch.exp(log_norm) + rounding * total[:, None]).sqrt() * (1 + 1e-12)

    return scale[:, None] * bound, waves if inputs <= out else waves.conj()
