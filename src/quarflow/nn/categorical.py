r"""Probabilities of discrete variables, each given the ones before it and a context."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from quarflow.nn.derived import Derived
from quarflow.nn.made import MaskedLinear, hidden_degrees
from quarflow.nn.mlp import BoundMLP, StackedLinear
from quarflow.ops.activations import activation as lookup

__all__ = ["Categorical", "OneHot"]


class OneHot(Derived):
    r"""Codes of several discrete variables side by side, as zeros and ones.

    Arguments:
        categories: How many values each of the d variables has.

    Example:
        >>> OneHot((2, 3))(torch.tensor([[1, 0], [-1, 2]]))
        tensor([[0., 1., 1., 0., 0.],
                [0., 0., 0., 0., 1.]])
    """

    owner: Tensor
    start: Tensor

    def __init__(self, categories: Sequence[int]) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self.width = sum(self.categories)
        self.register_derived()

    def derive(self) -> dict[str, Tensor]:
        """Which variable each entry is of, and where each variable begins."""
        sizes = torch.tensor(self.categories, dtype=torch.long)

        return {
            "owner": torch.arange(len(sizes)).repeat_interleave(sizes),
            "start": sizes.cumsum(0) - sizes,
        }

    def forward(self, codes: Tensor, known: Tensor | None = None) -> Tensor:
        """Shape (N, K1 + ... + Kd).

        Arguments:
            codes: Shape (N, d), each from 0; -1 gives zeros.
            known: Shape (N, d); where False the code is ignored, and gives zeros.
        """
        seen = codes >= 0 if known is None else (codes >= 0) & known
        out = torch.zeros(len(codes), self.width, device=codes.device)

        return out.scatter_add_(1, self.start + codes.clamp_min(0), seen.to(out.dtype))

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The entries of each variable, shapes (N, K1) to (N, Kd)."""
        return flat.split(list(self.categories), dim=-1)

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Logs of probabilities that sum to 1 over the values of each variable, same shape."""
        owner = self.owner.expand_as(logits)
        top = logits.new_full((len(logits), len(self.categories)), -torch.inf)
        top = top.scatter_reduce(1, owner, logits.detach(), "amax")
        shifted = logits - top.gather(1, owner)
        total = torch.zeros_like(top).scatter_add(1, owner, shifted.exp())

        return shifted - total.log().gather(1, owner)


class Categorical(nn.Module):
    r"""A masked network with a softmax for each of d discrete variables.

    The probabilities of variable j depend on the context and on the values of the variables
    before it as far as they are modelled, by the chain rule

    .. math:: p(k_M \mid e) = \prod_{j \in M} p(k_j \mid k_i, i \in M, i < j; e)

    which sums to 1 for every set M of modelled variables.

    Reference:
        | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
        | https://arxiv.org/abs/1502.03509

    Arguments:
        categories: How many values each variable has.
        context: Width E of the context e.
        hidden_features: Widths of the hidden layers of the masked network.
        context_features: Widths of a network that reads the context first.
        activation: ``elu``, ``sin``, ``lipswish`` or ``tanh``.

    Example:
        >>> net = Categorical((2, 3), context=1, hidden_features=(16,))
        >>> codes, e = torch.tensor([[1, 0], [1, -1]]), torch.zeros(2, 1)
        >>> net.log_prob(codes, codes >= 0, e).shape
        torch.Size([2])
    """

    def __init__(
        self,
        categories: Sequence[int],
        context: int = 0,
        hidden_features: Sequence[int] = (128, 128),
        context_features: Sequence[int] = (),
        activation: str = "elu",
    ) -> None:
        super().__init__()
        self.one_hot = OneHot(categories)
        self._activation = lookup(activation)
        widths = [context, *context_features] if context else []
        self.trunk = nn.ModuleList([StackedLinear(1, a, b) for a, b in pairwise(widths)])
        # the context itself beside what the trunk makes of it: what is linear stays linear
        seen = context + (widths[-1] if len(widths) > 1 else 0)
        d = len(self.one_hot.categories)
        with torch.device("cpu"):
            place = self.one_hot.derive()["owner"][None] + 1
            units = [hidden_degrees(d, width, context)[None] for width in hidden_features]
        self.layers = nn.ModuleList(
            [MaskedLinear(a, b, [0], seen) for a, b in pairwise([place, *units])]
        )
        last = MaskedLinear(units[-1], place, [0], seen, gain=0.1, strict=True)
        self.layers.append(last)
        with torch.no_grad():
            last.bias.zero_()
            if last.context is not None:
                last.context.mul_(0.1)

    @property
    def categories(self) -> tuple[int, ...]:
        """How many values each variable has."""
        return self.one_hot.categories

    @torch.no_grad()
    def initialize(self, codes: Tensor) -> None:
        """Start from the frequencies of codes (N, d); -1 is not counted."""
        counts = self.one_hot(codes).double().sum(0, keepdim=True)
        # as if each value had been seen half a time more
        found = self.one_hot.log_softmax((counts + 0.5).log())[0]
        last = self.layers[-1]
        assert isinstance(last, MaskedLinear)
        last.bias.copy_(found[None])

    def bind(self, e: Tensor | None) -> BoundMLP:
        """The masked network with its effective weights and the context e (N, E) bound."""
        if e is not None and len(self.trunk):
            h = e
            for layer in self.trunk:
                assert isinstance(layer, StackedLinear)
                h = self._activation(h @ layer.weight[0].mT + layer.bias[0])[0]
            e = torch.cat([e, h], -1)
        layers = [layer for layer in self.layers if isinstance(layer, MaskedLinear)]
        weights = tuple(layer.effective()[0] for layer in layers)
        biases = tuple(layer.biases(e)[0] for layer in layers)

        return BoundMLP(weights, biases, self._activation)

    def log_probs(
        self, codes: Tensor, modelled: Tensor, e: Tensor | None, net: BoundMLP | None = None
    ) -> Tensor:
        """Logs of the probabilities of every value of every variable, (N, K1 + ... + Kd).

        Arguments:
            codes: Values of the modelled variables, (N, d).
            modelled: Which those are, (N, d).
            e: Context, (N, E).
            net: What :meth:`bind` gave for it, if it is at hand.
        """
        net = self.bind(e) if net is None else net
        known = self.one_hot(codes, modelled).to(net.weights[0].dtype)

        return self.one_hot.log_softmax(net(known))

    def log_prob(self, codes: Tensor, modelled: Tensor, e: Tensor | None) -> Tensor:
        """Log-probability of the modelled codes, shape (N)."""
        found = self.log_probs(codes, modelled, e)
        at = self.one_hot.start + codes.clamp_min(0)
        each = found.gather(1, at)

        return torch.where(modelled, each, 0.0).sum(-1)

    @torch.no_grad()
    def sample(
        self,
        codes: Tensor,
        modelled: Tensor,
        e: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Codes (N, d) with the modelled ones drawn anew, one variable after the other."""
        net, codes = self.bind(e), codes.clone()
        uniform = torch.rand(codes.shape, generator=generator, dtype=torch.float64)
        uniform = uniform.to(codes.device)
        for j, K in enumerate(self.categories):
            if not modelled[:, j].any():
                continue
            begin = int(self.one_hot.start[j])
            # what comes later is not looked at: masked
            known = modelled & (torch.arange(codes.shape[1], device=codes.device) < j)
            p = self.log_probs(codes, known, e, net)[:, begin : begin + K].double().exp()
            below = p.cumsum(-1)
            drawn = (uniform[:, j : j + 1] * below[:, -1:] >= below).sum(-1).clamp_max(K - 1)
            codes[:, j] = torch.where(modelled[:, j], drawn, codes[:, j])

        return codes
