r"""Convolutional networks with a certified Lipschitz constant below 1, not masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.nn.activations import Activation
from quarflow.nn.activations import activation as lookup
from quarflow.nn.draws import uniform_
from quarflow.nn.lipschitz import MAX_COEFF
from quarflow.nn.norms import convolution_bound, spectral_bound
from quarflow.nn.scale import limited

__all__ = ["BoundConvNet", "ConvLinearization", "LipschitzConv2d", "LipschitzConvNet"]


@dataclass(frozen=True)
class ConvLinearization:
    r"""The derivative J of a convolutional network at N images, as a map of vectors (N, C H W).

    Attributes:
        weights: Kernels, (out, in, size, size).
        slopes: Derivatives of the activations before each layer, (N, channels, H, W); the first
            is None where no activation comes before the first layer.
        shape: (C, H, W).
    """

    weights: tuple[Tensor, ...]
    slopes: tuple[Tensor | None, ...]
    shape: tuple[int, int, int]

    def jvp(self, v: Tensor) -> Tensor:
        """J v, for v of shape (N, C H W)."""
        t = v.reshape(-1, *self.shape)
        for weight, slope in zip(self.weights, self.slopes, strict=True):
            t = fn.conv2d(t if slope is None else slope * t, weight, padding=weight.shape[-1] // 2)

        return t.reshape(v.shape).to(v.dtype)

    def vjp(self, v: Tensor) -> Tensor:
        """v^T J, for v of shape (N, C H W)."""
        g = v.reshape(-1, *self.shape)
        for weight, slope in zip(self.weights[::-1], self.slopes[::-1], strict=True):
            g = fn.conv_transpose2d(g, weight, padding=weight.shape[-1] // 2)
            g = g if slope is None else g * slope

        return g.reshape(v.shape).to(v.dtype)

    def dense(self) -> Tensor:
        """J as matrices, (N, D, D): the work of D products."""
        D = self.shape[0] * self.shape[1] * self.shape[2]
        some = next(s for s in self.slopes if s is not None)
        basis = torch.eye(D, dtype=some.dtype, device=some.device)

        return torch.stack([self.vjp(row.expand(len(some), D)) for row in basis], 1)

    def rows(self, index: Tensor | slice) -> ConvLinearization:
        """The derivative at some of the images."""
        return replace(self, slopes=tuple(s if s is None else s[index] for s in self.slopes))


@dataclass(frozen=True)
class BoundConvNet:
    r"""One convolutional network with its effective weights: a pure function of vectors.

    Attributes:
        weights: Kernels, (out, in, size, size).
        biases: Shapes (out).
        gains: For each activation a learned :math:`\beta > 0`, which turns it into
            :math:`\varphi(\beta x) / \beta`, of the same largest slope.
        activation: Gives value and derivative.
        shape: (C, H, W).
        preactivation: Whether an activation comes before the first layer.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    gains: tuple[Tensor, ...]
    activation: Activation
    shape: tuple[int, int, int]
    preactivation: bool

    def __call__(self, x: Tensor) -> Tensor:
        """The value, shape (N, C H W), as x."""
        return self.linearize(x)[0]

    def linearize(self, x: Tensor) -> tuple[Tensor, ConvLinearization]:
        """The value and the derivative, for x of shape (N, C H W)."""
        h, slopes = x.reshape(-1, *self.shape), []
        layers = zip(self.weights, self.biases, self.gains, strict=True)
        for layer, (weight, bias, gain) in enumerate(layers):
            slope = None
            if layer or self.preactivation:
                h, slope = self.activation(gain * h)
                h = h / gain
            slopes.append(slope)
            h = fn.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)

        return (
            h.reshape(x.shape).to(x.dtype),
            ConvLinearization(self.weights, tuple(slopes), self.shape),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that the value depends on, besides x."""
        return (*self.weights, *self.biases, *self.gains)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> BoundConvNet:
        """The same network with other tensors, in the order of :attr:`tensors`."""
        n = len(self.weights)

        return replace(
            self, weights=tensors[:n], biases=tensors[n : 2 * n], gains=tensors[2 * n :]
        )


class LipschitzConv2d(nn.Module):
    r"""A stack of convolutions of norm at most ``coeff``, by soft normalisation.

    .. math:: \hat W = W \,/\, \max(1, \|W\| / \text{coeff})

    with a certified upper bound on the norm of the zero-padded convolution at the size of the
    image (:func:`quarflow.nn.convolution_bound`), computed from the weights each time.

    Arguments:
        steps: Number T of convolutions.
        inputs, outputs: Their channels.
        kernel_size: Odd.
        size: Height and width of the image.
        coeff: Largest norm, in (0, 1).

    Example:
        >>> kernel, bound = LipschitzConv2d(2, 3, 8, 3, (5, 5), coeff=0.9).effective()
        >>> kernel.shape, bool(bound.max() <= 0.9)
        (torch.Size([2, 8, 3, 3, 3]), True)
    """

    def __init__(
        self,
        steps: int,
        inputs: int,
        outputs: int,
        kernel_size: int,
        size: tuple[int, int],
        coeff: float,
    ) -> None:
        super().__init__()
        self.size, self.coeff = size, coeff
        shape = (steps, outputs, inputs, kernel_size, kernel_size)
        self.weight = nn.Parameter(uniform_(torch.empty(shape)))
        self.bias = nn.Parameter(uniform_(torch.empty(steps, outputs)))
        with torch.no_grad():
            self.weight.mul_((inputs * kernel_size**2) ** -0.5)
            self.bias.mul_((inputs * kernel_size**2) ** -0.5)

    def effective(self) -> tuple[Tensor, Tensor]:
        """Effective kernels, (T, out, in, size, size), and the bounds on their norms, (T)."""
        width = self.weight.shape[-1]
        if width == 1:
            norm = spectral_bound(self.weight.flatten(2))
        else:
            reach = width // 2
            taps = [(i - reach, j - reach) for i in range(width) for j in range(width)]
            norm = convolution_bound(self.weight.flatten(3).mT, taps, self.size)

        return limited(self.weight, norm, self.coeff)

    def extra_repr(self) -> str:
        """Shapes and coefficient, for printing."""
        steps, outputs, inputs, width, _ = self.weight.shape

        return f"{inputs} -> {outputs}, kernel_size={width}, steps={steps}, coeff={self.coeff}"


class LipschitzConvNet(nn.Module):
    r"""A stack of convolutional networks F with Lip(F) < 1, one per residual step of a scale.

    (LipSwish,) 3x3, LipSwish, 1x1, LipSwish, 3x3, each convolution of norm at most ``coeff``.

    Reference:
        | Residual Flows for Invertible Generative Modeling (Chen et al., 2019)
        | https://arxiv.org/abs/1906.02735

    Arguments:
        shape: (C, H, W).
        hidden_channels: Width of the hidden layers.
        preactivation: For each step, whether an activation comes first.
        activation: ``lipswish``, ``elu``, ``sin`` or ``tanh``.
        coeff: Largest norm of a layer, in (0, 1).

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> network, bound = LipschitzConvNet((1, 4, 4), 8, [True, True]).bind()[0]
        >>> network(torch.randn(5, 16)).shape, bool(bound <= 0.98**3)
        (torch.Size([5, 16]), True)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        hidden_channels: int,
        preactivation: Sequence[bool],
        activation: str = "lipswish",
        coeff: float = 0.98,
    ) -> None:
        super().__init__()
        if hidden_channels < 1:
            raise ValueError(f"hidden_channels must be at least 1, not {hidden_channels}.")
        if not 0 < coeff <= MAX_COEFF:
            raise ValueError(f"coeff must be above 0 and at most {MAX_COEFF}, not {coeff}.")
        self.shape, self.preactivation = shape, tuple(preactivation)
        self.activation, self._activation = activation, lookup(activation)
        C, H, W = shape
        steps = len(self.preactivation)
        self.first = LipschitzConv2d(steps, C, hidden_channels, 3, (H, W), coeff)
        self.middle = LipschitzConv2d(steps, hidden_channels, hidden_channels, 1, (H, W), coeff)
        self.last = LipschitzConv2d(steps, hidden_channels, C, 3, (H, W), coeff)
        # softplus(0.5) = 0.97, where Chen et al. start.
        self.gain_raw = nn.Parameter(torch.full((steps, 3), 0.5))

    def bind(self) -> list[tuple[BoundConvNet, Tensor]]:
        """The networks with effective weights, and the certified bounds on Lip(F)."""
        with torch.autocast(self.gain_raw.device.type, enabled=False):
            layers = (self.first, self.middle, self.last)
            weights, bounds = zip(*(layer.effective() for layer in layers), strict=True)
            product = bounds[0] * bounds[1] * bounds[2]  # (T)
            gains = fn.softplus(self.gain_raw)  # (T, 3)

        return [
            (
                BoundConvNet(
                    tuple(w[t] for w in weights),
                    tuple(layer.bias[t] for layer in layers),
                    tuple(gains[t].unbind()),
                    self._activation,
                    self.shape,
                    before,
                ),
                product[t],
            )
            for t, before in enumerate(self.preactivation)
        ]

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"shape={self.shape}, activation={self.activation!r}"
