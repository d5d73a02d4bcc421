r"""Masked networks in which an output depends on earlier variables only (MADE)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from quarflow.nn.derived import Derived
from quarflow.nn.mlp import BoundMLP, StackedLinear
from quarflow.ops.activations import activation as lookup

__all__ = ["MADE", "MaskedLinear", "hidden_degrees", "input_degrees"]


def input_degrees(features: int, reverse: bool) -> Tensor:
    """Place of each variable in the order, from 1.

    Example:
        >>> input_degrees(3, reverse=True)
        tensor([3, 2, 1])
    """
    degrees = torch.arange(1, features + 1)

    return degrees.flip(0) if reverse else degrees


def hidden_degrees(features: int, width: int, context: int) -> Tensor:
    """For each hidden unit, the last place in the order that it may depend on.

    Spread evenly over 1 ... D - 1. With context there are units of degree 0 too, which see
    nothing but the context: without them, the first variable could not depend on it but linearly.

    Example:
        >>> hidden_degrees(3, 4, context=0)
        tensor([1, 1, 2, 2])
    """
    lowest = 0 if context or features == 1 else 1

    return lowest + torch.arange(width) * (features - lowest) // width


class MaskedLinear(Derived, StackedLinear):
    r"""A stack of linear layers in which outputs are not connected to inputs of a higher degree.

    Arguments:
        before: Degrees of the inputs in each kind of layer, shape (R, in).
        after: Degrees of the outputs, shape (R, out).
        kinds: For each of the T layers, of which kind it is, from 0.
        context: Number of context variables, connected to every output.
        gain: Factor on the first weights.
        strict: Whether outputs are not connected to inputs of the same degree either.

    Example:
        >>> degrees = torch.tensor([[1, 2]])
        >>> layer = MaskedLinear(degrees, degrees, kinds=[0])
        >>> layer.effective()[0, 0, 1].item()
        0.0
    """

    mask: Tensor

    def __init__(
        self,
        before: Tensor,
        after: Tensor,
        kinds: Sequence[int],
        context: int = 0,
        gain: float = 1.0,
        strict: bool = False,
    ) -> None:
        shape = (len(kinds), after.shape[1], before.shape[1])
        inputs = shape[2]
        super().__init__(shape[0], inputs, shape[1], context)
        # Kept where no move of the module reaches it; the buffer is made of it.
        self._degrees = before.cpu().numpy(), after.cpu().numpy()
        self._kinds, self._strict = list(kinds), strict
        mask = torch.empty(shape, dtype=torch.bool, device="meta")
        if torch.empty(0).is_meta:  # no memory for it: it is counted only, or made when moved
            self.register_buffer("mask", mask, persistent=False)
        else:
            self.register_derived()
        with torch.no_grad():
            # As many connections as there are, not as many as there could be.
            seen = self.mask.sum(-1, keepdim=True).clamp_min(1)
            self.weight.mul_(gain * (inputs / seen) ** 0.5)

    def derive(self) -> dict[str, Tensor]:
        """The mask."""
        before, after = (torch.from_numpy(degrees) for degrees in self._degrees)
        compare = torch.gt if self._strict else torch.ge

        return {"mask": compare(after[:, :, None], before[:, None, :])[self._kinds]}

    def effective(self) -> Tensor:
        """Weights with exact zeros where the mask is False, shape (T, out, in)."""
        return torch.where(self.mask, self.weight, 0.0)


class MADE(nn.Module):
    r"""A stack of masked networks, one per step of an autoregressive flow.

    Output k of variable i depends on the variables before i in the order, never on i itself.

    Reference:
        | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
        | https://arxiv.org/abs/1502.03509

    Arguments:
        features: Number D of variables.
        hidden_features: Widths of the hidden layers.
        reverse: For each step, whether its order is reversed.
        outputs: Number K of outputs per variable.
        context: Number of context variables, connected to every unit.
        activation: ``elu``, ``sin``, ``lipswish`` or ``tanh``.

    Example:
        >>> network = MADE(3, (16,), reverse=[False], outputs=2).bind()[0]
        >>> J = torch.func.jacrev(network)(torch.randn(3))  # (K * D, D)
        >>> bool((J[:3].triu() == 0).all() and (J[3:].triu() == 0).all())
        True
    """

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int],
        reverse: Sequence[bool],
        outputs: int = 2,
        context: int = 0,
        activation: str = "elu",
    ) -> None:
        super().__init__()
        self._activation = lookup(activation)
        self.activation = activation
        with torch.device("cpu"):  # values are needed, also of a module built without memory
            *degrees, last = _degrees(features, hidden_features, reverse, outputs, bool(context))
        orders = sorted(set(reverse))
        kinds = [orders.index(r) for r in reverse]
        layers = [MaskedLinear(a, b, kinds, context) for a, b in pairwise(degrees)]
        # Small at first, so that the flow starts near the identity.
        layers.append(MaskedLinear(degrees[-1], last, kinds, context, gain=0.1, strict=True))
        self.layers = nn.ModuleList(layers)
        with torch.no_grad():
            layers[-1].bias.zero_()

    def bind(self, c: Tensor | None = None) -> list[BoundMLP]:
        """Effective weights of all steps, computed once, with the context c (*, C) bound."""
        layers = [layer for layer in self.layers if isinstance(layer, MaskedLinear)]
        weights = [layer.effective().unbind() for layer in layers]
        biases = [layer.biases(c).unbind() for layer in layers]

        return [
            BoundMLP(w, b, self._activation)
            for w, b in zip(zip(*weights, strict=True), zip(*biases, strict=True), strict=True)
        ]

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"activation={self.activation!r}"


def _degrees(
    features: int, hidden: Sequence[int], reverse: Sequence[bool], outputs: int, context: bool
) -> list[Tensor]:
    """Degrees of inputs, hidden units and outputs; a row for each order that there is."""
    order = torch.stack([input_degrees(features, r) for r in sorted(set(reverse))])  # (R, D)
    units = [
        hidden_degrees(features, width, context).expand(len(order), -1).contiguous()
        for width in hidden
    ]

    return [order, *units, order.repeat(1, outputs)]
