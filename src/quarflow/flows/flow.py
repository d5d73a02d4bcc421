r"""A flow: parameters which, given a context, become a distribution made of pure transforms."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints

from quarflow.flows.actnorm import ActNorms, standardise
from quarflow.flows.arguments import as_json, bound
from quarflow.flows.bases import SCALAR, Base
from quarflow.flows.certificate import StepCertificate, certify
from quarflow.solvers import InversionError
from quarflow.transforms import Composed, Transform

__all__ = ["Flow", "FlowDistribution"]

# Residuals, relative to 1 + abs(z), at which noise is as good as any other.
NOISE = {torch.float64: 5e-8}
NOISE_FLOAT32 = 5e-6


class FlowDistribution(Distribution):
    r"""The distribution of x when z = f(x) has the base distribution.

    .. math:: \log p(x) = \log p_\text{base}(f(x)) + \log |\det J_f(x)|

    Arguments:
        transform: f, from data to noise.
        base: Distribution of z.
        context_shape: Batch shape of the context bound in f.
        event_shape: Of x; that of z by default.

    Example:
        >>> from quarflow.flows import PlanarFlow
        >>> p = PlanarFlow(2, context=1, transforms=2)(torch.zeros(4, 1))
        >>> p.sample((3,)).shape, p.log_prob(torch.zeros(4, 2)).shape
        (torch.Size([3, 4, 2]), torch.Size([4]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(
        self,
        transform: Transform,
        base: Base,
        context_shape: Size = SCALAR,
        event_shape: Size | None = None,
    ) -> None:
        super().__init__(context_shape, event_shape or base.event_shape, validate_args=False)
        self.transform, self.base = transform, base

    def check(self, value: Tensor) -> None:
        """Refuse values of the wrong shape.

        Raises:
            ValueError: if they are none that the distribution has a density at.
        """
        if value.dim() == 0 or value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"Values must have shape (*, {self.event_shape[0]}), not {tuple(value.shape)}."
            )

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log-density, in nats, shape (*) for values of shape (*, D)."""
        self.check(value)
        z, ladj = self.transform.call_and_ladj(value)

        return self.base.log_prob(z) + ladj

    def rsample(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> Tensor:
        """Differentiable samples, shape (*sample_shape, *context_shape, D)."""
        return self.transform.inv(self.base.rsample(sample_shape, generator))

    def sample(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples, shape (*sample_shape, *context_shape, D).

        They are what the inverse gives for noise that is rounded, to 5e-8 in float64 and 5e-6 in
        float32: in the density it makes no difference. Differentiable samples are inverted as
        exactly as all other points.
        """
        with torch.no_grad():
            return self.drawn(self.base.rsample(sample_shape, generator))

    @torch.no_grad()
    def drawn(self, z: Tensor) -> Tensor:
        """The samples that noise z, (*, D), stands for: its inverse, where z may be rounded."""
        try:
            return self.transform.loosened(NOISE.get(z.dtype, NOISE_FLOAT32)).inv(z)
        except InversionError:  # too steep for the type of z, where points are mapped exactly
            return self.transform.inv(z)

    def rsample_and_log_prob(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Differentiable samples and their log-densities, at the cost of the samples."""
        z = self.base.rsample(sample_shape, generator)
        x, ladj = self.transform.inv.call_and_ladj(z)

        return x, self.base.log_prob(z) - ladj

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Not needed: sample shapes and context shapes do the same."""
        raise NotImplementedError("expand the context instead")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(base={type(self.base).__name__}, transform={self.transform!r})"
        )


class Flow(nn.Module, ABC):
    r"""Parameters of a density over vectors of D features, given C context variables.

    ``flow(c)`` computes effective weights and binds the context once, and returns a
    :class:`FlowDistribution` of pure transforms that reuse them.

    Arguments:
        features: Number D of features.
        context: Number C of context variables.

    Subclasses take all else by name. An argument whose default is a dataclass may also be given
    as a dict of some of its fields, or as its first field alone.

    Attributes:
        arguments: What the flow was made with, as JSON knows it; saved with models.
        base: Module that gives the base distribution.

    Example:
        >>> from quarflow.transforms import Affine
        >>> from quarflow.flows.bases import base
        >>> class Shifted(Flow):
        ...     def __init__(self, features, context=0):
        ...         super().__init__(features, context)
        ...         self.shift = nn.Parameter(torch.ones(features))
        ...         self.base = base("normal", features)
        ...     def transforms(self, c):
        ...         return [Affine(self.shift, torch.zeros(self.features))]
        >>> Shifted(2)().log_prob(-torch.ones(2))
        tensor(-1.8379, grad_fn=<AddBackward0>)
    """

    arguments: dict[str, Any]
    base: nn.Module

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        make, signature = cls.__init__, inspect.signature(cls)

        @wraps(make)
        def recording(self: Flow, *args: Any, **kwargs: Any) -> None:
            given = bound(cls, signature, args, kwargs)
            make(self, *given.args, **given.kwargs)
            if type(self) is cls:
                self.arguments = {k: as_json(v) for k, v in given.arguments.items()}

        cls.__init__ = recording  # type: ignore[method-assign]

    def __init__(self, features: int, context: int = 0) -> None:
        super().__init__()
        self.features, self.context = features, context

    @abstractmethod
    def transforms(self, c: Tensor | None) -> Sequence[Transform]:
        """The transforms from data to noise, with weights and context bound."""

    def forward(self, c: Tensor | None = None) -> FlowDistribution:
        """The distribution given the context.

        Arguments:
            c: Context, shape (*, C); None if the flow has none.

        Raises:
            ValueError: if the context is missing, not wanted or of the wrong width.
        """
        c = self.read_context(c)
        shape = SCALAR if c is None else c.shape[:-1]

        return FlowDistribution(self.transform(c), self.base(shape), shape)

    def transform(self, c: Tensor | None) -> Composed:
        """The transforms in one, from data to noise."""
        return Composed(self.transforms(c), exact=True)

    def initialize(self, x: Tensor, c: Tensor | None = None) -> bool:
        """Set every affine map so that its output is standardised on x; only the first time.

        Arguments:
            x: Data, shape (*, D).
            c: Context, shape (*, C).

        Returns:
            Whether anything was done: not on a flow that has been initialised or loaded.

        Raises:
            ValueError: if x is not finite.
        """
        c = self.read_context(c)
        norms = self._actnorms()

        return bool(norms) and standardise(self.transform(c), norms, x, norms[0].initialized)

    def read_context(self, c: Tensor | None) -> Tensor | None:
        """The context as ``transforms`` takes it, shape (*, C).

        Raises:
            ValueError: if it is missing, not wanted or of the wrong width.
        """
        self._check_context(c)

        return c

    def certificate(
        self, x: Tensor | None = None, c: Tensor | None = None
    ) -> list[StepCertificate]:
        """The certified bound on abs(d), or Lip(F), of every step, and the largest on given data.

        Arguments:
            x: Data, as ``log_prob`` takes it, or None.
            c: Context, shape (*, C).

        Returns:
            One for each step x + F(x); none for flows without such steps.
        """
        if c is None and x is None and self.context:
            c = next(self.parameters()).new_zeros(self.context)
        else:
            c = self.read_context(c)

        return certify(self.transform(c), self.largest_slope, x)

    @property
    def largest_slope(self) -> float:
        """What the flow allows abs(d), or Lip(F), of a step to be at most."""
        return float("inf")

    def _actnorms(self) -> list[ActNorms]:
        return [module for module in self.modules() if isinstance(module, ActNorms)]

    def _check_context(self, c: Tensor | None) -> None:
        if c is None and self.context:
            raise ValueError(
                f"This flow needs a context of {self.context} variables: flow(c) with c of "
                f"shape (*, {self.context})."
            )
        if c is not None and not self.context:
            raise ValueError("This flow was made without context; call flow().")
        if c is not None and c.shape[-1] != self.context:
            raise ValueError(
                f"The context must have shape (*, {self.context}), not {tuple(c.shape)}."
            )
