r"""Steps of a few parameters each, which a context may move: what such flows have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from quarflow.flows.actnorm import ActNorms
from quarflow.flows.bases import base as make_base
from quarflow.flows.checks import check_sizes
from quarflow.flows.flow import Flow
from quarflow.nn.draws import normal_
from quarflow.transforms import Transform

__all__ = ["ClosedForm"]


class ClosedForm(Flow):
    r"""Steps of a few parameters each, which a small network moves with the context.

    Arguments:
        features: Number D of features.
        context: Number C of context variables.
        transforms: Number T of steps.
        hidden_features: Widths of the network for the context; without context it does not exist.
        inverse: Whether ``call_and_ladj`` of a step leads from noise to data.
        base: ``normal``, or ``student-t`` for heavy tails.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> from quarflow.flows import RadialFlow
        >>> flow = RadialFlow(3, transforms=4)
        >>> flow.numbers(), flow.free.shape
        ({'center': (3, 1.0), 'alpha': (1, 0.1), 'beta': (1, 0.1)}, torch.Size([4, 5]))
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        *,
        transforms: int = 16,
        hidden_features: Sequence[int] = (64,),
        inverse: bool = False,
        base: Literal["normal", "student-t"] = "normal",
    ) -> None:
        super().__init__(features, context)
        check_sizes(features, context, transforms, hidden_features)
        self.steps, self.inverse = transforms, inverse
        numbers = self.numbers()
        self.sizes = {name: size for name, (size, _) in numbers.items()}
        total = sum(self.sizes.values())
        parts = [spread * normal_(torch.empty(transforms, n)) for n, spread in numbers.values()]
        self.free = nn.Parameter(torch.cat(parts, -1))
        self.network = _network(context, hidden_features, transforms * total) if context else None
        self.actnorms = ActNorms(transforms + 1, features)
        self.base = make_base(base, features)

    @abstractmethod
    def numbers(self) -> dict[str, tuple[int, float]]:
        """Of each parameter of a step: how many numbers, and their standard deviation at first."""

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

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"features={self.features}, context={self.context}, steps={self.steps}"


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
