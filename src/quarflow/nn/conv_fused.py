r"""The convolutional branch's pass over (value, diagonal) as one differentiable function.

Between the first convolution, which reads pixels through taps, and the last, whose products are
summed over taps, every pixel is on its own. So the hidden units, which are hundreds per channel,
are computed for some thousand pixels at a time: they stay in the cache, and what is kept for the
backward pass is either the block's input alone (they are computed once more) or the
pre-activations and tangents, from which slopes and curvatures follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.modes import plain
from quarflow.native import pixels as native
from quarflow.nn.activations import Activation
from quarflow.nn.conv import Taps, gather_taps, opposite, sum_taps
from quarflow.nn.jets import jet, value_and_slope
from quarflow.nn.linear import diagonal_product
from quarflow.nn.panels import Triangular

__all__ = ["Layers", "Pass", "conv_value_and_diagonal"]

# Hidden numbers computed at a time: what stays in the cache of one core, and on other devices
# enough to keep all of it busy.
CHUNK_CPU, CHUNK_OTHER = 2**18, 2**27

Layers = tuple[Tensor, ...]


@dataclass(frozen=True)
class Pass:
    """What a pass does, besides its tensors.

    Attributes:
        activation: phi, with its first two derivatives.
        taps: Of the first and last layer.
        preactivation: Whether phi comes before the first layer.
        recompute: Whether the backward pass computes hidden units anew, instead of keeping them.
        reverse: Whether channels depend on later ones.
        dtype: Of the hidden units, where it is not that of x: matrix products take and give it,
            and everything that is summed over taps, chunks or units is summed in x's.
    """

    activation: Activation
    taps: Taps
    preactivation: bool = True
    recompute: bool = True
    reverse: bool = False
    dtype: torch.dtype | None = None

    def low(self, *tensors: Tensor) -> Layers:
        """Tensors in the type of the hidden units."""
        return tensors if self.dtype is None else tuple(t.to(self.dtype) for t in tensors)


def conv_value_and_diagonal(
    x: Tensor, weights: Layers, blocks: Layers, biases: Layers, options: Pass
) -> tuple[Tensor, Tensor]:
    r"""F(x) and d of a network conv, 1x1, ..., 1x1, conv with activations between them.

    .. math::
        z_l = W_l h_{l-1} + b_l, \quad h_l = \phi(z_l), \quad u_l = B_l t_{l-1}, \quad
        t_l = \phi'(z_l) u_l

    Arguments:
        x: Rows of pixels, shape (N, H, W, C).
        weights: W; the first reads gathered taps, (C k, taps C), the last gives products to be
            summed over taps, (taps C, C k), those between are (C k', C k).
        blocks: B, the diagonal blocks of the centre taps, (C, k_out, k_in).
        biases: b, shapes (C k_out).
        options: What the pass does.

    Returns:
        F and d, both (N, H, W, C).
    """
    tensors = (x, *weights, *blocks, *biases)
    if plain() or not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        # Nothing to keep; and torch.compile cannot trace the function where it has no backward.
        F, d, _ = _forward(options, x, weights, blocks, biases, keep=False)
        return F, d

    outputs = _ConvPass.apply(options, len(weights), *tensors)

    return outputs[0], outputs[1]


def _chunk(hidden: int, device: torch.device) -> int:
    """Pixels at a time."""
    numbers = CHUNK_CPU if device.type == "cpu" else CHUNK_OTHER

    return max(64, numbers // hidden)


def _entered(options: Pass, t0: Tensor | None, block: Tensor) -> Tensor:
    """u of the first layer: what enters it is one tangent per channel."""
    column = block.squeeze(-1)
    u = column.flatten() if t0 is None else (t0.unsqueeze(-1) * column).flatten(-2)

    return options.low(u)[0]


def _network(options: Pass, W: Layers, B: Layers, b: Layers) -> native.Network:
    """As the kernels know it."""
    return native.Network(W, B, b[:-1], options.activation.name, options.reverse)


def _forward(
    options: Pass, x: Tensor, W: Layers, B: Layers, b: Layers, keep: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """F, d, and of each chunk what the backward pass needs."""
    phi, C = options.activation, x.shape[-1]
    a, t0 = value_and_slope(phi, x) if options.preactivation else (x, None)
    bias = b[-1]
    W, B, b = options.low(*W), options.low(*B), options.low(*b)
    (A,) = options.low(gather_taps(a, options.taps).flatten(0, 2))  # (pixels, taps C)
    slopes = None if t0 is None else t0.reshape(-1, C)
    network = _network(options, W, B, b)
    if options.dtype is None and native.usable(network, A, *(() if t0 is None else (t0,))):
        products, diagonal = native.forward(network, A, slopes)
        F = sum_taps(products.view(*x.shape[:3], -1), options.taps) + bias
        return F, diagonal.view(x.shape), []
    size = _chunk(W[0].shape[0], x.device)
    y, d, kept = [], [], []
    for at in range(0, max(1, len(A)), size):
        t = None if slopes is None else slopes[at : at + size]
        z, u = [fn.linear(A[at : at + size], W[0], b[0])], [_entered(options, t, B[0])]
        for layer in range(1, len(W)):
            h, slope = value_and_slope(phi, z[-1])
            tangent = slope * u[-1]
            if layer < len(W) - 1:
                z.append(Triangular(C, options.reverse).linear(h, W[layer], b[layer]))
                u.append(diagonal_product(tangent, B[layer]))
        y.append(fn.linear(h, W[-1]).to(x.dtype))
        d.append((tangent.unflatten(-1, (C, -1)) * B[-1].squeeze(1)).sum(-1, dtype=x.dtype))
        if keep:
            kept += [*z, *u[1:]]
    products = (y[0] if len(y) == 1 else torch.cat(y)).view(*x.shape[:3], W[-1].shape[0])
    diagonal = (d[0] if len(d) == 1 else torch.cat(d)).view(x.shape)

    return sum_taps(products, options.taps) + bias, diagonal, kept


class _ConvPass(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(options: Pass, layers: int, x: Tensor, *parameters: Tensor) -> Any:
        W, B, b = (parameters[i * layers : (i + 1) * layers] for i in range(3))
        F, d, kept = _forward(options, x, W, B, b, keep=not options.recompute)

        return F, d, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.options, ctx.layers, *tensors = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        options, L = ctx.options, ctx.layers
        x, *rest = ctx.saved_tensors
        W, B, b = (tuple(rest[i * L : (i + 1) * L]) for i in range(3))
        # Second derivatives are those of what is computed anew: what was kept are constants.
        kept = [] if torch.is_grad_enabled() else rest[3 * L :]
        gF = torch.zeros_like(x) if grads[0] is None else grads[0]
        gd = torch.zeros_like(x) if grads[1] is None else grads[1]
        gx, gW, gB, gb = _backward(options, x, W, B, b, kept, gF, gd, ctx.needs_input_grad[2])

        return None, None, gx, *gW, *gB, *gb


def _backward(
    options: Pass,
    x: Tensor,
    W: Layers,
    B: Layers,
    b: Layers,
    kept: list[Tensor],
    gF: Tensor,
    gd: Tensor,
    need_x: bool,
) -> tuple[Tensor | None, list[Any], list[Any], list[Any]]:
    """Gradients of x, W, B and b, chunk by chunk."""
    phi, C = options.activation, x.shape[-1]
    a, t0, c0 = jet(phi, x) if options.preactivation else (x, None, None)
    slopes = None if t0 is None else t0.reshape(-1, C)
    W, B, b = options.low(*W), options.low(*B), options.low(*b)
    A, gy, gd = options.low(
        gather_taps(a, options.taps).flatten(0, 2),
        gather_taps(gF, opposite(options.taps)).flatten(0, 2),
        gd.reshape(-1, C),
    )
    network = _network(options, W, B, b)
    by_hand = kept or torch.is_grad_enabled() or options.dtype is not None
    if by_hand or not native.usable(network, A, gy, gd):
        found = _in_chunks(options, A, slopes, W, B, b, kept, gy, gd, x.dtype, need_x)
    else:
        found = native.backward(network, A, slopes, gy, gd)
    of_A, of_t0, gW, gB, gb = found
    gb = [*gb, gF.sum((0, 1, 2))]
    if not need_x:
        return None, gW, gB, gb

    gx = sum_taps(of_A.view(*x.shape[:3], A.shape[1]), opposite(options.taps))
    if t0 is not None and c0 is not None and of_t0 is not None:
        gx = gx * t0 + of_t0.view_as(x) * c0

    return gx, gW, gB, gb


def _in_chunks(
    options: Pass,
    A: Tensor,
    slopes: Tensor | None,
    W: Layers,
    B: Layers,
    b: Layers,
    kept: list[Tensor],
    gy: Tensor,
    gd: Tensor,
    dtype: torch.dtype,
    need_x: bool,
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of A, of the slopes, of W, B and of all b but the last, some pixels at a time."""
    L, phi, C = len(W), options.activation, gd.shape[1]
    triangular = Triangular(C, options.reverse)
    size = _chunk(W[0].shape[0], A.device)
    sums: dict[tuple[str, int], list[Tensor]] = {}
    of_A, of_t0 = [], []
    for i, at in enumerate(range(0, max(1, len(A)), size)):
        here = slice(at, at + size)
        t = None if slopes is None else slopes[here]
        u = [_entered(options, t, B[0])]
        mine = kept[i * (2 * L - 3) : (i + 1) * (2 * L - 3)]
        z = mine[: L - 1] or [fn.linear(A[here], W[0], b[0])]
        jets, tangents = [], []
        for layer in range(1, L):
            jets.append(jet(phi, z[layer - 1]))
            tangents.append(jets[-1][1] * u[-1])
            if layer == L - 1:
                break
            if kept:
                u.append(mine[L - 2 + layer])
            else:
                z.append(triangular.linear(jets[-1][0], W[layer], b[layer]))
                u.append(diagonal_product(tangents[-1], B[layer]))

        gz, gu = gy[here], gd[here]
        for layer in range(L - 1, 0, -1):
            h, slope, curvature = jets[layer - 1]
            gB, gt = _diagonal_backward(gu, tangents[layer - 1], B[layer])
            if layer == L - 1:
                gW, gh = [gz.mT @ h], gz @ W[layer]
            else:
                gW = triangular.weight_gradient(gz, h)
                gh = triangular.input_gradient(gz, W[layer])
            gz = torch.addcmul(slope * gh, curvature * u[layer - 1], gt)
            gu = slope * gt
            _add(sums, ("W", layer), gW)
            _add(sums, ("B", layer), [gB])
            _add(sums, ("b", layer - 1), [gz.sum(0)])
        _add(sums, ("W", 0), [gz.mT @ A[here]])
        gu = gu.unflatten(-1, B[0].shape[:2])  # (pixels, C, k)
        entering = gu if t is None else gu * t.unsqueeze(-1)
        _add(sums, ("B", 0), [entering.sum(0).unsqueeze(-1)])
        if need_x:
            of_A.append((gz @ W[0]).to(dtype))
            if t is not None:
                of_t0.append((gu * B[0].squeeze(-1)).sum(-1, dtype=dtype))

    middle = (triangular.assemble(sums["W", i], W[i].shape[1]) for i in range(1, L - 1))

    return (
        torch.cat(of_A) if need_x else A,
        torch.cat(of_t0) if of_t0 else None,
        [sums["W", 0][0], *middle, sums["W", L - 1][0]],
        [sums["B", i][0] for i in range(L)],
        [sums["b", i][0] for i in range(L - 1)],
    )


def _add(
    sums: dict[tuple[str, int], list[Tensor]], key: tuple[str, int], new: list[Tensor]
) -> None:
    # In float32 at least: many chunks are added up.
    new = [part.float() if part.dtype.itemsize < 4 else part for part in new]
    old = sums.get(key)
    sums[key] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]


def _diagonal_backward(gu: Tensor, t: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of u = B t: of B and of t."""
    C, k_out, k_in = block.shape
    gu, t = gu.unflatten(-1, (C, k_out)), t.unflatten(-1, (C, k_in))
    if k_out == 1:
        return (gu * t).sum(0).unsqueeze(1), (gu * block.squeeze(1)).flatten(-2)
    gu, t = gu.transpose(0, 1), t.transpose(0, 1)  # (C, pixels, k)

    return gu.mT @ t, (gu @ block).transpose(0, 1).flatten(-2)
