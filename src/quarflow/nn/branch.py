r"""The masked networks inside a residual step, which carries (value, diagonal)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.backends.shapes import ChainShape
from quarflow.nn.bound import BoundBranches
from quarflow.nn.lipschitz_trick import (
    check_sigma,
    lipschitz_trick,
    refuse_overflow,
    theta_parameter,
)
from quarflow.nn.triangular import TriangularLayer
from quarflow.ops.activations import activation as lookup
from quarflow.ops.bounds import convolution_bound, product_bound, spectral_bound
from quarflow.ops.packing import Packing, assemble
from quarflow.ops.value_diagonal import Pass

IMPLEMENTATIONS = ("fused", "paper")

__all__ = ["Branch", "ConvBranch", "units_per_dimension"]


def units_per_dimension(width: int, features: int) -> int:
    """Units per dimension k so that the hidden width k * D is at least ``width``.

    Example:
        >>> units_per_dimension(128, 10)
        13
    """
    return -(-width // features)


class _Branches(nn.Module):
    """What branches of vectors and of images have in common: norms, the trick, binding.

    Arguments:
        features: Number D of dimensions; of images, of channels.
        reverse: For each step, whether its order is reversed.
        activation, norm, sigma: As in :class:`Branch`.
        units: Units per dimension, from that of x, 1, to that of F, 1.
    """

    norms: ClassVar[tuple[str, ...]]
    theta_raw: nn.Parameter | None

    def __init__(
        self,
        features: int,
        reverse: Sequence[bool],
        activation: str,
        norm: str,
        sigma: float,
        units: Sequence[int],
    ) -> None:
        super().__init__()
        if norm not in self.norms:
            raise ValueError(f"norm must be one of {self.norms}, not {norm!r}.")
        check_sigma(sigma)
        self.features, self.norm, self.sigma = features, norm, sigma
        self.reverse, self.activation = tuple(reverse), activation
        self._activation = lookup(activation)
        self.packing = Packing(features, tuple(units), self.reverse)
        self.shape_of_chain = ChainShape(self.packing.units, activation, self.reverse)

    def stack(self) -> list[TriangularLayer]:
        """The layers, first to last."""
        raise NotImplementedError

    @property
    def theta(self) -> Tensor:
        """The learnable slack of the Lipschitz Trick, >= 0, shape (T, D)."""
        if self.theta_raw is None:
            return self.stack()[0].bias.new_zeros(len(self.reverse), self.features)

        return fn.softplus(self.theta_raw)

    def layer_bound(self, weight: Tensor, layer: TriangularLayer) -> Tensor:
        """The bound on the norm of a whole layer, shape (T)."""
        return spectral_bound(weight)

    def product(self, layers: Sequence[TriangularLayer], weights: Sequence[Tensor]) -> Tensor:
        r"""P, the certified bound on the product of the layer norms, shape (T, D) or (T, 1).

        Arguments:
            layers: The layers, first to last.
            weights: Their effective weights.
        """
        if self.norm == "dimension":
            return product_bound([layer.diagonal for layer in layers])
        product = self.layer_bound(weights[0], layers[0])
        for weight, layer in zip(weights[1:], layers[1:], strict=True):
            product = product * self.layer_bound(weight, layer)

        return product[:, None]

    def bind(self, c: Tensor | None = None) -> BoundBranches:
        r"""Effective weights of all steps, computed once, with the context bound.

        Arguments:
            c: The context, shape (*, C), or None.
        """
        layers = self.stack()
        with torch.autocast(layers[0].bias.device.type, enabled=False):
            weights = self.weights(layers)
            blocks, biases = [], []
            for layer in layers:
                # Views: what is bound stays of its type when the module is moved to another one.
                blocks.append(layer.diagonal.view_as(layer.diagonal))
                bias = layer.bias if c is None else layer.biases(c)
                biases.append(bias.view_as(bias))
            scale = lipschitz_trick(self.theta_raw, self.sigma, self.product(layers, weights))
            if not torch.is_grad_enabled():  # training has an eye on its loss
                refuse_overflow(weights, [layer.bias for layer in layers], scale)
            weights[-1], blocks[-1] = scale.times(weights[-1]), scale.times(blocks[-1])
            last = biases[-1]  # (T, D) or (T, *, D)
            biases[-1] = scale.times(last.movedim(-1, 1)).movedim(1, -1)
            bound = scale.bound.to(last.dtype).expand(len(last), self.features)
        matrices = self.flattened(weights)

        return BoundBranches(
            matrices, tuple(blocks), tuple(biases), self.passes(), bound, self.shape_of_chain
        )

    @torch.no_grad()
    def vanish(self) -> None:
        """Make all branches 0 everywhere, so that the steps do nothing."""
        for parameter in self.stack()[-1].parameters():
            parameter.zero_()

    @torch.no_grad()
    def calm(self) -> None:
        """Start as 0 everywhere, and with half of the budget that sigma allows."""
        self.vanish()
        if self.theta_raw is not None:
            self.theta_raw.fill_(1.0)

    def weights(self, layers: Sequence[TriangularLayer]) -> list[Tensor]:
        """Effective weights of the layers, not scaled."""
        return [layer.weight() for layer in layers]

    def flattened(self, weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Effective weights as matrices, as the pass reads them."""
        return tuple(weights)

    def passes(self) -> tuple[Pass, ...]:
        """For each step, what its pass does."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"activation={self.activation!r}, norm={self.norm!r}, sigma={self.sigma}"


class Branch(_Branches):
    r"""A stack of branches F of equal shape, one per residual step of a flow.

    The output is scaled by :math:`\sigma / (\theta + P)`, see
    :mod:`quarflow.nn.lipschitz_trick`, with P a certified upper bound on the product of the
    layer norms:

    * ``norm="dimension"``: for each dimension on its own, of the diagonal blocks. It bounds
      abs(d) by sigma, hence f is increasing in each own variable and a global bijection, and
      leaves the off-diagonal weights free.
    * ``norm="operator"``: of the whole masked layers (the paper's section 4.2). Lip(F) < sigma.

    Arguments:
        features: Number D of dimensions.
        hidden_features: Widths of the hidden layers, rounded up to a multiple of D.
        reverse: For each step, whether its order is reversed.
        context: Number of context variables.
        activation: One of ``elu``, ``sin``, ``lipswish``, ``tanh``.
        norm: ``dimension`` or ``operator``.
        sigma: Strict bound on abs(d), in (0, 1).
        trick: Whether theta is learned; otherwise it stays at 0.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> branch = Branch(3, (8, 8), reverse=[False, True])
        >>> F, d = branch.bind()[0](torch.randn(5, 3))
        >>> F.shape, d.shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    norms = ("dimension", "operator")

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int],
        reverse: Sequence[bool],
        context: int = 0,
        activation: str = "sin",
        norm: str = "dimension",
        sigma: float = 0.97,
        trick: bool = True,
    ) -> None:
        _check(features, hidden_features, context)
        units = [1, *(units_per_dimension(h, features) for h in hidden_features), 1]
        super().__init__(features, reverse, activation, norm, sigma, units)
        self._passes = tuple([Pass(self._activation, r) for r in self.reverse])
        self.layers = nn.ModuleList(
            TriangularLayer(features, a, b, reverse, context) for a, b in pairwise(units)
        )
        self.theta_raw = theta_parameter(len(self.reverse), features) if trick else None

    def stack(self) -> list[TriangularLayer]:
        """The layers, first to last."""
        return list(self.layers)  # type: ignore[arg-type]

    def weights(self, layers: Sequence[TriangularLayer]) -> list[Tensor]:
        """Effective weights of the layers, not scaled, all put together at once."""
        off, on = [layer.off_diagonal for layer in layers], [layer.diagonal for layer in layers]

        return list(assemble(off, on, self.packing))

    def passes(self) -> tuple[Pass, ...]:
        """For each step, what its pass does."""
        return self._passes

    @torch.no_grad()
    def sharpen(self, sharpness: Tensor) -> None:
        r"""Spread the frequencies of the first hidden units over a range, per dimension.

        A density with spikes needs slopes that change within the width of a spike: weights of 30
        and more, further than training goes from weights of about 1. What leaves those units is
        made smaller by as much, so that the norm product stays about what it was.

        Arguments:
            sharpness: The highest frequency over the lowest, shape (D); 1 leaves a dimension as
                it is.
        """
        first, second = self.stack()[:2]
        k = first.units_out
        spread = sharpness[:, None] ** torch.linspace(0, 1, k, device=sharpness.device)  # (D, k)
        gain = torch.where(sharpness[:, None] > 1, spread * k**0.5, 1.0)
        first.diagonal.mul_(gain[None, :, :, None])
        second.diagonal.div_(spread[None, :, None, :])


