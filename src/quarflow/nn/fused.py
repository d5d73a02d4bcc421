r"""The branch's pass over (value, diagonal) as one differentiable function.

Autograd would keep about twice the tensors and launch about twice the operations for the same
gradient, because it knows neither that value and derivative of an activation share their work
nor that the second derivative follows from what is there already.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.nn.activations import Activation
from quarflow.nn.linear import diagonal_product

__all__ = ["value_and_diagonal"]


def value_and_diagonal(
    x: Tensor,
    weights: tuple[Tensor, ...],
    blocks: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
    activation: Activation,
) -> tuple[Tensor, Tensor]:
    r"""F(x) and d of a network of linear layers with activations between them.

    .. math::
        z_l = W_l h_{l-1} + b_l, \quad h_l = \phi(z_l), \quad u_l = B_l t_{l-1}, \quad
        t_l = \phi'(z_l) u_l

    Arguments:
        x: Shape (N, D).
        weights: W, shapes (D k_out, D k_in).
        blocks: B, their diagonal blocks, (D, k_out, k_in).
        biases: b, shapes (D k_out) or (N, D k_out).
        activation: phi, with its first two derivatives.

    Returns:
        F and d, both (N, D).
    """
    if not (torch.is_grad_enabled() and _any_gradient(x, *weights, *blocks, *biases)):
        # Nothing to keep; and torch.compile cannot trace the function where it has no backward.
        z, _, _, u = _forward(activation, x, weights, blocks, biases)
        return z[-1], u[-1].expand_as(z[-1])

    outputs = _Pass.apply(activation, len(weights), x, *weights, *blocks, *biases)

    return outputs[0], outputs[1]


def _any_gradient(*tensors: Tensor) -> bool:
    return any(t.requires_grad for t in tensors)


def _forward(
    phi: Activation, x: Tensor, W: tuple[Tensor, ...], B: tuple[Tensor, ...], b: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """All z, h, phi'(z) and u; the last z and u are F and d."""
    z, h, slope, u = [], [x], [], []
    t = None
    for layer, (weight, block, bias) in enumerate(zip(W, B, b, strict=True)):
        shared = bias.dim() == 1
        z.append(fn.linear(h[-1], weight, bias) if shared else fn.linear(h[-1], weight) + bias)
        u.append(block.flatten() if t is None else diagonal_product(t, block))
        if layer < len(W) - 1:
            value, derivative = phi(z[-1])
            h.append(value)
            slope.append(derivative)
            t = derivative * u[-1]

    return z, h, slope, u


class _Pass(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(phi: Activation, layers: int, x: Tensor, *parameters: Tensor) -> Any:
        W, B, b = (parameters[i * layers : (i + 1) * layers] for i in range(3))
        z, h, slope, u = _forward(phi, x, W, B, b)
        kept = z[:-1] if phi.curvature_needs_z else []

        return z[-1], u[-1].expand_as(z[-1]), *h[1:], *slope, *u[1:-1], *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.phi, ctx.layers, *tensors = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        phi, L = ctx.phi, ctx.layers
        x, *rest = ctx.saved_tensors
        W, B, b = (rest[i * L : (i + 1) * L] for i in range(3))
        if torch.is_grad_enabled():
            # Somebody wants second derivatives: what was kept are constants, so compute it anew.
            z, h, slope, u = _forward(phi, x, tuple(W), tuple(B), tuple(b))
        else:
            kept = rest[3 * L :]
            h, slope = [x, *kept[: L - 1]], kept[L - 1 : 2 * (L - 1)]
            u = [B[0].flatten(), *kept[2 * (L - 1) : 3 * (L - 1) - 1]]
            z = kept[3 * (L - 1) - 1 :] or [x] * L
        gF, gd = grads[0], grads[1]
        if gF is None:
            gF = torch.zeros_like(x)
        if gd is None:
            gd = torch.zeros_like(x)

        gW: list[Any] = [None] * L
        gB: list[Any] = [None] * L
        gb: list[Any] = [None] * L
        gz, gu = gF, gd
        for layer in range(L - 1, -1, -1):
            gW[layer] = gz.mT @ h[layer]
            gb[layer] = gz.sum(0) if b[layer].dim() == 1 else gz
            if layer == 0:
                gB[0] = gu.sum(0).view_as(B[0])
                break
            t = slope[layer - 1] * u[layer - 1]
            gB[layer], gt = _diagonal_backward(gu, t, B[layer])
            gh = gz @ W[layer]
            curvature = phi.curvature(z[layer - 1], h[layer], slope[layer - 1])
            gz = torch.addcmul(slope[layer - 1] * gh, curvature * u[layer - 1], gt)
            gu = slope[layer - 1] * gt
        gx = gz @ W[0] if ctx.needs_input_grad[2] else None

        return None, None, gx, *gW, *gB, *gb


def _diagonal_backward(gu: Tensor, t: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of u = B t: of B and of t."""
    D, k_out, k_in = block.shape
    gu, t = gu.unflatten(-1, (D, k_out)), t.unflatten(-1, (D, k_in))
    if k_out == 1:
        return (gu * t).sum(0).unsqueeze(1), (gu * block.squeeze(1)).flatten(-2)
    gu, t = gu.transpose(0, 1), t.transpose(0, 1)  # (D, N, k)

    return gu.mT @ t, (gu @ block).transpose(0, 1).flatten(-2)
