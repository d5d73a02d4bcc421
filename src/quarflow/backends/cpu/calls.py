"""What every call of a kernel needs: tensors whose memory can be read, and its address."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from quarflow.backends.cpu.build import library

__all__ = ["ACTIVATIONS", "call", "contiguous", "int64s", "pointers", "takes"]

ACTIVATIONS = {"elu": 0, "sin": 1, "lipswish": 2, "tanh": 3}
MAX_LAYERS = 16
MAX_BLOCK = 32  # wider blocks are better off with large matrix products
KINDS = {torch.float32: "f32", torch.float64: "f64"}
PLAIN = (Tensor, nn.Parameter)


def takes(op: str, shape: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether there is a kernel for this: it is small enough, and all are plain tensors in memory
    of one type that are not empty.

    Example:
        >>> takes("bounds", None, [torch.ones(2, 2, device="meta")] * 2)
        False
    """
    dtype = tensors[0].dtype
    if dtype not in KINDS:
        return False
    for tensor in tensors:
        if type(tensor) not in PLAIN or tensor.dtype != dtype or not tensor.is_cpu:
            return False
        if tensor.is_neg():  # a view whose memory holds -x
            return False
        try:
            if not tensor.data_ptr():  # empty tensors and those of torch.func have no address
                return False
        except RuntimeError:
            return False

    return FITS[op](shape) and library() is not None


@lru_cache
def _chain_fits(shape: Any) -> bool:
    return shape.activation in ACTIVATIONS and len(shape.units) <= MAX_LAYERS


@lru_cache
def _bounds_fit(sizes: tuple[torch.Size, ...]) -> bool:
    return 1 < len(sizes) <= MAX_LAYERS and max([max(s[-2:]) for s in sizes]) <= MAX_BLOCK


def _pixels_fit(layers: Any) -> bool:
    return layers.activation in ACTIVATIONS and 1 < len(layers.weights) <= MAX_LAYERS


FITS: dict[str, Callable[[Any], bool]] = {
    "packing": bool,
    "bounds": _bounds_fit,
    "chain": _chain_fits,
    "pixels": _pixels_fit,
}


def contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors, each in one piece."""
    return list(map(Tensor.contiguous, tensors))


def pointers(tensors: Sequence[Tensor]) -> Any:
    """The addresses of tensors, which must stay alive during the call."""
    return _addresses(len(tensors))(*map(Tensor.data_ptr, tensors))


@cache
def _addresses(count: int) -> Any:
    return ctypes.c_void_p * count


def int64s(*numbers: int) -> Any:
    """Numbers that describe an operation, as the kernels read them."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


@cache
def _kernel(name: str, dtype: torch.dtype) -> Any:
    return getattr(library(), f"{name}_{KINDS[dtype]}")


def call(name: str, dtype: torch.dtype, numbers: Any, *arguments: Any) -> None:
    """Call a kernel with the numbers that describe the shapes; tensors become addresses.

    Raises:
        MemoryError: if the kernel could not get its working memory.
    """
    given = []
    for a in arguments:
        given.append(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a)
    if not _kernel(name, dtype)(numbers, *given):
        raise MemoryError("There is not enough memory for this batch: make it smaller.")
