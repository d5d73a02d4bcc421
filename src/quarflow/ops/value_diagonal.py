r"""Value and diagonal of a branch, of vectors or of images, as one differentiable function.

Images are like vectors between their ends: what is read through taps is gathered side by side,
every pixel is a row of its own, and the last layer gives products to be summed over taps. Hidden
units are hundreds per channel there, so they are computed for some thousand pixels at a time:
they stay in the cache, and the backward pass computes them anew, or finds what was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quarflow.backends.shapes import ChainShape, PixelLayers
from quarflow.modes import torch_only
from quarflow.ops.activations import Activation
from quarflow.ops.backend import backend_for, needs_gradient, signed
from quarflow.ops.recurrence import (
    Gradients,
    Layers,
    Tape,
    Tensors,
    backward,
    flatten,
    forward,
    unflatten,
)
from quarflow.ops.taps import Taps, gather_taps, opposite, sum_taps

__all__ = ["Pass", "single_step", "value_and_diagonal"]

# Hidden numbers of an image computed at a time: what stays in the cache of one core, and on other
# devices enough to keep all of it busy.
CHUNK_CPU, CHUNK_OTHER = 2**18, 2**27


@dataclass(frozen=True)
class Pass:
    """What a pass does, besides its tensors.

    Attributes:
        activation: phi, with its first two derivatives.
        reverse: Whether dimensions depend on later ones.
        taps: Of the first and last layer, for images; None for vectors.
        preactivation: Whether phi comes before the first layer, of images.
        recompute: Whether the backward pass computes hidden units anew, of images.
        dtype: Of the hidden units, where it is not that of x, of images: matrix products take
            and give it, and all that is summed over taps, chunks or units is summed in x's.
    """

    activation: Activation
    reverse: bool = False
    taps: Taps | None = None
    preactivation: bool = False
    recompute: bool = False
    dtype: torch.dtype | None = None

    def low(self, *tensors: Tensor) -> list[Tensor]:
        """Tensors in the type of the hidden units."""
        return [t if self.dtype is None else t.to(self.dtype) for t in tensors]


def single_step(layers: Layers) -> list[Tensor]:
    """The layers as a chain of one step, whose affine maps do not matter, for backends."""
    own = layers.weights[0].new_empty(1, len(layers.blocks[0]))

    return [own, own, *[t.unsqueeze(0) for part in layers[:3] for t in part]]


def value_and_diagonal(
    x: Tensor, weights: Tensors, blocks: Tensors, biases: Tensors, options: Pass
) -> tuple[Tensor, Tensor]:
    r"""F(x) and the diagonal d of its Jacobian, of a network of linear layers.

    Arguments:
        x: Shape (N, D), or rows of pixels, (N, H, W, C).
        weights: W, shapes (D k_out, D k_in). Of images the first reads gathered taps,
            (C k, taps C), and the last gives products to be summed over taps, (taps C, C k).
        blocks: B, the diagonal blocks (of the centre taps), (D, k_out, k_in).
        biases: b, shapes (D k_out), or (N, D k_out) for vectors.
        options: What the pass does.

    Returns:
        F and d, both of the shape of x.
    """
    tensors = (x, *weights, *blocks, *biases)
    if torch_only() or not needs_gradient(tensors):
        # Nothing to keep; and torch.compile cannot trace the function where it has no backward.
        F, d, _ = _forward(options, x, weights, blocks, biases, keep=False)
        return F, d
    outputs = _Pass.apply(options, len(weights), *tensors)

    return outputs[0], outputs[1]


class _Pass(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(options: Pass, layers: int, x: Tensor, *parameters: Tensor) -> Any:
        W, B, b = _thirds(parameters, layers)
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
        L = ctx.layers
        x, *rest = ctx.saved_tensors
        layers = _layers(ctx.options, *_thirds(rest, L))
        # Second derivatives are those of what is computed anew: what was kept are constants.
        kept = [] if torch.is_grad_enabled() else rest[3 * L :]
        gF, gd = [torch.zeros_like(x) if g is None else g for g in grads[:2]]
        run = _vectors_backward if ctx.options.taps is None else _images_backward
        gx, found = run(ctx.options, x, layers, kept, gF, gd, ctx.needs_input_grad[2])

        return None, None, gx, *found.weights, *found.blocks, *found.biases


def _thirds(tensors: Tensors, n: int) -> tuple[Tensors, Tensors, Tensors]:
    return tensors[:n], tensors[n : 2 * n], tensors[2 * n : 3 * n]


def _layers(options: Pass, W: Tensors, B: Tensors, b: Tensors) -> Layers:
    return Layers(W, B, b, options.reverse, open=options.taps is not None)


def _forward(
    options: Pass, x: Tensor, W: Tensors, B: Tensors, b: Tensors, keep: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """F, d, and what the backward pass needs."""
    if options.taps is not None:
        return _images_forward(options, options.taps, x, W, B, b, keep)
    phi, layers = options.activation, _layers(options, W, B, b)
    if not keep:
        shape = ChainShape.of(B, phi.name, (options.reverse,))
        tensors = single_step(layers)
        backend = backend_for("chain", shape, (x, *tensors))
        if backend is not None:
            return *backend.branch(shape, x, tensors), []
    tape = forward(phi, x.mT, layers)
    F = tape.z[-1]

    return F.mT, tape.u[-1].expand_as(F).mT, flatten(phi, tape) if keep else []


def _vectors_backward(
    options: Pass,
    x: Tensor,
    layers: Layers,
    kept: Tensors,
    gF: Tensor,
    gd: Tensor,
    need_x: bool,
) -> tuple[Tensor | None, Gradients]:
    """Gradients of x and of the layers."""
    phi = options.activation
    tape = (
        unflatten(phi, kept, x.mT, layers)
        if kept
        else forward(phi, x.mT, layers, jets=True, hidden=True)
    )
    found, gz, _ = backward(phi, tape, layers, gF.mT.contiguous(), gd.mT.contiguous())

    return (layers.weights[0].mT @ gz).mT if need_x else None, found


# Images


def _chunk(hidden: int, device: torch.device) -> int:
    """Pixels at a time."""
    numbers = CHUNK_CPU if device.type == "cpu" else CHUNK_OTHER

    return max(64, numbers // hidden)


def _entered(options: Pass, taps: Taps, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What enters the first layer, (pixels, taps C), and slopes and curvatures of x, as x."""
    a, slope, curvature = options.activation.jet(x) if options.preactivation else (x, None, None)

    return gather_taps(a, taps).flatten(0, 2), slope, curvature


