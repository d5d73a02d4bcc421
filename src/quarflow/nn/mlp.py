r"""Plain networks as pure functions of x, with their derivative as a linear map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quarflow.nn.draws import normal_, uniform_
from quarflow.ops.activations import Activation
from quarflow.ops.linearization import Linearization, product

__all__ = ["BoundMLP", "StackedLinear"]


@dataclass(frozen=True)
class BoundMLP:
    r"""One network with its effective weights and context bound: a pure function of vectors.

    Attributes:
        weights: Effective weight matrices, (out, in), or kernels, (out, in, size, size).
        biases: Shape (out), or (*, out) when a context of shape (*, C) is bound.
        activation: Gives value and derivative.
        gains: For each activation, the last ones if there are fewer than layers, a learned
            :math:`\beta > 0`, which turns it into :math:`\varphi(\beta x) / \beta`, of the same
            largest slope; empty for none.
        shape: (C, H, W) of images, whose vectors are (*, C H W).
        preactivation: Whether an activation comes before the first layer.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: Activation
    gains: tuple[Tensor, ...] = ()
    shape: tuple[int, ...] | None = None
    preactivation: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """The value, shape (*, out), for x of shape (*, in)."""
        return self._run(x)[0]

    def linearize(self, x: Tensor) -> tuple[Tensor, Linearization]:
        """The value and the derivative, for x of shape (N, in)."""
        value, slopes = self._run(x)

        return value, Linearization(self.weights, slopes, self.shape)

    def _run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        slopes, ungained = [], len(self.weights) - len(self.gains)
        h = x if self.shape is None else x.reshape(-1, *self.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            slope = None
            if layer or self.preactivation:
                if self.gains:
                    gain = self.gains[layer - ungained]
                    h, slope = self.activation(gain * h)
                    h = h / gain
                else:
                    h, slope = self.activation(h)
            slopes.append(slope)
            h = product(h, weight, bias)

        return h if self.shape is None else h.reshape(x.shape).to(x.dtype), tuple(slopes)

    @property
    def event_dim(self) -> int:
        """1 for vectors, 3 for images."""
        return 1 if self.shape is None else 3

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that the value depends on, besides x."""
        return (*self.weights, *self.biases, *self.gains)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> BoundMLP:
        """The same network with other tensors, in the order of :attr:`tensors`."""
        layers = len(self.weights)

        return replace(
            self,
            weights=tensors[:layers],
            biases=tensors[layers : 2 * layers],
            gains=tensors[2 * layers :],
        )

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the bound context."""
        return self.biases[0].shape[:-1]

    def flat(self, batch_shape: torch.Size) -> BoundMLP:
        """The same network for a batch flattened to (N, in): context repeated where it must be."""
        if not self.batch_shape:
            return self
        biases = [b.expand(*batch_shape, b.shape[-1]).flatten(0, -2) for b in self.biases]

        return replace(self, biases=tuple(biases))

    def rows(self, index: Tensor) -> BoundMLP:
        """The same flat network for some of its rows."""
        if not self.batch_shape:
            return self

        return replace(self, biases=tuple([b[index] for b in self.biases]))


class StackedLinear(nn.Module):
    r"""A stack of linear layers of equal shape, one per step of a flow.

    Arguments:
        steps: Number T of layers.
        inputs, outputs: Their widths.
        context: Number of context variables, connected to every output.

    Example:
        >>> layer = StackedLinear(3, 2, 8, context=1)
        >>> layer.biases(torch.zeros(5, 1)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, steps: int, inputs: int, outputs: int, context: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform_(torch.empty(steps, outputs, inputs)))
        self.bias = nn.Parameter(uniform_(torch.empty(steps, outputs)))
        self.context = (
            nn.Parameter(normal_(torch.empty(steps, outputs, context), std=context**-0.5))
            if context
            else None
        )
        with torch.no_grad():
            self.weight.mul_(inputs**-0.5)
            self.bias.mul_(inputs**-0.5)

    def biases(self, c: Tensor | None) -> Tensor:
        """Biases with the context bound, shape (T, out), or (T, *, out) for c of shape (*, C)."""
        if self.context is None or c is None:
            return self.bias
        steps, outputs = self.bias.shape

        return self.bias.reshape(steps, *(1,) * (c.dim() - 1), outputs) + torch.stack(
            [c @ weight.mT for weight in self.context]
        )

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        steps, outputs, inputs = self.weight.shape
        context = "" if self.context is None else f", context={self.context.shape[-1]}"

        return f"{inputs} -> {outputs}, steps={steps}{context}"
