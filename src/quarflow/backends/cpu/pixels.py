r"""Calling the kernels of the hidden layers of a convolutional branch, pixel by pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quarflow.backends.cpu.calls import ACTIVATIONS, call, contiguous, int64s, pointers
from quarflow.backends.shapes import PixelLayers

__all__ = ["pixels_backward", "pixels_forward"]


def pixels_forward(layers: PixelLayers, A: Tensor, slopes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Products (pixels, taps C) of the last layer, and diagonals (pixels, C).

    Arguments:
        layers: The layers.
        A: Gathered taps, shape (pixels, taps C).
        slopes: Tangents that enter, shape (pixels, C), or None where they are 1.
    """
    tensors, A = contiguous(layers.tensors), A.contiguous()
    slopes = None if slopes is None else slopes.contiguous()
    y = A.new_empty(len(A), len(layers.weights[-1]))
    d = A.new_empty(len(A), len(layers.blocks[0]))
    numbers = _numbers(layers, A, slopes is not None)
    call("pixels_forward", A.dtype, numbers, pointers(tensors), A, slopes, y, d)

    return y, d


def pixels_backward(
    layers: PixelLayers, A: Tensor, slopes: Tensor | None, gy: Tensor, gd: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of A, of the slopes, and of weights, blocks and biases; those of weights are only
    right where these may differ from 0.
    """
    tensors = contiguous(layers.tensors)
    A, gy, gd = A.contiguous(), gy.contiguous(), gd.contiguous()
    slopes = None if slopes is None else slopes.contiguous()
    found = list(map(torch.empty_like, tensors))
    of_A = torch.empty_like(A)
    of_slopes = None if slopes is None else torch.empty_like(slopes)
    # without tangents nothing is written to their place
    places = pointers([of_A, of_A if of_slopes is None else of_slopes, *found])
    numbers = _numbers(layers, A, slopes is not None)
    call("pixels_backward", A.dtype, numbers, pointers(tensors), A, slopes, gy, gd, places)
    L = len(layers.weights)

    return of_A, of_slopes, found[:L], found[L : 2 * L], found[2 * L :]


def _numbers(layers: PixelLayers, A: Tensor, tangents: bool) -> Any:
    units = (layers.blocks[0].shape[-1], *[b.shape[-2] for b in layers.blocks])
    sizes = len(A), len(layers.blocks[0]), len(layers.weights), ACTIVATIONS[layers.activation]
    reads, gives = A.shape[1], len(layers.weights[-1])

    return int64s(*sizes, torch.get_num_threads(), reads, gives, tangents, layers.reverse, *units)
