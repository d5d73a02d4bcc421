r"""The recurrence that carries (value, diagonal) through a branch by hand, and its gradient.

.. math::
    z_l = W_l h_{l-1} + b_l, \quad h_l = \phi(z_l), \quad u_l = B_l t_{l-1}, \quad
    t_l = \phi'(z_l) u_l

Everything is feature-major, shape (units, rows): the units of one dimension then are neighbours,
and products with the diagonal blocks are batched matrix products without a copy. With one row
after the other they would need two transposed copies each, at many times the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quarflow.ops.activations import Activation
from quarflow.ops.panels import FeatureMajor

__all__ = ["Gradients", "Layers", "Tape", "Tensors", "backward", "flatten", "forward", "unflatten"]

PANEL_ROWS, PANEL_UNITS, MOST_PANELS = 512, 128, 8  # of vectors
IMAGE_PANELS = 4

Tensors = Sequence[Tensor]


class Layers(NamedTuple):
    """The linear layers of one branch.

    Attributes:
        weights: W, shapes (D k_out, D k_in).
        blocks: B, their diagonal blocks, (D, k_out, k_in).
        biases: b, shapes (D k_out) or (N, D k_out).
        reverse: Whether the weights are upper triangular.
        open: Whether the first and the last weight join all dimensions, and the last bias is not
            added, since its products are yet to be summed.
    """

    weights: Tensors
    blocks: Tensors
    biases: Tensors
    reverse: bool
    open: bool = False

    def triangle(self, layer: int, rows: int) -> FeatureMajor:
        """How the weight of a layer is multiplied with so many rows: large ones in panels."""
        D = len(self.blocks[layer])
        if self.open:
            inside = 0 < layer < len(self.weights) - 1
            return FeatureMajor(D, self.reverse, min(IMAGE_PANELS, D) if inside else 1, True)
        height = max([w.shape[-2] for w in self.weights])
        wide = rows >= PANEL_ROWS

        return FeatureMajor(
            D, self.reverse, max(1, min(height // PANEL_UNITS, MOST_PANELS, D)) if wide else 1
        )

    def bias(self, layer: int) -> Tensor | None:
        """The bias of a layer as it is added, (units, 1) or (units, rows)."""
        if self.open and layer == len(self.weights) - 1:
            return None
        b = self.biases[layer]

        return b[:, None] if b.dim() == 1 else b.mT


class Tape(NamedTuple):
    """What the pass computed, shapes (units, N), as far as it is kept.

    Attributes:
        x: What came in.
        t: Its tangents, shape (D, N); None where they are 1.
        z: Of all layers; the last is the value F.
        h, slope, curvature: phi(z), phi'(z) and phi''(z) of the hidden layers.
        u: Of all layers; the last is the diagonal d.
    """

    x: Tensor
    t: Tensor | None
    z: list[Tensor]
    h: list[Tensor]
    slope: list[Tensor]
    curvature: list[Tensor]
    u: list[Tensor]

    def jet(self, phi: Activation, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Value, slope and curvature of a hidden layer."""
        if self.curvature:
            return self.h[i], self.slope[i], self.curvature[i]
        if phi.curvature is None:
            return phi.jet(self.z[i])

        return self.h[i], self.slope[i], phi.curvature(self.h[i], self.slope[i])


class Gradients(NamedTuple):
    """Gradients of the layers, in their shapes."""

    weights: list[Tensor]
    blocks: list[Tensor]
    biases: list[Tensor]


def forward(
    phi: Activation,
    x: Tensor,
    layers: Layers,
    t: Tensor | None = None,
    jets: bool = False,
    hidden: bool = False,
) -> Tape:
    """The pass, for x of shape (D, N), and tangents t of x, 1 by default.

    Arguments:
        phi: The activation.
        x: What comes in, shape (units, N).
        layers: The linear layers.
        t: Tangents that come in, shape (D, N).
        jets: Whether curvatures are computed too, for a backward pass that follows at once.
        hidden: Whether it ends with the hidden layers.
    """
    tape = Tape(x, t, [], [], [], [], [])
    h, last = x, len(layers.weights) - 1
    for layer, (W, B) in enumerate(zip(layers.weights, layers.blocks, strict=True)):
        if hidden and layer == last:
            break
        z = layers.triangle(layer, x.shape[1]).product(W, h, layers.bias(layer))
        u = B.reshape(-1, 1) if t is None else through_blocks(B, t)
        tape.u.append(u)
        tape.z.append(z)
        if layer < last:
            if jets:
                h, slope, curvature = phi.jet(z)
                tape.curvature.append(curvature)
            else:
                h, slope = phi(z)
            tape.h.append(h)
            tape.slope.append(slope)
            t = slope * u

    return tape


def backward(
    phi: Activation, tape: Tape, layers: Layers, gF: Tensor, gd: Tensor
) -> tuple[Gradients, Tensor, Tensor]:
    """Gradients of the layers, and those of the first layer's z and u, from those of F and d."""
    L = len(layers.weights)
    gW, gB, gb = ([torch.empty(0)] * L for _ in range(3))
    gz, gu = gF, gd
    for layer in range(L - 1, 0, -1):
        triangle, block = layers.triangle(layer, gF.shape[1]), layers.blocks[layer]
        h, slope, curvature = tape.jet(phi, layer - 1)
        u = tape.u[layer - 1]
        gW[layer] = triangle.gradient(gz, h)
        gb[layer] = _bias_gradient(layers, layer, gz)
        gB[layer] = between_blocks(gu, slope * u, block)
        gt = through_blocks(block.mT, gu)
        gh = triangle.transposed(layers.weights[layer], gz)
        gz = torch.addcmul(slope * gh, curvature * u, gt)
        gu = slope * gt
    gW[0] = layers.triangle(0, gF.shape[1]).gradient(gz, tape.x)
    gb[0] = _bias_gradient(layers, 0, gz)
    first = gu.expand_as(gz).unflatten(0, layers.blocks[0].shape[:2])  # (D, k, N)
    entering = first if tape.t is None else first * tape.t[:, None]
    gB[0] = entering.sum(2).view_as(layers.blocks[0])

    return Gradients(gW, gB, gb), gz, gu


def _bias_gradient(layers: Layers, layer: int, gz: Tensor) -> Tensor:
    return gz.sum(1) if layers.biases[layer].dim() == 1 else gz.mT


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


def flatten(phi: Activation, tape: Tape) -> list[Tensor]:
    """What a backward pass needs of a tape and cannot compute from the rest."""
    hidden = len(tape.slope)
    jets = tape.z[:hidden] if phi.curvature is None else [*tape.h, *tape.slope]

    return [*jets, *tape.u[1:hidden]]


def unflatten(
    phi: Activation, kept: Tensors, x: Tensor, layers: Layers, t: Tensor | None = None
) -> Tape:
    """The tape of ``flatten`` again."""
    n = len(layers.weights) - 1
    first = layers.blocks[0].reshape(-1, 1) if t is None else through_blocks(layers.blocks[0], t)
    if phi.curvature is None:
        return Tape(x, t, list(kept[:n]), [], [], [], [first, *kept[n:]])

    return Tape(x, t, [], list(kept[:n]), list(kept[n : 2 * n]), [], [first, *kept[2 * n :]])