def _images_forward(
    options: Pass, taps: Taps, x: Tensor, W: Tensors, B: Tensors, b: Tensors, keep: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """F, d, and of each chunk what the backward pass needs."""
    phi, bias = options.activation, b[-1]
    A, slope, _ = _entered(options, taps, x)
    if options.dtype is not None:
        A, *lower = options.low(A, *W, *B, *b)
        W, B, b = _thirds(lower, len(W))
    t = None if slope is None else slope.reshape(-1, x.shape[-1])
    network = PixelLayers(W, B, b[:-1], phi.name, options.reverse)
    kept: list[Tensor] = []
    read = [A, *([] if t is None else [t]), *network.tensors]
    backend = backend_for("pixels", network, read) if options.dtype is None else None
    if backend is not None:
        products, d = backend.pixels_forward(network, A, t)
    else:
        layers, size = _layers(options, W, B, b), _chunk(W[0].shape[0], x.device)
        t = t if t is None or options.dtype is None else t.to(options.dtype)
        y, diagonals = [], []
        for at in range(0, max(1, len(A)), size):
            here = slice(at, at + size)
            tape = forward(phi, A[here].mT, layers, None if t is None else t[here].mT)
            y.append(tape.z[-1].mT.to(x.dtype))
            diagonals.append(_summed(tape, B[-1], x.dtype))
            if keep:
                kept += flatten(phi, tape)
        products, d = (p[0] if len(p) == 1 else torch.cat(p) for p in (y, diagonals))
    F = sum_taps(products.reshape(*x.shape[:3], W[-1].shape[0]), taps) + bias

    return F, d.reshape(x.shape), kept


def _summed(tape: Tape, block: Tensor, dtype: torch.dtype) -> Tensor:
    """The diagonals (pixels, C), summed in another type where hidden units are in a lower one."""
    if block.dtype == dtype:
        return tape.u[-1].mT
    t = (tape.slope[-1] * tape.u[-2]).unflatten(0, (len(block), -1))

    return (t * block.mT).sum(1, dtype=dtype).mT


def _images_backward(
    options: Pass,
    x: Tensor,
    layers: Layers,
    kept: Tensors,
    gF: Tensor,
    gd: Tensor,
    need_x: bool,
) -> tuple[Tensor | None, Gradients]:
    """Gradients of x and of the layers, chunk by chunk."""
    taps, C, (W, B, b) = options.taps, x.shape[-1], layers[:3]
    assert taps is not None
    A, slope, curvature = _entered(options, taps, x)
    t = None if slope is None else slope.reshape(-1, C)
    gy, gd = gather_taps(gF, opposite(taps)).flatten(0, 2), gd.reshape(-1, C)
    if options.dtype is not None:
        A, gy, gd, *lower = options.low(A, gy, gd, *W, *B, *b)
        layers = _layers(options, *_thirds(lower, len(W)))
        W, B, b = layers[:3]
    network, backend = PixelLayers(W, B, b[:-1], options.activation.name, options.reverse), None
    if not (kept or torch.is_grad_enabled() or options.dtype is not None):
        read = [A, gy, gd, *([] if t is None else [t]), *network.tensors]
        backend = backend_for("pixels", network, read)
    if backend is None:
        of_A, of_t, found = _in_chunks(options, A, t, layers, kept, gy, gd, x.dtype)
    else:
        of_A, of_t, *rest = backend.pixels_backward(network, A, t, gy, gd)
        found = Gradients(*rest)
    found.biases.append(gF.sum((0, 1, 2)))
    if not need_x:
        return None, found
    gx = sum_taps(of_A.view(*x.shape[:3], A.shape[1]), opposite(taps))
    if slope is not None and curvature is not None and of_t is not None:
        gx = gx * slope + of_t.view_as(x) * curvature

    return gx, found


def _in_chunks(
    options: Pass,
    A: Tensor,
    t: Tensor | None,
    layers: Layers,
    kept: Tensors,
    gy: Tensor,
    gd: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Gradients]:
    """Gradients of A, of t and of the layers but the last bias, some pixels at a time."""
    phi, W, B = options.activation, layers.weights, layers.blocks
    size = _chunk(W[0].shape[0], A.device)
    chunks = range(0, max(1, len(A)), size)
    t = t if t is None or options.dtype is None else t.to(options.dtype)
    totals: list[Tensor] = []
    of_A, of_t = [], []
    for i, at in enumerate(chunks):
        here, each = slice(at, at + size), len(kept) // len(chunks)
        x, tangents = A[here].mT, None if t is None else t[here].mT
        if kept:
            tape = unflatten(phi, kept[i * each : (i + 1) * each], x, layers, tangents)
        else:
            tape = forward(phi, x, layers, tangents, jets=True, hidden=True)
        found, gz, gu = backward(phi, tape, layers, gy[here].mT, gd[here].mT)
        totals = _added(totals, [*found.weights, *found.blocks, *found.biases[:-1]])
        of_A.append((gz.mT @ W[0]).to(dtype))
        if t is not None:
            of_t.append((gu.unflatten(0, B[0].shape[:2]) * B[0]).sum(1, dtype=dtype).mT)
    L = len(W)

    return (
        torch.cat(of_A),
        torch.cat(of_t) if of_t else None,
        Gradients(totals[:L], totals[L : 2 * L], totals[2 * L :]),
    )


def _added(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    # In float32 at least: many chunks are added up.
    new = [part.float() if part.dtype.itemsize < 4 else part for part in new]

    return [a + b for a, b in zip(old, new, strict=True)] if old else new
