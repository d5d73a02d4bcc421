r"""Calling the kernels of a chain of residual steps with affine maps between them.

A chain is described by numbers (its shape) and by its tensors, in the order in which
:class:`quarflow.nn.chain.Chain` lists them: scale and shift (T + 1, D), then for each layer W
(T, D k_out, D k_in), then the blocks B (T, D, k_out, k_in), then the biases b, (T, D k_out) or
(T, N, D k_out).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, nn

from quarflow.native.build import library

__all__ = ["Root", "Shape", "backward", "branch", "forward", "solve", "usable"]

ACTIVATIONS = {"elu": 0, "sin": 1, "lipswish": 2, "tanh": 3}
KINDS = {torch.float32: "f32", torch.float64: "f64"}
PLAIN = (Tensor, nn.Parameter)
MAX_LAYERS = 16
KEPT_BYTES = 2**25  # of a tape; beyond it a backward pass computes hidden layers anew


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

    def numbers(self, x: Tensor, own_biases: bool) -> Any:
        """As the kernels read them."""
        N, D = x.shape
        values = (
            *(N, D, len(self.reverse), len(self.units) - 1, ACTIVATIONS[self.activation]),
            *(torch.get_num_threads(), own_biases, *self.units, *self.reverse),
        )

        return (ctypes.c_int64 * len(values))(*values)


def usable(shape: Shape, x: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels can compute this: plain tensors in memory, and nobody traces them."""
    if (
        torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or x.dtype not in KINDS
        or not x.numel()
        or shape.activation not in ACTIVATIONS
        or len(shape.units) > MAX_LAYERS
    ):
        return False
    for tensor in (x, *tensors):
        if type(tensor) not in PLAIN or tensor.dtype != x.dtype or tensor.device != x.device:
            return False
        try:
            # Those of torch.func have no memory of their own; duals carry a tangent.
            if not tensor.data_ptr() or forward_mode.unpack_dual(tensor).tangent is not None:
                return False
        except RuntimeError:
            return False

    return library() is not None


def forward(
    shape: Shape, x: Tensor, tensors: Sequence[Tensor], keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The chain's value (N, D), the sum of its steps' log-dets (N), and a tape.

    Arguments:
        shape: Of the chain.
        x: Shape (N, D).
        tensors: Of the chain.
        keep: Whether to make a tape, if it is small enough to be worth keeping.
    """
    x, call = x.contiguous(), _Call(shape, x, tensors)
    z, ladj, tape = torch.empty_like(x), x.new_empty(len(x)), None
    if keep:
        size = call("tape_bytes", result=ctypes.c_int64)
        tape = torch.empty(size, dtype=torch.uint8) if size <= KEPT_BYTES else None
    call.done("forward", x, z, ladj, tape)

    return z, ladj, tape


def backward(
    shape: Shape,
    x: Tensor,
    tensors: Sequence[Tensor],
    gz: Tensor,
    gl: Tensor,
    tape: Tensor | None,
) -> list[Tensor]:
    """Gradients of x and of the tensors from those of both results.

    Those of W are only right where W may differ from 0.
    """
    x, call = x.contiguous(), _Call(shape, x, tensors)
    gradients = [torch.empty_like(t) for t in (x, *call.tensors)]
    call.done("backward", x, gz.contiguous(), gl.contiguous(), tape, _pointers(gradients))

    return gradients


def branch(shape: Shape, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """F and d of a chain of one step, both (N, D); its affine maps are not looked at."""
    x, call = x.contiguous(), _Call(shape, x, tensors)
    F, d = torch.empty_like(x), torch.empty_like(x)
    call.done("branch", x, F, d)

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
    y, call = y.contiguous(), _Call(shape, y, tensors)
    x = start.clone(memory_format=torch.contiguous_format)
    found = Root(
        x, torch.empty_like(x), x.new_empty(len(x)), x.new_empty(len(x), dtype=torch.long)
    )
    call.done("solve", y, *found, ctypes.c_double(tolerance), ctypes.c_int(evaluations))

    return found


class _Call:
    """A chain on points x, as the kernels take it."""

    def __init__(self, shape: Shape, x: Tensor, tensors: Sequence[Tensor]) -> None:
        self.tensors = [t.contiguous() for t in tensors]  # held, while their memory is read
        self.kind = KINDS[x.dtype]
        self.described = shape.numbers(x, self.tensors[-1].dim() == 3), _pointers(self.tensors)

    def __call__(self, name: str, *arguments: Any, result: Any = ctypes.c_int) -> int:
        function = getattr(library(), f"{name}_{self.kind}")
        function.restype = result
        addresses = (
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments
        )

        return int(function(*self.described, *addresses))

    def done(self, name: str, *arguments: Any) -> None:
        """Call, and raise where memory ran out."""
        if not self(name, *arguments):
            raise MemoryError("There is not enough memory for this batch: make it smaller.")


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
