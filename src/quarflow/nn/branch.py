r"""The masked network inside a residual step, which carries (value, diagonal)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import overload

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.nn.activations import Activation
from quarflow.nn.activations import activation as lookup
from quarflow.nn.fused import Layers, value_and_diagonal
from quarflow.nn.linear import BlockTriangularLinear
from quarflow.nn.norms import NORMS, product_bound, spectral_bound
from quarflow.nn.scale import output_scale, refuse_overflow

MAX_SIGMA = 0.9999  # so that 1 + d stays well above 0 in float32

__all__ = ["BoundBranch", "BoundBranches", "Branch", "units_per_dimension"]


def units_per_dimension(width: int, features: int) -> int:
    """Units per dimension k so that the hidden width k * D is at least ``width``.

    Example:
        >>> units_per_dimension(128, 10)
        13
    """
    return -(-width // features)


@dataclass(frozen=True)
class BoundBranch:
    r"""One branch F with its effective weights and context bound: a pure function of x.

    Attributes:
        weights: Effective weight matrices, the last one already scaled, (D k_out, D k_in).
        blocks: Their diagonal blocks, (D, k_out, k_in).
        biases: Shape (D k_out), or (*, D k_out) when a context of shape (*, C) is bound.
        activation: Gives value and derivative.
        bound: The certified bound on abs(d), shape (D).
        reverse: Whether the order is reversed.
    """

    weights: tuple[Tensor, ...]
    blocks: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: Activation
    bound: Tensor
    reverse: bool

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value F(x) and diagonal d of its Jacobian, shape (*, D) for x of shape (*, D)."""
        batch = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        branch = self.flat(batch)
        F, d = value_and_diagonal(
            x.expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1]),
            Layers(branch.weights, branch.blocks, branch.biases, self.reverse),
            self.activation,
        )

        return F.reshape(*batch, F.shape[-1]), d.reshape(*batch, F.shape[-1])

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the bound context."""
        return self.biases[0].shape[:-1]

    def flat(self, batch_shape: torch.Size) -> BoundBranch:
        """The same branch for a batch flattened to (N, D): context repeated where it must be."""
        if not self.batch_shape:
            return self

        return replace(
            self,
            biases=tuple(
                b.expand(*batch_shape, b.shape[-1]).reshape(-1, b.shape[-1]) for b in self.biases
            ),
        )

    def rows(self, index: Tensor) -> BoundBranch:
        """The same flat branch for some of its rows."""
        if not self.batch_shape:
            return self

        return replace(self, biases=tuple(b[index] for b in self.biases))


@dataclass(frozen=True, eq=False)
class BoundBranches(Sequence[BoundBranch]):
    """The bound branches of all steps, T of them, in tensors stacked over the steps.

    Attributes:
        weights, blocks, biases, bound: As in :class:`BoundBranch`, with T in front.
        activation: Gives value and derivative.
        reverse: Whether the order is reversed, for each step.
    """

    weights: tuple[Tensor, ...]
    blocks: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: Activation
    bound: Tensor
    reverse: tuple[bool, ...]

    @overload
    def __getitem__(self, t: int) -> BoundBranch: ...
    @overload
    def __getitem__(self, t: slice) -> list[BoundBranch]: ...
    def __getitem__(self, t: int | slice) -> BoundBranch | list[BoundBranch]:
        if isinstance(t, slice):
            return [self[i] for i in range(*t.indices(len(self)))]
        weights, blocks, biases = (
            tuple(tensor[t] for tensor in part)
            for part in (self.weights, self.blocks, self.biases)
        )
        return BoundBranch(
            weights, blocks, biases, self.activation, self.bound[t], self.reverse[t]
        )

    def __len__(self) -> int:
        return len(self.reverse)

    def __iter__(self) -> Iterator[BoundBranch]:
        return (self[t] for t in range(len(self)))


class Branch(nn.Module):
    r"""A stack of branches F of equal shape, one per residual step of a flow.

    The output is scaled by :math:`\sigma / (\theta + P)`, the paper's Lipschitz Trick
    (section 4.2), with P a certified upper bound on the product of the layer norms:

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
        super().__init__()
        _check(features, hidden_features, context, norm, sigma)

        self.features, self.norm, self.sigma = features, norm, sigma
        self.reverse = tuple(reverse)
        self.activation = activation
        self._activation = lookup(activation)
        units = [1, *(units_per_dimension(h, features) for h in hidden_features), 1]
        self.layers = nn.ModuleList(
            BlockTriangularLinear(features, a, b, reverse, context) for a, b in pairwise(units)
        )
        # softplus(-4) = 0.02: at first nearly all of the budget that sigma allows.
        start = torch.full((len(self.reverse), features), -4.0)
        self.theta_raw = nn.Parameter(start) if trick else None

    def product(self, weights: Sequence[Tensor]) -> Tensor:
        r"""P, the certified bound on the product of the layer norms, shape (T, D) or (T, 1)."""
        if self.norm == "dimension":
            return product_bound([layer.diagonal for layer in self._layers()])
        bounds = [spectral_bound(weight)[:, None] for weight in weights]
        product = bounds[0]
        for bound in bounds[1:]:
            product = product * bound

        return product

    @property
    def theta(self) -> Tensor:
        """The learnable slack of the Lipschitz Trick, >= 0, shape (T, D)."""
        if self.theta_raw is None:
            return self._layers()[0].bias.new_zeros(len(self.reverse), self.features)

        return fn.softplus(self.theta_raw)

    def bind(self, c: Tensor | None = None) -> BoundBranches:
        r"""Effective weights of all steps, computed once, with the context bound.

        Arguments:
            c: The context, shape (*, C), or None.
        """
        layers = self._layers()
        weights = [layer.weight() for layer in layers]
        # Views: what is bound stays of its type when the module is moved to another one.
        blocks: list[Tensor] = [layer.diagonal.view_as(layer.diagonal) for layer in layers]
        biases = [
            layer.bias.view_as(layer.bias)
            if layer.context is None or c is None
            else _per_step(layer.bias, c.dim()) + torch.stack([c @ w.mT for w in layer.context])
            for layer in layers
        ]

        P = self.product(weights)  # (T, D) or (T, 1)
        scale = output_scale(P, self.theta_raw, self.sigma)
        refuse_overflow(weights, [layer.bias for layer in layers], scale)
        bound = scale.bound.to(weights[0].dtype)
        weights[-1], blocks[-1] = scale.times(weights[-1]), scale.times(blocks[-1])
        last = biases[-1]  # (T, D) or (T, *, D)
        biases[-1] = scale.times(last.movedim(-1, 1)).movedim(1, -1)

        return BoundBranches(
            tuple(weights), tuple(blocks), tuple(biases), self._activation, bound, self.reverse
        )

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
        first, second = self._layers()[:2]
        k = first.units_out
        spread = sharpness[:, None] ** torch.linspace(0, 1, k, device=sharpness.device)  # (D, k)
        gain = torch.where(sharpness[:, None] > 1, spread * k**0.5, 1.0)
        first.diagonal.mul_(gain[None, :, :, None])
        second.diagonal.div_(spread[None, :, None, :])

    @torch.no_grad()
    def vanish(self) -> None:
        """Make all branches 0 everywhere, so that the steps do nothing."""
        for parameter in self._layers()[-1].parameters():
            parameter.zero_()

    @torch.no_grad()
    def calm(self) -> None:
        """Start as 0 everywhere, and with half of the budget that sigma allows."""
        self.vanish()
        if self.theta_raw is not None:
            self.theta_raw.fill_(1.0)

    def _layers(self) -> list[BlockTriangularLinear]:
        return [layer for layer in self.layers if isinstance(layer, BlockTriangularLinear)]

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"activation={self.activation!r}, norm={self.norm!r}, sigma={self.sigma}"


def _per_step(x: Tensor, dims: int) -> Tensor:
    # (T, H) -> (T, 1, ..., 1, H) with so many dimensions after the first.
    return x.reshape(len(x), *(1,) * (dims - 1), x.shape[-1])


def _check(
    features: int, hidden_features: Sequence[int], context: int, norm: str, sigma: float
) -> None:
    if features < 1:
        raise ValueError(f"features must be at least 1, not {features}.")
    if context < 0:
        raise ValueError(f"context must be at least 0, not {context}.")
    if not hidden_features or min(hidden_features) < 1:
        raise ValueError(
            f"hidden_features must be one or more positive widths, not {tuple(hidden_features)}."
        )
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {sorted(NORMS)}, not {norm!r}.")
    if not 0 < sigma <= MAX_SIGMA:
        raise ValueError(
            f"sigma must be above 0 and at most {MAX_SIGMA}, not {sigma}: the bound on abs(d) is "
            f"strict, in float32 too."
        )
