r"""Planar, radial and Sylvester flows: residual steps whose log-det has a closed form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from quarflow.flows.bases import base as make_base
from quarflow.flows.checks import check_sizes
from quarflow.flows.flow import Flow
from quarflow.flows.linear import ActNorms
from quarflow.nn.draws import normal_
from quarflow.transforms import PlanarStep, RadialStep, SylvesterStep, Transform

__all__ = ["PlanarFlow", "RadialFlow", "SylvesterFlow"]


class _ClosedForm(Flow):
    """Steps of a few parameters each, which a small network gives from the context.

    Arguments:
        sizes: For each parameter of a step, how many numbers it has.
        spreads: For each parameter, the standard deviation that it starts with.
    """

    def __init__(
        self,
        features: int,
        context: int,
        transforms: int,
        hidden_features: Sequence[int],
        inverse: bool,
        base: str,
        sizes: Mapping[str, int],
        spreads: Mapping[str, float],
    ) -> None:
        super().__init__(features, context)
        check_sizes(features, context, transforms, hidden_features)
        self.arguments = {
            "features": features,
            "context": context,
            "transforms": transforms,
            "hidden_features": list(hidden_features),
            "inverse": inverse,
            "base": base,
        }
        self.steps, self.inverse, self.sizes = transforms, inverse, dict(sizes)
        total = sum(sizes.values())
        parts = [
            spreads[name] * normal_(torch.empty(transforms, size)) for name, size in sizes.items()
        ]
        self.free = nn.Parameter(torch.cat(parts, -1))
        self.network = _network(context, hidden_features, transforms * total) if context else None
        self.actnorms = ActNorms(transforms + 1, features)
        self.base = make_base(base, features)

    @abstractmethod
    def step(self, t: int, parameters: dict[str, Tensor]) -> Transform:
        """One step, from its parameters, each of shape (*, size)."""

    def transforms(self, c: Tensor | None) -> list[Transform]:
        """Affine, step, affine, ..., affine."""
        affines = self.actnorms()
        parameters = self.free  # (T, total)
        if self.network is not None and c is not None:
            parameters = parameters + self.network(c).unflatten(-1, parameters.shape)
        chain: list[Transform] = [affines[0]]
        for t, values in enumerate(parameters.unbind(-2)):
            parts = values.split(list(self.sizes.values()), -1)
            step = self.step(t, dict(zip(self.sizes, parts, strict=True)))
            chain += [step.inv if self.inverse else step, affines[t + 1]]

        return chain

    @torch.no_grad()
    def initialize(self, x: Tensor, c: Tensor | None = None) -> bool:
        """Set every affine map so that its output is standardised on x; only the first time."""
        self._check_context(c)

        return self.actnorms.initialize(self.transforms(c), x)

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"features={self.features}, context={self.context}, steps={self.steps}"


class PlanarFlow(_ClosedForm):
    r"""Planar flow; see :class:`quarflow.transforms.PlanarStep`.

    With context, a small network shifts all parameters. An elementwise affine map stands before
    and after each step.

    Arguments:
        features: Number D of features.
        context: Number C of context variables.
        transforms: Number T of steps.
        hidden_features: Widths of the network for the context; without context it does not exist.
        inverse: Whether the closed form leads from noise to data, as in variational inference:
            then sampling is cheap and log_prob solves an equation.
        base: ``normal``, or ``student-t`` for heavy tails.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> PlanarFlow(2, transforms=4)().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 16,
        hidden_features: Sequence[int] = (64,),
        inverse: bool = False,
        base: Literal["normal", "student-t"] = "normal",
    ) -> None:
        sizes = {"u": features, "w": features, "b": 1}
        spreads = {"u": 0.1, "w": 1.0, "b": 1.0}
        super().__init__(
            features, context, transforms, hidden_features, inverse, base, sizes, spreads
        )

    def step(self, t: int, parameters: dict[str, Tensor]) -> PlanarStep:
        """One step."""
        return PlanarStep(**parameters)


class RadialFlow(_ClosedForm):
    r"""Radial flow; see :class:`quarflow.transforms.RadialStep`.

    With context, a small network shifts all parameters. An elementwise affine map stands before
    and after each step.

    Arguments:
        features: Number D of features.
        context: Number C of context variables.
        transforms: Number T of steps.
        hidden_features: Widths of the network for the context; without context it does not exist.
        inverse: Whether the closed form leads from noise to data.
        base: ``normal``, or ``student-t`` for heavy tails.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> RadialFlow(2, transforms=4)().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 16,
        hidden_features: Sequence[int] = (64,),
        inverse: bool = False,
        base: Literal["normal", "student-t"] = "normal",
    ) -> None:
        sizes = {"center": features, "alpha": 1, "beta": 1}
        spreads = {"center": 1.0, "alpha": 0.1, "beta": 0.1}
        super().__init__(
            features, context, transforms, hidden_features, inverse, base, sizes, spreads
        )

    def step(self, t: int, parameters: dict[str, Tensor]) -> RadialStep:
        """One step."""
        return RadialStep(**parameters)


class SylvesterFlow(_ClosedForm):
    r"""Sylvester flow; see :class:`quarflow.transforms.SylvesterStep`.

    With context, a small network shifts all parameters but Q. An elementwise affine map stands
    before and after each step.

    Arguments:
        features: Number D of features.
        context: Number C of context variables.
        transforms: Number T of steps.
        ridges: Number M of ridges of a step, at most D; D by default.
        hidden_features: Widths of the network for the context; without context it does not exist.
        inverse: Whether the closed form leads from noise to data.
        base: ``normal``, or ``student-t`` for heavy tails.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> SylvesterFlow(3, transforms=4, ridges=2)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 16,
        ridges: int | None = None,
        hidden_features: Sequence[int] = (64,),
        inverse: bool = False,
        base: Literal["normal", "student-t"] = "normal",
    ) -> None:
        M = features if ridges is None else ridges
        if not 1 <= M <= features:
            raise ValueError(f"ridges must be between 1 and features = {features}, not {M}.")
        sizes = {"r": M * M, "r_tilde": M * M, "b": M}
        spreads = {"r": 0.1, "r_tilde": 1.0, "b": 1.0}
        super().__init__(
            features, context, transforms, hidden_features, inverse, base, sizes, spreads
        )
        self.arguments["ridges"] = M
        self.ridges = M
        self.directions = nn.Parameter(normal_(torch.empty(transforms, features, M)))

    def step(self, t: int, parameters: dict[str, Tensor]) -> SylvesterStep:
        """One step; Q is the orthogonal factor of a free matrix."""
        square = (self.ridges, self.ridges)
        r, r_tilde = (parameters[name].unflatten(-1, square) for name in ("r", "r_tilde"))

        return SylvesterStep(torch.linalg.qr(self.directions[t])[0], r, r_tilde, parameters["b"])


def _network(context: int, hidden_features: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden_features:
        layers += [nn.Linear(context, width, dtype=torch.float32), nn.ELU()]
        context = width
    last = nn.Linear(context, outputs, dtype=torch.float32)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.zero_()

    # drawn in float32, whatever the default is
    return nn.Sequential(*layers, last).to(torch.get_default_dtype())
