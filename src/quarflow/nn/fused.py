r"""The pass over (value, diagonal) by hand: what a branch computes, and its gradient.

Everything is feature-major, shape (units, rows): the units of one dimension then are neighbours,
and products with the diagonal blocks are batched matrix products without a copy. With one row
after the other they would need two transposed copies each, at many times the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quarflow.modes import plain
from quarflow.native import chain as native
from quarflow.nn.activations import Activation
from quarflow.nn.panels import FeatureMajor

__all__ = [
    "Gradients",
    "Layers",
    "Tape",
    "backward",
    "forward",
    "shape_of",
    "single_step",
    "value_and_diagonal",
]


PANEL_ROWS, PANEL_UNITS, MOST_PANELS = 512, 128, 8


class Layers(NamedTuple):
    """The linear layers of one branch.

    Attributes:
        weights: W, shapes (D k_out, D k_in).
        blocks: B, their diagonal blocks, (D, k_out, k_in).
        biases: b, shapes (D k_out) or (N, D k_out).
        reverse: Whether the weights are upper triangular.
    """

    weights: Sequence[Tensor]
    blocks: Sequence[Tensor]
    biases: Sequence[Tensor]
    reverse: bool

    def triangle(self, layer: int, rows: int) -> FeatureMajor:
        """How the weight of a layer is multiplied with so many rows: large ones in panels."""
        D, height = len(self.blocks[layer]), max(w.shape[-2] for w in self.weights)
        wide = rows >= PANEL_ROWS
        parts = max(1, min(height // PANEL_UNITS, MOST_PANELS, D)) if wide else 1

        return FeatureMajor(D, self.reverse, parts)


class Tape(NamedTuple):
    r"""What the pass computed, shapes (units, N).

    .. math::
        z_l = W_l h_{l-1} + b_l, \quad h_l = \phi(z_l), \quad u_l = B_l t_{l-1}, \quad
        t_l = \phi'(z_l) u_l

    Attributes:
        z: Of all layers; the last is the value F. Hidden ones are empty if they are not needed.
        h: x, then of the hidden layers.
        slope: phi'(z) of the hidden layers.
        u: Of all layers; the last is the diagonal d.
    """

    z: list[Tensor]
    h: list[Tensor]
    slope: list[Tensor]
    u: list[Tensor]


class Gradients(NamedTuple):
    """Gradients of the layers, in their shapes."""

    weights: list[Tensor]
    blocks: list[Tensor]
    biases: list[Tensor]


def forward(phi: Activation, x: Tensor, layers: Layers) -> Tape:
    """The pass, for x of shape (D, N)."""
    tape = Tape([], [x], [], [])
    t: Tensor | None = None
    last = len(layers.weights) - 1
    for layer, (W, B, b) in enumerate(zip(*layers[:3], strict=True)):
        z = layers.triangle(layer, x.shape[1]).product(
            W, tape.h[-1], b[:, None] if b.dim() == 1 else b.mT
        )
        u = B.reshape(-1, 1) if t is None else through_blocks(B, t)
        tape.u.append(u)
        tape.z.append(z)
        if layer < last:
            value, slope = phi(z)
            tape.h.append(value)
            tape.slope.append(slope)
            t = slope * u

    return tape


def backward(
    phi: Activation, tape: Tape, layers: Layers, gF: Tensor, gd: Tensor
) -> tuple[Gradients, Tensor]:
    """Gradients of the layers, and those of the first layer's z, from those of F and d."""
    L = len(layers.weights)
    gW, gB, gb = ([torch.empty(0)] * L for _ in range(3))
    gz, gu = gF, gd
    for layer in range(L - 1, -1, -1):
        triangle = layers.triangle(layer, gF.shape[1])
        gW[layer] = triangle.gradient(gz, tape.h[layer])
        gb[layer] = gz.sum(1) if layers.biases[layer].dim() == 1 else gz.mT
        block = layers.blocks[layer]
        if layer == 0:
            gB[0] = gu.expand_as(gz).sum(1).view_as(block)
            break
        slope, u = tape.slope[layer - 1], tape.u[layer - 1]
        gB[layer] = between_blocks(gu, slope * u, block)
        gt = through_blocks(block.mT, gu)
        gh = triangle.transposed(layers.weights[layer], gz)
        curvature = phi.curvature(tape.z[layer - 1], tape.h[layer], slope)
        gz = torch.addcmul(slope * gh, curvature * u, gt)
        gu = slope * gt

    return Gradients(gW, gB, gb), gz


def through_blocks(blocks: Tensor, t: Tensor) -> Tensor:
    r"""Send tangents through the diagonal blocks only: D products of k_out x k_in.

    Arguments:
        blocks: Shape (D, k_out, k_in).
        t: Shape (D * k_in, N).

    Returns:
        Shape (D * k_out, N).

    Example:
        >>> through_blocks(torch.ones(2, 3, 2), torch.ones(4, 1)).mT
        tensor([[2., 2., 2., 2., 2., 2.]])
    """
    D, k_out, k_in = blocks.shape
    t = t.reshape(D, k_in, -1)
    u = blocks * t if k_in == 1 else torch.bmm(blocks, t)

    return u.reshape(D * k_out, -1)


