r"""The masked convolutional network inside a residual step, which carries (value, diagonal)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.nn.activations import activation as lookup
from quarflow.nn.branch import MAX_SIGMA, units_per_dimension
from quarflow.nn.conv import CausalConv2d, Taps
from quarflow.nn.conv_fused import Pass, conv_value_and_diagonal
from quarflow.nn.conv_paper import dense_value_and_diagonal
from quarflow.nn.norms import convolution_bound, product_bound, spectral_bound
from quarflow.nn.scale import output_scale, refuse_overflow

IMPLEMENTATIONS = ("fused", "paper")
CONV_NORMS = ("dimension", "center", "operator")

__all__ = ["CONV_NORMS", "IMPLEMENTATIONS", "BoundConvBranch", "ConvBranch", "autocast_dtype"]


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast asks for where x is, None outside of it and for float64."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None

    return torch.get_autocast_dtype(kind)


@dataclass(frozen=True)
class BoundConvBranch:
    r"""One convolutional branch F with its effective weights: a pure function of x.

    Attributes:
        weights: Effective weights; first (C k, taps C), then (C k', C k), last (taps C, C k),
            of which the last is scaled already.
        blocks: Diagonal blocks of their centre taps, (C, k_out, k_in).
        biases: Shapes (C k_out).
        options: Activation, taps and how the pass is done.
        bound: The certified bound on abs(d), shape (C).
        reverse: Whether the order is reversed.
        implementation: ``fused``, or ``paper``: dense masked convolutions under autograd.
    """

    weights: tuple[Tensor, ...]
    blocks: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    options: Pass
    bound: Tensor
    reverse: bool
    implementation: str = "fused"

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value F(x) and diagonal d of its Jacobian, shape (N, H, W, C), as x.

        Under autocast the hidden units are in its type; F and d stay in that of x.
        """
        if self.implementation == "paper":
            F, d = dense_value_and_diagonal(
                x, self.weights, self.blocks, self.biases, self.options
            )
            low = autocast_dtype(x) is not None
        else:
            dtype = autocast_dtype(x)
            low, options = dtype is not None, replace(self.options, dtype=dtype)
            with torch.autocast(x.device.type, enabled=False):
                F, d = conv_value_and_diagonal(x, self.weights, self.blocks, self.biases, options)
        if low:
            # The exact d obeys the bound, so this can only undo rounding.
            d = torch.minimum(torch.maximum(d, -self.bound), self.bound)

        return F, d


class ConvBranch(nn.Module):
    r"""A stack of convolutional branches F, one per residual step of a scale.

    (activation,) 3x3, activation, 1x1, activation, 3x3, all causal; scaled by
    :math:`\sigma / (\theta + P)` (section 4.2), with one theta per channel and P a certified
    upper bound on the product of the layer norms:

    * ``norm="dimension"``: for each channel on its own, of the diagonal blocks of the centre
      taps. It bounds abs(d) by sigma and leaves all other weights free.
    * ``norm="center"``: of the whole centre taps (appendix C). It bounds abs(d) by sigma.
    * ``norm="operator"``: of the whole layers as linear maps of images. Lip(F) < sigma.

    Arguments:
        shape: (C, H, W).
        hidden_channels: Width of the hidden layers, rounded up to a multiple of C.
        reverse: For each step, whether its order is reversed.
        preactivation: For each step, whether an activation comes first.
        activation: One of ``elu``, ``sin``, ``lipswish``, ``tanh``.
        norm: ``dimension``, ``center`` or ``operator``.
        sigma: Strict bound on abs(d), in (0, 1).
        trick: Whether theta is learned; otherwise it stays at 0.
        kernel_size: Of the first and last layer, odd.
        recompute: Whether hidden units are computed anew in the backward pass.
        implementation: ``fused`` or ``paper``, the same numbers in another time.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> branch = ConvBranch((3, 4, 4), 12, reverse=[False, True], preactivation=[True, True])
        >>> F, d = branch.bind()[0](torch.randn(5, 4, 4, 3))  # rows of pixels
        >>> F.shape, d.shape
        (torch.Size([5, 4, 4, 3]), torch.Size([5, 4, 4, 3]))
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        hidden_channels: int,
        reverse: Sequence[bool],
        preactivation: Sequence[bool],
        activation: str = "lipswish",
        norm: str = "dimension",
        sigma: float = 0.97,
        trick: bool = True,
        kernel_size: int = 3,
        recompute: bool = True,
        implementation: str = "fused",
    ) -> None:
        super().__init__()
        if hidden_channels < 1:
            raise ValueError(f"hidden_channels must be at least 1, not {hidden_channels}.")
        if norm not in CONV_NORMS:
            raise ValueError(f"norm must be one of {CONV_NORMS}, not {norm!r}.")
        if not 0 < sigma <= MAX_SIGMA:
            raise ValueError(f"sigma must be above 0 and at most {MAX_SIGMA}, not {sigma}.")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}."
            )
        self.shape, self.norm, self.sigma = tuple(shape), norm, sigma
        self.reverse, self.preactivation = tuple(reverse), tuple(preactivation)
        self.activation, self._activation = activation, lookup(activation)
        self.recompute, self.implementation = recompute, implementation
        C = shape[0]
        k = units_per_dimension(hidden_channels, C)
        self.first = CausalConv2d(C, 1, k, reverse, kernel_size)
        self.middle = CausalConv2d(C, k, k, reverse, 1)
        self.last = CausalConv2d(C, k, 1, reverse, kernel_size)
        # softplus(-4) = 0.02: at first nearly all of the budget that sigma allows.
        start = torch.full((len(self.reverse), C), -4.0)
        self.theta_raw = nn.Parameter(start) if trick else None

    @property
    def layers(self) -> tuple[CausalConv2d, CausalConv2d, CausalConv2d]:
        """The three layers."""
        return self.first, self.middle, self.last

    @property
    def theta(self) -> Tensor:
        """The learnable slack of the Lipschitz Trick, >= 0, shape (T, C)."""
        if self.theta_raw is None:
            return self.first.bias.new_zeros(len(self.reverse), self.shape[0])

        return fn.softplus(self.theta_raw)

    def product(self, weights: Sequence[Tensor]) -> Tensor:
        r"""P, the certified bound on the product of the layer norms, shape (T, C) or (T, 1).

        Arguments:
            weights: Effective weights of the layers, (T, out, taps, in).
        """
        if self.norm == "dimension":
            return product_bound([layer.diagonal for layer in self.layers])
        if self.norm == "center":
            bounds = [spectral_bound(weight[:, :, -1])[:, None] for weight in weights]
        else:
            # A reversed layer is the mirror image of one that is not: its taps' norm is the same.
            bounds = [
                _layer_bound(weight, layer.taps[0], self.shape)[:, None]
                for weight, layer in zip(weights, self.layers, strict=True)
            ]

        return bounds[0] * bounds[1] * bounds[2]

    def bind(self) -> list[BoundConvBranch]:
        """Effective weights of all steps, computed once."""
        with torch.autocast(self.first.bias.device.type, enabled=False):
            weights = [layer.weight() for layer in self.layers]
            P = self.product(weights)  # (T, C) or (T, 1)
            scale = output_scale(P, self.theta_raw, self.sigma)
            first, middle, last = weights
            refuse_overflow(
                (first.flatten(2), middle.flatten(2), last.transpose(1, 2).flatten(1, 2)),
                [layer.bias for layer in self.layers],
                scale,
                last.shape[2],
            )
            bound = scale.bound.to(last.dtype).expand(len(last), self.shape[0])
            W = (
                first.flatten(2),  # (T, C k, taps C)
                middle.flatten(2),  # (T, C k, C k)
                # (T, C, taps, C k) to products that are summed over taps: (T, taps C, C k)
                scale.times(last).transpose(1, 2).flatten(1, 2),
            )
            blocks: list[Tensor] = [layer.diagonal for layer in self.layers]
            biases: list[Tensor] = [layer.bias for layer in self.layers]
            blocks[-1], biases[-1] = scale.times(blocks[-1]), scale.times(biases[-1])

        return [
            BoundConvBranch(
                w,
                d,
                b,
                Pass(self._activation, taps, before, self.recompute, reverse),
                limit,
                reverse,
                self.implementation,
            )
            for w, d, b, taps, before, limit, reverse in zip(
                zip(*(w.unbind() for w in W), strict=True),
                zip(*(d.unbind() for d in blocks), strict=True),
                zip(*(b.unbind() for b in biases), strict=True),
                self.first.taps,
                self.preactivation,
                bound.unbind(),
                self.reverse,
                strict=True,
            )
        ]

    def extra_repr(self) -> str:
        """Options, for printing."""
        return (
            f"shape={self.shape}, activation={self.activation!r}, norm={self.norm!r}, "
            f"sigma={self.sigma}, recompute={self.recompute}"
        )


def _layer_bound(weight: Tensor, taps: Taps, shape: Sequence[int]) -> Tensor:
    if len(taps) == 1:
        return spectral_bound(weight.flatten(2))

    return convolution_bound(weight, taps, (shape[1], shape[2]))
