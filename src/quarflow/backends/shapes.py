"""What operations are asked for: their sizes and options, which operations and backends share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["ChainShape", "Packing", "PixelLayers", "Root"]


class ChainShape(NamedTuple):
    """A chain of residual steps, besides its tensors.

    Attributes:
        units: Units per dimension k, from that of x, 1, to that of F, 1.
        activation: Its name.
        reverse: For each step, whether its weights are upper triangular.
    """

    units: tuple[int, ...]
    activation: str
    reverse: tuple[bool, ...]

    @classmethod
    def of(
        cls, blocks: Sequence[Tensor], activation: str, reverse: tuple[bool, ...]
    ) -> ChainShape:
        """From the diagonal blocks of the layers, (*, D, k_out, k_in)."""
        return cls((1, *[b.shape[-2] for b in blocks]), activation, reverse)


class Packing(NamedTuple):
    """Where the weights of successive layers stand in dense matrices, T of them for each layer.

    Attributes:
        features: Number D of dimensions.
        units: Units per dimension, from those of the first layer's input to those of the last
            one's output.
        reverse: For each step, whether its matrices are upper triangular.
    """

    features: int
    units: tuple[int, ...]
    reverse: tuple[bool, ...]


class PixelLayers(NamedTuple):
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
        """All of them."""
        return [*self.weights, *self.blocks, *self.biases]


class Root(NamedTuple):
    """Roots x (N, D), slopes there (N, D) if asked for, residuals (N) and evaluations (N)."""

    x: Tensor
    slope: Tensor | None
    residual: Tensor
    evaluations: Tensor
