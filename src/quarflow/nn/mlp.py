r"""Plain networks as pure functions of x, with their derivative as a linear map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.nn.activations import Activation
from quarflow.nn.draws import normal_, uniform_

__all__ = ["BoundMLP", "Linearization", "StackedLinear"]


@dataclass(frozen=True)
class Linearization:
    r"""The derivative J of a network at N points: products with it, or the matrix itself.

    The slopes of the activations are all that is kept from the forward pass, so a product costs
    one matrix product per layer, with or without autograd.

    Attributes:
        weights: Weight matrices, (out, in).
        slopes: Derivatives of the activations after each layer but the last, (N, out).
    """

    weights: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    def jvp(self, v: Tensor) -> Tensor:
        """J v, for v of shape (N, D)."""
        t = fn.linear(v, self.weights[0])
        for weight, slope in zip(self.weights[1:], self.slopes, strict=True):
            t = fn.linear(slope * t, weight)

        return t

    def vjp(self, v: Tensor) -> Tensor:
        """v^T J, for v of shape (N, D)."""
        g = v @ self.weights[-1]
        for weight, slope in zip(self.weights[-2::-1], self.slopes[::-1], strict=True):
            g = (g * slope) @ weight

        return g

    def dense(self) -> Tensor:
        """J as matrices, shape (N, D, D): the work of D products."""
        jacobian = self.weights[0]
        for weight, slope in zip(self.weights[1:], self.slopes, strict=True):
            jacobian = weight @ (slope[..., None] * jacobian)

        return jacobian

    def rows(self, index: Tensor | slice) -> Linearization:
        """The derivative at some of the points."""
        return replace(self, slopes=tuple(s[index] for s in self.slopes))


@dataclass(frozen=True)
class BoundMLP:
    r"""One network with its effective weights and context bound: a pure function of x.

    Attributes:
        weights: Effective weight matrices, (out, in).
        biases: Shape (out), or (*, out) when a context of shape (*, C) is bound.
        activation: Gives value and derivative.
        gains: For each hidden layer a learned :math:`\beta > 0`, which turns the activation
            into :math:`\varphi(\beta x) / \beta`, of the same largest slope; empty for none.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: Activation
    gains: tuple[Tensor, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """The value, shape (*, out), for x of shape (*, in)."""
        return self._run(x)[0]

    def linearize(self, x: Tensor) -> tuple[Tensor, Linearization]:
        """The value and the derivative, for x of shape (N, in)."""
        value, slopes = self._run(x)

        return value, Linearization(self.weights, slopes)

    def _run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        slopes = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = fn.linear(x, weight, bias) if bias.dim() == 1 else fn.linear(x, weight) + bias
            if layer < len(self.weights) - 1:
                if self.gains:
                    x, slope = self.activation(self.gains[layer] * x)
                    x = x / self.gains[layer]
                else:
                    x, slope = self.activation(x)
                slopes.append(slope)

        return x, tuple(slopes)

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

        return replace(
            self,
            biases=tuple(
                b.expand(*batch_shape, b.shape[-1]).reshape(-1, b.shape[-1]) for b in self.biases
            ),
        )

    def rows(self, index: Tensor) -> BoundMLP:
        """The same flat network for some of its rows."""
        if not self.batch_shape:
            return self

        return replace(self, biases=tuple(b[index] for b in self.biases))


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
