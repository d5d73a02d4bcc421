r"""Calling the kernels of a chain of residual steps with affine maps between them.

A chain is described by numbers (its shape) and by its tensors, in the order in which
:class:`quarflow.ops.chain.Chain` lists them: scale and shift (T + 1, D), then for each layer W
(T, D k_out, D k_in), then the blocks B (T, D, k_out, k_in), then the biases b, (T, D k_out) or
(T, N, D k_out).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quarflow.backends.cpu.calls import ACTIVATIONS, MAX_LAYERS, call, pointers, readable

__all__ = ["Root", "Shape", "backward", "branch", "forward", "solve", "usable"]


class Shape(NamedTuple):
    """What the kernels need to know besides the tensors.

    Attributes:
        units: Units per dimension k, from that of x, 1, to that of F, 1.
        activation: Its name.
        reverse: For each step, whether its weights are upper triangular.
    """

    units: tuple[int, ...]
    activation: str
    reverse: tuple[bool, ...]

    @classmethod
    def of(cls, blocks: Sequence[Tensor], activation: str, reverse: tuple[bool, ...]) -> Shape:
        """From the diagonal blocks of the layers, (*, D, k_out, k_in)."""
        return cls((1, *[b.shape[-2] for b in blocks]), activation, reverse)

    def numbers(self, x: Tensor, biases: Tensor) -> list[int]:
        """As the kernels read them; biases: of any layer."""
        N, D = x.shape
        layers, own = len(self.units) - 1, biases.dim() == 3

        return [
            *(N, D, len(self.reverse), layers, ACTIVATIONS[self.activation]),
            *(torch.get_num_threads(), own, *self.units, *self.reverse),
        ]


def usable(shape: Shape, x: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels can compute this."""
    return (
        shape.activation in ACTIVATIONS
        and len(shape.units) <= MAX_LAYERS
        and readable((x, *tensors))
    )


def forward(shape: Shape, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The chain's value (N, D), and the sum of its steps' log-dets (N).

    Arguments:
        shape: Of the chain.
        x: Shape (N, D).
        tensors: Of the chain.
    """
    x, tensors = x.contiguous(), [t.contiguous() for t in tensors]
    z, ladj = torch.empty_like(x), x.new_empty(len(x))
    _call("forward", shape, x, tensors, x, z, ladj)

    return z, ladj


def backward(
    shape: Shape, x: Tensor, tensors: Sequence[Tensor], gz: Tensor, gl: Tensor
) -> list[Tensor]:
    """Gradients of x and of the tensors from those of both results.

    Those of W are only right where W may differ from 0.
    """
    x, tensors = x.contiguous(), [t.contiguous() for t in tensors]
    gz, gl = gz.contiguous(), gl.contiguous()
    gradients = [torch.empty_like(t) for t in (x, *tensors)]
    _call("backward", shape, x, tensors, x, gz, gl, pointers(gradients))

    return gradients


def branch(shape: Shape, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """F and d of a chain of one step, both (N, D); its affine maps are not looked at."""
    x, tensors = x.contiguous(), [t.contiguous() for t in tensors]
    F, d = torch.empty_like(x), torch.empty_like(x)
    _call("branch", shape, x, tensors, x, F, d)

    return F, d


class Root(NamedTuple):
    """Roots x (N, D), slopes there (N, D), residuals (N) and evaluations (N)."""

    x: Tensor
    slope: Tensor
    residual: Tensor
    evaluations: Tensor


def solve(
    shape: Shape,
    y: Tensor,
    start: Tensor,
    tensors: Sequence[Tensor],
    tolerance: float,
    evaluations: int,
) -> Root:
    """The inverse of a chain of one step, one variable after the other.

    Arguments:
        shape: Of the chain.
        y: Right-hand sides, shape (N, D).
        start: Where to start, shape (N, D).
        tensors: Of the chain; its affine maps are not looked at.
        tolerance: Residual to stop at, relative to 1 + abs(y).
        evaluations: Most evaluations of a variable.
    """
    y, tensors = y.contiguous(), [t.contiguous() for t in tensors]
    x = start.clone(memory_format=torch.contiguous_format)
    found = Root(
        x, torch.empty_like(x), x.new_empty(len(x)), x.new_empty(len(x), dtype=torch.long)
    )
    limits = ctypes.c_double(tolerance), ctypes.c_int(evaluations)
    _call("solve", shape, y, tensors, y, *found, *limits)

    return found


def _call(name: str, shape: Shape, x: Tensor, tensors: Sequence[Tensor], *arguments: Any) -> None:
    call(name, x.dtype, shape.numbers(x, tensors[-1]), pointers(tensors), *arguments)
