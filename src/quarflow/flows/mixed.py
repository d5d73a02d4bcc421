r"""Tables of numbers and categories: discrete variables first, then numbers given them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quarflow.flows.certificate import StepCertificate
from quarflow.flows.flow import FlowDistribution
from quarflow.flows.quar import QuAR
from quarflow.flows.recorded import Recorded
from quarflow.flows.register import family
from quarflow.nn import Categorical, GaussianRegression, OneHot

__all__ = ["MixedQuAR", "Pair"]

Pair = tuple[Tensor, Tensor]  # of the numbers (N, Dn) and of the codes (N, d)


@family
class MixedQuAR(Recorded):
    r"""Exact density of numbers and discrete variables, for any of them given any others.

    .. math:: p(k_M, x_M \mid g) = p(k_M \mid g) \, p(x_M \mid k_M, g)

    The first factor is a chain of softmaxes, see :class:`quarflow.nn.Categorical`; the second a
    :class:`quarflow.QuAR` flow over the modelled numbers, bound to what is known. Each variable
    of each row is given (g), modelled (M) or absent, which is integrated out: it changes nothing,
    bit for bit. What is integrated or summed over M is 1, whatever the weights.

    Data are pairs: numbers (N, Dn) and codes (N, d), which count from 0. Masks are pairs of the
    same shapes. What is neither given nor modelled is ignored, and may be NaN and -1.

    Arguments:
        features: How many numbers, Dn; may be 0.
        context: Number C of further variables, which are always known.
        categories: How many values each of the d discrete variables has.
        switches: For each discrete variable 0, or, if it says whether a number is a single value
            or continuous, the place of that number, counted from 1: the number is there only
            where the variable has its last value. Empty if there are none.
        patterns: Whether anything may be given or absent; if not, whole rows are modelled.
        transforms, hidden_features, norm, order, activation, sigma, mix, base, trick: Of the
            flow over the numbers, see :class:`quarflow.QuAR`.
        context_features: Widths of the networks that read what is given.
        categorical_features: Widths of the hidden layers of the network of the softmaxes.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> model = MixedQuAR(2, categories=(3,), patterns=True, transforms=2)
        >>> x = torch.randn(5, 2), torch.tensor([[0], [1], [2], [0], [-1]])
        >>> model.log_prob(x).shape
        torch.Size([5])
        >>> given = torch.tensor([[True, False]]).expand(5, 2), torch.zeros(5, 1, dtype=torch.bool)
        >>> model.probabilities(x, given, which=0).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        *,
        categories: Sequence[int] = (),
        switches: Sequence[int] = (),
        patterns: bool = False,
        transforms: int = 8,
        hidden_features: Sequence[int] = (128, 128),
        context_features: Sequence[int] = (128, 128),
        categorical_features: Sequence[int] = (128, 128),
        norm: Literal["dimension", "operator"] = "dimension",
        order: Literal["alternate", "fixed"] = "alternate",
        activation: str = "sin",
        sigma: float = 0.97,
        mix: Literal["none", "lu"] = "none",
        base: Literal["normal", "student-t"] = "normal",
        trick: bool = True,
    ) -> None:
        super().__init__()
        d = len(categories)
        switches = tuple(switches) or (0,) * d
        _check(features, tuple(categories), switches)
        self.features, self.context, self.patterns = features, context, patterns
        self.one_hot = OneHot(categories)
        # of each discrete variable that switches a number: which it is, and which number
        self.switching = [(j, to - 1) for j, to in enumerate(switches) if to]
        codes = self.one_hot.width
        self.flow: QuAR | None = None
        reads = codes + context + (5 * features if patterns else 0)
        self.guess = GaussianRegression(features, codes) if patterns and features else None
        if features:
            self.flow = QuAR(
                features,
                reads,
                transforms=transforms,
                hidden_features=hidden_features,
                context_features=context_features if reads else (),
                norm=norm,
                order=order,
                activation=activation,
                sigma=sigma,
                mix=mix,
                base=base,
                trick=trick,
            )
        self.discrete: Categorical | None = None
        if d:
            self.discrete = Categorical(
                categories,
                context + (codes + 2 * features if patterns else 0),
                categorical_features,
                context_features,
            )

    @property
    def categories(self) -> tuple[int, ...]:
        """How many values each discrete variable has."""
        return self.one_hot.categories

    def log_prob(
        self,
        x: Pair,
        given: Pair | None = None,
        modelled: Pair | None = None,
        c: Tensor | None = None,
    ) -> Tensor:
        """Log of probability times density of what is modelled, in nats, shape (N).

        Arguments:
            x: Numbers (N, Dn) and codes (N, d).
            given: Masks; None for nothing.
            modelled: Masks; None for all that is there (no NaN, no -1) and not given.
            c: Context, (N, C).
        """
        given, modelled = self.masks(x, given, modelled)
        total = x[0].new_zeros(len(x[1]), dtype=self.dtype)
        if self.discrete is not None:
            e = self._for_codes(x, given, c)
            total = total + self.discrete.log_prob(x[1], modelled[1], e)
        if self.flow is not None:
            p, guess = self._numbers(x, given, modelled, c)
            u, ladj = guess.standardised(x[0], modelled[0])
            total = total + p.log_prob(u) + ladj

        return total

    @torch.no_grad()
    def sample(
        self,
        x: Pair,
        given: Pair | None,
        modelled: Pair,
        c: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pair:
        """The pair with what is modelled drawn anew; NaN and -1 where nothing is known."""
        codes, on = x[1], (modelled[0], modelled[1])
        given = self.masks(x, given, modelled)[0]
        if self.discrete is not None:
            e = self._for_codes(x, given, c)
            codes = self.discrete.sample(codes, modelled[1], e, generator)
            codes = torch.where(given[1] | modelled[1], codes, -1)
        given, on = self.masks((x[0], codes), given, on)
        z = self._base(x[0], generator)
        numbers = self.from_noise(z, (x[0], codes), given, on, c)

        return numbers, codes

    def _base(self, numbers: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.flow is None:
            return numbers
        z: Tensor = self.flow.base().sample((len(numbers),), generator)

        return z

    def noise(
        self, x: Pair, given: Pair | None, modelled: Pair, c: Tensor | None = None
    ) -> Tensor:
        """Noise (N, Dn) that the modelled numbers are mapped to; 0 elsewhere."""
        given, modelled = self.masks(x, given, modelled)
        if self.flow is None:
            return x[0]
        p, guess = self._numbers(x, given, modelled, c)
        z: Tensor = p.transform(guess.standardised(x[0], modelled[0])[0])

        return z

    @torch.no_grad()
    def from_noise(
        self, z: Tensor, x: Pair, given: Pair | None, modelled: Pair, c: Tensor | None = None
    ) -> Tensor:
        """The numbers (N, Dn) with the modelled ones made of noise z (N, Dn); NaN if absent.

        The codes of x are taken for what they are, given or modelled.
        """
        given, modelled = self.masks(x, given, modelled)
        if self.flow is None:
            return x[0]
        p, guess = self._numbers(x, given, modelled, c)
        made = guess.back(p.drawn(_at(z.to(self.dtype), modelled[0]))).to(x[0].dtype)
        kept = torch.where(given[0], x[0], torch.nan)

        return torch.where(modelled[0], made, kept)

    def probabilities(self, x: Pair, given: Pair, which: int, c: Tensor | None = None) -> Tensor:
        """Probabilities (N, K) of the values of one discrete variable, given what is given."""
        if self.discrete is None:
            raise ValueError("There are no discrete variables.")
        given = self.masks(x, given, None)[0]
        e = self._for_codes(x, given, c)
        found = self.discrete.log_probs(x[1], torch.zeros_like(given[1]), e)

        return self.one_hot.split(found)[which].exp()

    def initialize(self, x: Pair, given: Pair, modelled: Pair, c: Tensor | None = None) -> bool:
        """Start from the frequencies of the codes, and with numbers that are standardised."""
        if self.discrete is not None:
            self.discrete.initialize(x[1])
        if self.flow is None:
            return self.discrete is not None
        given, modelled = self.masks(x, given, modelled)
        if self.guess is not None:
            self.guess.fit(*self._side_by_side(x, (~x[0].isnan(), x[1] >= 0)))
        e, guess = self._for_numbers(x, given, modelled, c)

        return self.flow.initialize(guess.standardised(x[0], modelled[0])[0], e, modelled[0])

    def masks(self, x: Pair, given: Pair | None, modelled: Pair | None) -> tuple[Pair, Pair]:
        """Both masks as pairs, without numbers that are switched off, and what is not there."""
        there = ~x[0].isnan(), x[1] >= 0
        if given is None:
            given = torch.zeros_like(there[0]), torch.zeros_like(there[1])
        elif not self.patterns and (bool(given[0].any()) or bool(given[1].any())):
            raise ValueError(
                "This model was fitted to whole rows, so that nothing can be given to it; "
                "make it with patterns=True."
            )
        given = given[0] & there[0], given[1] & there[1]
        if modelled is None:
            modelled = there[0] & ~given[0], there[1] & ~given[1]
        off = torch.zeros_like(there[0])
        for j, number in self.switching:
            seen = given[1][:, j] | modelled[1][:, j]
            off[:, number] = seen & (x[1][:, j] != self.categories[j] - 1)

        return (given[0] & ~off, given[1]), (modelled[0] & ~off, modelled[1])

    def certificate(self) -> list[StepCertificate]:
        """The certified bound on abs(d) of every step of the flow over the numbers."""
        return [] if self.flow is None else self.flow.certificate()

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    def _numbers(
        self, x: Pair, given: Pair, modelled: Pair, c: Tensor | None
    ) -> tuple[FlowDistribution, _Guess]:
        """The distribution of the modelled numbers, given all codes that are known.

        It is that of how far they are from what the guess says, in its units.
        """
        assert self.flow is not None
        e, guess = self._for_numbers(x, given, modelled, c)
        if not self.patterns and not self.switching:
            return self.flow(e), guess

        return self.flow(e, modelled[0]), guess

    def _for_numbers(
        self, x: Pair, given: Pair, modelled: Pair, c: Tensor | None
    ) -> tuple[Tensor | None, _Guess]:
        # whether a code is given or modelled makes no difference to the numbers
        known = given[1] | modelled[1]
        parts, guess = [self.one_hot(x[1], known)], _Guess()
        if self.guess is not None:
            values, there = self._side_by_side(x, (given[0], known))
            guess = _Guess(*self.guess(values, there))
            parts += [_at(x[0], given[0]), given[0], modelled[0]]
            parts += [_at(part, modelled[0]) for part in guess.told()]

        return self._joined(parts, c), guess

    def _side_by_side(self, x: Pair, known: Pair) -> tuple[Tensor, Tensor]:
        """Numbers and one-hot codes (N, S), and which of these are known."""
        owner = self.one_hot.owner
        values = torch.cat([_at(x[0], known[0]), self.one_hot(x[1]).to(x[0].dtype)], 1)

        return values.to(self.dtype), torch.cat([known[0], known[1][:, owner]], 1)

    def _for_codes(self, x: Pair, given: Pair, c: Tensor | None) -> Tensor | None:
        parts = []
        if self.patterns:
            parts = [self.one_hot(x[1], given[1]), _at(x[0], given[0]), given[0]]

        return self._joined(parts, c)

    def _joined(self, parts: list[Tensor], c: Tensor | None) -> Tensor | None:
        parts = [*parts, *([] if c is None else [c])]
        if not sum(part.shape[1] for part in parts):
            return None

        return torch.cat([part.to(self.dtype) for part in parts], 1)


@dataclass(frozen=True)
class _Guess:
    """Where numbers (N, Dn) are expected, and how far from there; None for 0 and 1."""

    location: Tensor | None = None
    log_scale: Tensor | None = None

    def standardised(self, numbers: Tensor, modelled: Tensor) -> tuple[Tensor, Tensor | float]:
        """Modelled numbers in units of the guess, 0 elsewhere, and the ladj (N)."""
        if self.location is None or self.log_scale is None:
            return _at(numbers, modelled), 0.0
        moved = (_at(numbers, modelled) - self.location) * (-self.log_scale).exp()

        return _at(moved, modelled), -_at(self.log_scale, modelled).sum(1)

    def told(self) -> tuple[Tensor, ...]:
        """What is said, as further context."""
        return (
            ()
            if self.location is None or self.log_scale is None
            else (self.location, self.log_scale)
        )

    def back(self, u: Tensor) -> Tensor:
        """The numbers again."""
        if self.location is None or self.log_scale is None:
            return u

        return self.location + u * self.log_scale.exp()


def _at(values: Tensor, here: Tensor) -> Tensor:
    """Values where the mask is True, 0 elsewhere, NaN or not."""
    return torch.where(here, values, 0.0)


def _check(features: int, categories: tuple[int, ...], switches: tuple[int, ...]) -> None:
    if features < 0 or not (features or categories):
        raise ValueError("There must be a number, or a discrete variable, at least.")
    if any(K < 2 for K in categories):
        raise ValueError(f"Discrete variables have two values at least, not {min(categories)}.")
    if len(switches) != len(categories):
        raise ValueError(
            f"switches must be as many as the {len(categories)} categories, not {len(switches)}."
        )
    places = [place for place in switches if place]
    if any(place > features for place in places) or len(set(places)) < len(places):
        raise ValueError(f"switches are places of different numbers, 1 to {features}, or 0.")
