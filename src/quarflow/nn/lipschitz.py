r"""Networks with a certified Lipschitz constant below 1, not masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.nn.activations import activation as lookup
from quarflow.nn.mlp import BoundMLP, StackedLinear
from quarflow.nn.norms import spectral_bound
from quarflow.nn.scale import limited

__all__ = ["MAX_COEFF", "LipschitzBranch", "LipschitzLinear", "LipschitzMLP"]

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
        if not 0 < coeff <= MAX_COEFF:
            raise ValueError(f"coeff must be above 0 and at most {MAX_COEFF}, not {coeff}.")

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