def between_blocks(gu: Tensor, t: Tensor, blocks: Tensor) -> Tensor:
    """The gradient of the blocks in u = B t."""
    D, k_out, k_in = blocks.shape
    gu, t = gu.reshape(D, k_out, -1), t.reshape(D, k_in, -1)
    if k_out == k_in == 1:
        return (gu * t).sum(-1, keepdim=True)

    return torch.bmm(gu, t.mT)


def shape_of(
    blocks: Sequence[Tensor], activation: Activation, reverse: tuple[bool, ...]
) -> native.Shape:
    """What the kernels need to know of a network besides its tensors."""
    return native.Shape((1, *(b.shape[-2] for b in blocks)), activation.name, reverse)


def single_step(layers: Layers) -> list[Tensor]:
    """The layers as a chain of one step, whose affine maps do not matter, for the kernels."""
    own = layers.weights[0].new_empty(1, len(layers.blocks[0]))

    return [own, own, *(t.unsqueeze(0) for part in layers[:3] for t in part)]


def value_and_diagonal(x: Tensor, layers: Layers, activation: Activation) -> tuple[Tensor, Tensor]:
    r"""F(x) and the diagonal d of its Jacobian, of a network of linear layers.

    Arguments:
        x: Shape (N, D).
        layers: The linear layers.
        activation: phi, with its first two derivatives, between them.

    Returns:
        F and d, both (N, D).
    """
    parts = [t for part in layers[:3] for t in part]
    if plain() or not (torch.is_grad_enabled() and any_gradient(x, *parts)):
        # Nothing to keep; and torch.compile cannot trace the function where it has no backward.
        shape, tensors = (
            shape_of(layers.blocks, activation, (layers.reverse,)),
            single_step(layers),
        )
        if native.usable(shape, x, tensors):
            return native.branch(shape, x, tensors)
        tape = forward(activation, x.mT, layers)
        return tape.z[-1].mT, tape.u[-1].expand_as(tape.z[-1]).mT

    W, B, b, reverse = layers
    outputs = _Pass.apply((activation, len(W), reverse), x, *W, *B, *b)

    return outputs[0], outputs[1]


def any_gradient(*tensors: Tensor) -> bool:
    """Whether one of the tensors needs a gradient."""
    return any(t.requires_grad for t in tensors)


def flatten(phi: Activation, tape: Tape) -> list[Tensor]:
    """What a backward pass needs of a tape and does not have: hidden h, slope, u (and z)."""
    hidden = len(tape.slope)
    z = tape.z[:hidden] if phi.curvature_needs_z else []

    return [*tape.h[1:], *tape.slope, *tape.u[1:hidden], *z]


def unflatten(phi: Activation, kept: Sequence[Tensor], x: Tensor, layers: Layers) -> Tape:
    """The tape of ``flatten`` again."""
    n = len(layers.weights) - 1
    h, slope, u = kept[:n], kept[n : 2 * n], kept[2 * n : 3 * n - 1]
    first = layers.blocks[0].reshape(-1, 1)

    return Tape(
        list(kept[3 * n - 1 :]) if phi.curvature_needs_z else list(h),
        [x, *h],
        list(slope),
        [first, *u],
    )


def tensors_of(phi: Activation, layers: int) -> int:
    """How many tensors ``flatten`` gives."""
    return (4 if phi.curvature_needs_z else 3) * (layers - 1) - 1


class _Pass(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(how: tuple[Activation, int, bool], x: Tensor, *parts: Tensor) -> Any:
        phi, L, reverse = how
        W, B, b = (parts[i * L : (i + 1) * L] for i in range(3))
        tape = forward(phi, x.mT, Layers(W, B, b, reverse))
        F = tape.z[-1]

        return F.mT, tape.u[-1].expand_as(F).mT, *flatten(phi, tape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.how, *tensors = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        phi, L, reverse = ctx.how
        x, *rest = ctx.saved_tensors
        W, B, b = (rest[i * L : (i + 1) * L] for i in range(3))
        layers = Layers(W, B, b, reverse)
        if torch.is_grad_enabled():
            # Somebody wants second derivatives: what was kept are constants, so compute it anew.
            tape = forward(phi, x.mT, layers)
        else:
            tape = unflatten(phi, rest[3 * L :], x.mT, layers)
        gF, gd = (torch.zeros_like(x.mT) if g is None else g.mT.contiguous() for g in grads[:2])
        found, gz = backward(phi, tape, layers, gF, gd)
        gx = (W[0].mT @ gz).mT if ctx.needs_input_grad[1] else None

        return None, gx, *found.weights, *found.blocks, *found.biases
