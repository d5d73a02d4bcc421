r"""Calling the kernels of a chain of residual steps with affine maps between them.

A chain is described by numbers (its shape) and by its tensors, in the order in which
:class:`quarflow.ops.chain.Chain` lists them: scale and shift (T + 1, D), then for each layer W
(T, D k_out, D k_in), then the blocks B (T, D, k_out, k_in), then the biases b, (T, D k_out) or
(T, N, D k_out).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from quarflow.backends.cpu.calls import ACTIVATIONS, call, contiguous, int64s, pointers
from quarflow.backends.shapes import ChainShape, Root

__all__ = ["branch", "chain_backward", "chain_forward", "solve"]


def chain_forward(
    shape: ChainShape, x: Tensor, tensors: Sequence[Tensor], mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The chain's value (N, D), and the sum of its steps' log-dets (N).

    Arguments:
        shape: Of the chain.
        x: Shape (N, D).
        tensors: Of the chain.
        mask: Of x, 1 where it is modelled and 0 elsewhere, in its type; None for all.
    """
    x, tensors, mask = x.contiguous(), contiguous(tensors), _whole(mask)
    z, ladj = torch.empty_like(x), x.new_empty(len(x))
    _call("forward", shape, x, tensors, mask, x, z, ladj)

    return z, ladj


def chain_backward(
    shape: ChainShape,
    x: Tensor,
    tensors: Sequence[Tensor],
    gz: Tensor,
    gl: Tensor,
    mask: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of x and of the tensors from those of both results.

    Those of W are only right where W may differ from 0.
    """
    x, tensors, mask = x.contiguous(), contiguous(tensors), _whole(mask)
    gz, gl = gz.contiguous(), gl.contiguous()
    gradients = list(map(torch.empty_like, (x, *tensors)))
    _call("backward", shape, x, tensors, mask, x, gz, gl, pointers(gradients))

    return gradients


def branch(shape: ChainShape, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """F and d of a chain of one step, both (N, D); its affine maps are not looked at."""
    x, tensors = x.contiguous(), contiguous(tensors)
    F, d = torch.empty_like(x), torch.empty_like(x)
    _call("branch", shape, x, tensors, x, F, d)

    return F, d


def solve(
    shape: ChainShape,
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
    y, tensors = y.contiguous(), contiguous(tensors)
    x = start.clone(memory_format=torch.contiguous_format)
    found = Root(
        x, torch.empty_like(x), x.new_empty(len(x)), x.new_empty(len(x), dtype=torch.long)
    )
    limits = ctypes.c_double(tolerance), ctypes.c_int(evaluations)
    _call("solve", shape, y, tensors, y, *found, *limits)

    return found


def _whole(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()


def _call(
    name: str, shape: ChainShape, x: Tensor, tensors: Sequence[Tensor], *arguments: Any
) -> None:
    numbers = _numbers(shape, x.shape, tensors[-1].dim() == 3, torch.get_num_threads())
    call(name, x.dtype, numbers, pointers(tensors), *arguments)


@lru_cache
def _numbers(shape: ChainShape, size: torch.Size, own: bool, threads: int) -> Any:
    """For x of a size, and biases that each row has of its own or shares."""
    layers, activation = len(shape.units) - 1, ACTIVATIONS[shape.activation]
    described = *size, len(shape.reverse), layers, activation, threads, own

    return int64s(*described, *shape.units, *shape.reverse)
