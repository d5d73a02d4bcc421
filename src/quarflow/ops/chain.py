r"""Many residual steps with affine maps between them, as one differentiable function.

With a mask of modelled columns all others are 0 before and after every step, and count for
nothing: what is left is the same triangular map of the modelled ones.

What one step after the other would cost autograd in bookkeeping is more than a small batch costs
in arithmetic. And one function can choose what to keep for the backward pass: everything, or,
for batches too large for that, nothing but x.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quarflow.backends.shapes import ChainShape
from quarflow.modes import torch_only
from quarflow.ops import recurrence
from quarflow.ops.activations import Activation
from quarflow.ops.backend import Backend, backend_for, needs_gradient, signed
from quarflow.ops.recurrence import Layers, Tape, flatten, unflatten

__all__ = ["Chain", "residual_chain"]

KEEP_BYTES = 2**28  # of hidden layers; beyond it they are computed anew
ROWS_BYTES = 2**21  # of one hidden layer, in a piece of a batch that is not kept


class Chain(NamedTuple):
    r"""Parameters of :math:`a_T(f_T(... a_1(f_1(a_0(x)))))` with :math:`f_t(x) = x + F_t(x)`.

    Attributes:
        scale, shift: Of the affine maps a, shapes (T + 1, D).
        weights, blocks: Of each layer, shapes (T, D k_out, D k_in) and (T, D, k_out, k_in).
        biases: Of each layer, shapes (T, D k_out) or (T, N, D k_out).
        activation: Between the layers.
        shape: What backends need to know besides; also for each step, whether its weights are
            upper triangular.
    """

    scale: Tensor
    shift: Tensor
    weights: tuple[Tensor, ...]
    blocks: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: Activation
    shape: ChainShape

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, flat."""
        return (self.scale, self.shift, *self.weights, *self.blocks, *self.biases)

    @classmethod
    def of(cls, tensors: Sequence[Tensor], phi: Activation, shape: ChainShape) -> Chain:
        """From what ``tensors`` gives."""
        scale, shift, *rest = tensors
        L = len(rest) // 3
        weights, blocks, biases = tuple(rest[:L]), tuple(rest[L : 2 * L]), tuple(rest[2 * L :])

        return cls(scale, shift, weights, blocks, biases, phi, shape)

    def steps(self) -> list[Layers]:
        """The layers of each step."""
        parts = (self.weights, self.blocks, self.biases)
        each = (zip(*(t.unbind() for t in part), strict=True) for part in parts)

        return [Layers(*step) for step in zip(*each, self.shape.reverse, strict=True)]

    def rows(self, start: int, stop: int) -> Chain:
        """The same chain for some of its rows."""
        if self.biases[0].dim() == 2:
            return self

        return self._replace(biases=tuple(b[:, start:stop] for b in self.biases))

    @property
    def width(self) -> int:
        """Of the widest layer."""
        return max([w.shape[-2] for w in self.weights])