class ConvBranch(_Branches):
    r"""A stack of convolutional branches F, one per residual step of a scale.

    (activation,) 3x3, activation, 1x1, activation, 3x3, all causal; scaled by
    :math:`\sigma / (\theta + P)`, see :mod:`quarflow.nn.lipschitz_trick`, with one theta per
    channel and P a certified upper bound on the product of the layer norms:

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

    norms = ("dimension", "center", "operator")

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
        if hidden_channels < 1:
            raise ValueError(f"hidden_channels must be at least 1, not {hidden_channels}.")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}."
            )
        C = shape[0]
        k = units_per_dimension(hidden_channels, C)
        super().__init__(C, reverse, activation, norm, sigma, (1, k, k, 1))
        self.shape, self.preactivation = tuple(shape), tuple(preactivation)
        self.recompute, self.implementation = recompute, implementation
        self.first = TriangularLayer(C, 1, k, reverse, kernel_size=kernel_size)
        self.middle = TriangularLayer(C, k, k, reverse, kernel_size=1)
        self.last = TriangularLayer(C, k, 1, reverse, kernel_size=kernel_size)
        self.theta_raw = theta_parameter(len(self.reverse), C) if trick else None

    def stack(self) -> list[TriangularLayer]:
        """The layers, first to last."""
        return [self.first, self.middle, self.last]

    def layer_bound(self, weight: Tensor, layer: TriangularLayer) -> Tensor:
        """The bound on the norm of a layer, or of its centre tap, shape (T)."""
        assert layer.taps is not None
        taps = layer.taps[0]
        if self.norm == "center" or len(taps) == 1:
            return spectral_bound(weight[:, :, -1])

        # A reversed layer is the mirror image of one that is not: its taps' norm is the same.
        return convolution_bound(weight, taps, (self.shape[1], self.shape[2]))

    def flattened(self, weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Effective weights as matrices: (T, C k, taps C), (T, C k, C k), (T, taps C, C k)."""
        first, middle, last = weights

        return first.flatten(2), middle.flatten(2), last.transpose(1, 2).flatten(1, 2)

    def bind(self, c: Tensor | None = None) -> BoundBranches:
        """Effective weights of all steps, computed once; no context is taken."""
        return replace(super().bind(), implementation=self.implementation)

    def passes(self) -> tuple[Pass, ...]:
        """For each step, what its pass does."""
        assert self.first.taps is not None
        each = zip(self.reverse, self.first.taps, self.preactivation, strict=True)

        return tuple(
            [Pass(self._activation, r, taps, before, self.recompute) for r, taps, before in each]
        )

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"shape={self.shape}, {super().extra_repr()}, recompute={self.recompute}"


def _check(features: int, hidden_features: Sequence[int], context: int) -> None:
    if features < 1:
        raise ValueError(f"features must be at least 1, not {features}.")
    if context < 0:
        raise ValueError(f"context must be at least 0, not {context}.")
    if not hidden_features or min(hidden_features) < 1:
        raise ValueError(
            f"hidden_features must be one or more positive widths, not {tuple(hidden_features)}."
        )
