r"""Calling the kernels of the hidden layers of a convolutional branch, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quarflow.backends.cpu.calls import ACTIVATIONS, MAX_LAYERS, call, pointers, readable

__all__ = ["Network", "backward", "forward", "usable"]


class Network(NamedTuple):
    """Layers of which the first and the last join all channels.

    Attributes:
        weights: W; the first reads gathered taps, the last gives products for each tap.
        blocks: B, shapes (C, k_out, k_in).
        biases: b, of all layers but the last.
        activation: Its name.
        reverse: Whether channels depend on later ones.
    """

    weights: Sequence[Tensor]
    blocks: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str
    reverse: bool

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, contiguous."""
        return [t.contiguous() for part in self[:3] for t in part]

    def numbers(self, A: Tensor, tangents: bool) -> list[int]:
        """As the kernels read them."""
        units = [self.blocks[0].shape[-1], *[b.shape[-2] for b in self.blocks]]

        return [
            *(len(A), len(self.blocks[0]), len(self.weights), ACTIVATIONS[self.activation]),
            *(torch.get_num_threads(), A.shape[1], len(self.weights[-1])),
            *(tangents, self.reverse, *units),
        ]


def usable(network: Network, *tensors: Tensor) -> bool:
    """Whether the kernels can compute this."""
    return (
        network.activation in ACTIVATIONS
        and 1 < len(network.weights) <= MAX_LAYERS
        and readable((*tensors, *network.weights, *network.blocks, *network.biases))
    )


def forward(network: Network, A: Tensor, slopes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Products (pixels, taps C) of the last layer, and diagonals (pixels, C).

    Arguments:
        network: The layers.
        A: Gathered taps, shape (pixels, taps C).
        slopes: Tangents that enter, shape (pixels, C), or None where they are 1.
    """
    tensors, A = network.tensors, A.contiguous()
    slopes = None if slopes is None else slopes.contiguous()
    y = A.new_empty(len(A), len(network.weights[-1]))
    d = A.new_empty(len(A), len(network.blocks[0]))
    numbers = network.numbers(A, slopes is not None)
    call("pixels_forward", A.dtype, numbers, pointers(tensors), A, slopes, y, d)

    return y, d


def backward(
    network: Network, A: Tensor, slopes: Tensor | None, gy: Tensor, gd: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of A, of the slopes, and of weights, blocks and biases; those of weights are only
    right where these may differ from 0.
    """
    tensors, A, gy, gd = network.tensors, A.contiguous(), gy.contiguous(), gd.contiguous()
    slopes = None if slopes is None else slopes.contiguous()
    found = [torch.empty_like(t) for t in tensors]
    of_A = torch.empty_like(A)
    of_slopes = None if slopes is None else torch.empty_like(slopes)
    # without tangents nothing is written to their place
    places = pointers([of_A, of_A if of_slopes is None else of_slopes, *found])
    numbers = network.numbers(A, slopes is not None)
    call("pixels_backward", A.dtype, numbers, pointers(tensors), A, slopes, gy, gd, places)
    L = len(network.weights)

    return of_A, of_slopes, found[:L], found[L : 2 * L], found[2 * L :]