def residual_chain(
    x: Tensor, chain: Chain, modelled: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""The chain's value, and the sum over its steps of :math:`\sum_i \log(1 + d_i)`.

    The log-dets of the affine maps, which do not depend on x, are not in it.

    Arguments:
        x: Shape (N, D), 0 where it is not modelled.
        chain: The parameters.
        modelled: Which columns of each row are, bool, shape (N, D); None for all.

    Returns:
        Shapes (N, D) and (N).
    """
    tensors = chain.tensors
    mask = None if modelled is None else modelled.to(x.dtype)
    backend = backend_for("chain", chain.shape, _read(x, mask, *tensors))
    if backend is None and torch_only():
        return _forward(x, chain, mask, keep=False)[:2]
    if needs_gradient((x, *tensors)):
        outputs = _Chain.apply(backend, chain.activation, chain.shape, mask, x, *tensors)
        return outputs[0], outputs[1]
    if backend is not None:
        return backend.chain_forward(chain.shape, x, tensors, mask)

    return _forward_in_pieces(x, chain, mask)


def _read(x: Tensor, mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """All that is read."""
    return (x, *tensors) if mask is None else (x, mask, *tensors)


def _forward_in_pieces(x: Tensor, chain: Chain, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    pieces = _pieces(x, chain)
    parts = [
        _forward(x[a:b], chain.rows(a, b), _some(mask, a, b), keep=False)[:2] for a, b in pieces
    ]
    if len(parts) == 1:
        return parts[0]
    z, ladj = (torch.cat(part) for part in zip(*parts, strict=True))

    return z, ladj


def _some(mask: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if mask is None else mask[start:stop]


def _chosen(mask: Tensor | None, columns: Tensor) -> Tensor:
    """Columns (D, N), 0 where the mask (N, D) says so."""
    return columns if mask is None else torch.where(mask.mT != 0, columns, 0)


def _pieces(x: Tensor, chain: Chain) -> list[tuple[int, int]]:
    """Ranges of rows whose hidden layers stay in the processor's cache."""
    N = len(x)
    if x.is_cuda:
        return [(0, N)]
    size = max(64, ROWS_BYTES // (x.element_size() * chain.width))
    count = max(1, round(N / size))
    edges = [N * i // count for i in range(count + 1)]

    return list(pairwise(edges))


class _Step(NamedTuple):
    """What one step of a chain computed: its tape, y = x + F(x), and d."""

    tape: Tape
    y: Tensor
    d: Tensor


def _forward(
    x: Tensor, chain: Chain, mask: Tensor | None, keep: bool, jets: bool = False
) -> tuple[Tensor, Tensor, list[_Step]]:
    """z (N, D), the sum of log-dets (N), and the steps if they are to be kept, with curvatures."""
    scale, shift = chain.scale.unsqueeze(-1).unbind(), chain.shift.unsqueeze(-1).unbind()
    y = _chosen(mask, torch.addcmul(shift[0], scale[0], x.mT.contiguous()))
    kept: list[_Step] = []
    slopes: list[Tensor] = []
    for t, layers in enumerate(chain.steps()):
        tape = recurrence.forward(chain.activation, y, layers, jets=jets)
        step = _Step(tape, y + tape.z[-1], _chosen(mask, tape.u[-1]))
        y = _chosen(mask, torch.addcmul(shift[t + 1], scale[t + 1], step.y))
        slopes.append(step.d)
        if keep:
            kept.append(step)

    return y.mT, torch.stack(slopes).log1p().sum((0, 1)), kept


def _backward(
    chain: Chain,
    mask: Tensor | None,
    steps: Sequence[_Step],
    gz: Tensor,
    gl: Tensor,
    x: Tensor,
) -> list[Tensor]:
    """Gradients of x (D, N) and, in their order, of the chain's tensors; from those of z and l."""
    scale = chain.scale.unsqueeze(-1).unbind()
    T = len(steps)
    g_scale, g_shift = ([torch.empty(0)] * (T + 1) for _ in range(2))
    parts: list[list[list[Tensor]]] = [[[] for _ in chain.weights] for _ in range(3)]
    layers = chain.steps()
    g = _chosen(mask, gz)
    for t in range(T - 1, -1, -1):
        step = steps[t]
        g_scale[t + 1], g_shift[t + 1] = (g * step.y).sum(1), g.sum(1)
        g = scale[t + 1] * g
        gd = _chosen(mask, gl / (1 + step.d))
        found, gz1, _ = recurrence.backward(chain.activation, step.tape, layers[t], g, gd)
        back = layers[t].triangle(0, g.shape[1]).transposed(layers[t].weights[0], gz1)
        g = _chosen(mask, g + back)
        for part, each in zip(parts, found, strict=True):
            for layer, tensor in enumerate(each):
                part[layer].append(tensor)
    g_scale[0], g_shift[0] = (g * x).sum(1), g.sum(1)
    stacked = [torch.stack(each[::-1]) for part in parts for each in part]

    return [scale[0] * g, torch.stack(g_scale), torch.stack(g_shift), *stacked]


class _Chain(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(
        backend: Backend | None,
        phi: Activation,
        shape: ChainShape,
        mask: Tensor | None,
        x: Tensor,
        *parts: Tensor,
    ) -> Any:
        if backend is not None:
            return backend.chain_forward(shape, x, parts, mask)
        chain = Chain.of(parts, phi, shape)
        if not _is_kept(x, chain):
            return _forward_in_pieces(x, chain, mask)
        z, ladj, steps = _forward(x, chain, mask, keep=True)
        kept = [[s.tape.x, s.y, s.d, *flatten(phi, s.tape)] for s in steps]

        return z, ladj, *[tensor for step in kept for tensor in step]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, phi, shape, mask, *tensors = inputs
        ctx.how, ctx.masked = (phi, shape), mask is not None
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[mask] * ctx.masked, *tensors, *output[2:])
        ctx.inputs = len(tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved = list(ctx.saved_tensors)
        mask = saved.pop(0) if ctx.masked else None
        x, *rest = saved
        rest, kept = rest[: ctx.inputs - 1], rest[ctx.inputs - 1 :]
        gz = torch.zeros_like(x) if grads[0] is None else grads[0]
        gl = torch.zeros_like(x[:, 0]) if grads[1] is None else grads[1]
        if not (kept or torch.is_grad_enabled()):
            backend = backend_for("chain", ctx.how[1], _read(x, mask, *rest, gz, gl))
            if backend is not None:
                found = backend.chain_backward(ctx.how[1], x, rest, gz, gl, mask)
                return None, None, None, None, *found
        chain = Chain.of(rest, *ctx.how)
        if torch.is_grad_enabled():
            # Somebody wants second derivatives: what was kept are constants, so compute it anew.
            steps = _forward(x, chain, mask, True, jets=True)[2]
            found = _backward(chain, mask, steps, gz.mT, gl, x.mT)
        elif kept:
            steps = _unflatten(kept, chain)
            found = _backward(chain, mask, steps, gz.mT.contiguous(), gl, x.mT)
        else:
            found = _in_pieces(x, chain, mask, gz, gl)

        return None, None, None, None, found[0].mT, *found[1:]


def _is_kept(x: Tensor, chain: Chain) -> bool:
    per_row = sum([3 * w.shape[-2] * len(w) for w in chain.weights])

    return x.numel() // x.shape[-1] * per_row * x.element_size() <= KEEP_BYTES


def _unflatten(kept: Sequence[Tensor], chain: Chain) -> list[_Step]:
    layers = chain.steps()
    each = len(kept) // len(layers)
    steps = []
    for t, layer in enumerate(layers):
        x, y, d, *tensors = kept[t * each : (t + 1) * each]
        steps.append(_Step(unflatten(chain.activation, tensors, x, layer), y, d))

    return steps


def _in_pieces(
    x: Tensor, chain: Chain, mask: Tensor | None, gz: Tensor, gl: Tensor
) -> list[Tensor]:
    """Forward and backward through some rows at a time, so that memory does not grow."""
    totals: list[Tensor] = []
    gx, g_biases = [], []
    context = chain.biases[0].dim() == 3
    for a, b in _pieces(x, chain):
        piece, some = chain.rows(a, b), _some(mask, a, b)
        steps = _forward(x[a:b], piece, some, True, jets=True)[2]
        first, *found = _backward(piece, some, steps, gz[a:b].mT.contiguous(), gl[a:b], x[a:b].mT)
        gx.append(first)
        if context:
            found, biases = found[: -len(chain.biases)], found[-len(chain.biases) :]
            g_biases.append(biases)
        if totals:
            for total, part in zip(totals, found, strict=True):
                total += part
        else:
            totals = found
    by_rows = [torch.cat(part, dim=1) for part in zip(*g_biases, strict=True)]

    return [torch.cat(gx, dim=1), *totals, *by_rows]
