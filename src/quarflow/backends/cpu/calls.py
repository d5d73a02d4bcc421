"""What every call of a kernel needs: tensors whose memory can be read, and its address."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, nn

from quarflow.backends.cpu.build import library
from quarflow.modes import traced

__all__ = ["ACTIVATIONS", "MAX_LAYERS", "call", "pointers", "readable"]

ACTIVATIONS = {"elu": 0, "sin": 1, "lipswish": 2, "tanh": 3}
MAX_LAYERS = 16
KINDS = {torch.float32: "f32", torch.float64: "f64"}
PLAIN = (Tensor, nn.Parameter)


def readable(tensors: Sequence[Tensor]) -> bool:
    """Whether there are kernels for these: plain tensors in memory, not empty, and not traced.

    Example:
        >>> readable([torch.ones(2, device="meta")])
        False
    """
    dtype = tensors[0].dtype
    if torch.compiler.is_compiling() or traced() or dtype not in KINDS:
        return False
    for tensor in tensors:
        if type(tensor) not in PLAIN or tensor.dtype != dtype or tensor.device.type != "cpu":
            return False
        if tensor.is_neg():  # a view whose memory holds -x
            return False
        try:
            # Empty tensors and those of torch.func have no address; duals carry a tangent.
            if not tensor.data_ptr() or forward_mode.unpack_dual(tensor).tangent is not None:
                return False
        except RuntimeError:
            return False

    return library() is not None


def pointers(tensors: Sequence[Tensor]) -> Any:
    """The addresses of tensors, which must stay alive during the call."""
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def call(name: str, dtype: torch.dtype, numbers: Sequence[int], *arguments: Any) -> None:
    """Call a kernel with the numbers that describe the shapes; tensors become addresses.

    Raises:
        MemoryError: if the kernel could not get its working memory.
    """
    function = getattr(library(), f"{name}_{KINDS[dtype]}")
    described = (ctypes.c_int64 * len(numbers))(*numbers)
    addresses = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
    if not function(described, *addresses):
        raise MemoryError("There is not enough memory for this batch: make it smaller.")
