r"""Networks with a certified Lipschitz constant below 1, not masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.nn.draws import uniform_
from quarflow.nn.lipschitz_trick import limited
from quarflow.nn.mlp import BoundMLP, StackedLinear
from quarflow.ops.activations import activation as lookup
from quarflow.ops.bounds import convolution_bound, spectral_bound

__all__ = ["LipschitzBranch", "LipschitzConvNet", "LipschitzLinear", "LipschitzMLP"]

MAX_COEFF = 0.9999  # so that Lip(F) stays below 1 in float32


class LipschitzLinear(StackedLinear):
    r"""A stack of linear layers of spectral norm at most ``coeff``, by soft normalisation.

    .. math:: \hat W = W \,/\, \max(1, \|W\| / \text{coeff})

    where the norm is a certified upper bound (:func:`quarflow.nn.spectral_bound`) that is
    computed from the weights each time: there is no power iteration to refresh after a step of
    the optimiser, or after weights are loaded or averaged.

    Arguments:
        steps: Number T of layers.
        inputs, outputs: Their widths.
        context: Number of context variables; they do not count for the norm.
        coeff: Largest norm, in (0, 1).

    Example:
        >>> weight, bound = LipschitzLinear(2, 3, 8, coeff=0.9).effective()
        >>> bool((torch.linalg.matrix_norm(weight, 2) <= bound).all() and bound.max() <= 0.9)
        True
    """

    def __init__(
        self, steps: int, inputs: int, outputs: int, context: int = 0, coeff: float = 0.97
    ) -> None:
        super().__init__(steps, inputs, outputs, context)
        self.coeff = coeff

    def effective(self) -> tuple[Tensor, Tensor]:
        """Effective weights, shape (T, out, in), and the bounds on their norms, shape (T)."""
        return limited(self.weight, spectral_bound(self.weight), self.coeff)

    def extra_repr(self) -> str:
        """Shapes and coefficient, for printing."""
        return f"{super().extra_repr()}, coeff={self.coeff}"


def _check_coeff(coeff: float) -> None:
    if not 0 < coeff <= MAX_COEFF:
        raise ValueError(f"coeff must be above 0 and at most {MAX_COEFF}, not {coeff}.")


@dataclass(frozen=True)
class LipschitzBranch:
    """A branch F with the certified bound on Lip(F), a scalar tensor."""

    network: BoundMLP
    bound: Tensor


class LipschitzMLP(nn.Module):
    r"""A stack of networks F with Lip(F) < 1, one per residual step of a flow.

    The bound on Lip(F) is the product of the bounds on the layer norms, at most ``coeff`` to the
    number of layers, since no activation is steeper than 1. The context enters every layer as a
    bias, without constraint: it does not count for the Lipschitz constant in x.

    Each hidden layer of each step has a learned :math:`\beta` and applies
    :math:`\varphi(\beta x) / \beta`, for LipSwish that of Chen et al. (2019, section 4.2).

    Arguments:
        features: Number D of dimensions.
        hidden_features: Widths of the hidden layers.
        steps: Number T of networks.
        context: Number of context variables.
        activation: ``lipswish``, ``elu``, ``sin`` or ``tanh``.
        coeff: Largest norm of a layer, in (0, 1).

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> branch = LipschitzMLP(2, (16,), steps=3).bind()[0]
        >>> branch.network(torch.randn(5, 2)).shape, bool(branch.bound <= 0.97**2)
        (torch.Size([5, 2]), True)
    """

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int],
        steps: int,
        context: int = 0,
        activation: str = "lipswish",
        coeff: float = 0.97,
    ) -> None:
        super().__init__()
        _check_coeff(coeff)
        self._activation = lookup(activation)
        self.activation = activation
        widths = [features, *hidden_features, features]
        self.layers = nn.ModuleList(
            LipschitzLinear(steps, a, b, context, coeff) for a, b in pairwise(widths)
        )
        # softplus(0.5) = 0.97, where Chen et al. start.
        self.gain_raw = nn.Parameter(torch.full((steps, len(hidden_features)), 0.5))

    def bind(self, c: Tensor | None = None) -> list[LipschitzBranch]:
        """Effective weights of all steps, computed once, with the context c (*, C) bound."""
        layers = [layer for layer in self.layers if isinstance(layer, LipschitzLinear)]
        weights, bounds = zip(*(layer.effective() for layer in layers), strict=True)
        biases = [layer.biases(c) for layer in layers]
        product = torch.stack(bounds).prod(0)  # (T)
        gains = fn.softplus(self.gain_raw)  # (T, hidden layers)

        return [
            LipschitzBranch(
                BoundMLP(
                    tuple(w[t] for w in weights),
                    tuple(b[t] for b in biases),
                    self._activation,
                    tuple(gains[t].unbind()),
                ),
                product[t],
            )
            for t in range(len(product))
        ]

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"activation={self.activation!r}"


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
        >>> branch = LipschitzConvNet((1, 4, 4), 8, [True, True]).bind()[0]
        >>> branch.network(torch.randn(5, 16)).shape, bool(branch.bound <= 0.98**3)
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
        _check_coeff(coeff)
        self.shape, self.preactivation = shape, tuple(preactivation)
        self.activation, self._activation = activation, lookup(activation)
        C, H, W = shape
        steps = len(self.preactivation)
        self.first = LipschitzConv2d(steps, C, hidden_channels, 3, (H, W), coeff)
        self.middle = LipschitzConv2d(steps, hidden_channels, hidden_channels, 1, (H, W), coeff)
        self.last = LipschitzConv2d(steps, hidden_channels, C, 3, (H, W), coeff)
        # softplus(0.5) = 0.97, where Chen et al. start.
        self.gain_raw = nn.Parameter(torch.full((steps, 3), 0.5))

    def bind(self) -> list[LipschitzBranch]:
        """Effective weights of all steps, computed once."""
        with torch.autocast(self.gain_raw.device.type, enabled=False):
            layers = (self.first, self.middle, self.last)
            weights, bounds = zip(*(layer.effective() for layer in layers), strict=True)
            product = bounds[0] * bounds[1] * bounds[2]  # (T)
            gains = fn.softplus(self.gain_raw)  # (T, 3)

        return [
            LipschitzBranch(
                BoundMLP(
                    tuple([w[t] for w in weights]),
                    tuple([layer.bias[t] for layer in layers]),
                    self._activation,
                    tuple(gains[t].unbind()),
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
