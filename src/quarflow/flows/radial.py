r"""Radial flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from quarflow.flows.closed_form import ClosedForm
from quarflow.flows.register import family
from quarflow.transforms import RadialStep

__all__ = ["RadialFlow"]


@family
class RadialFlow(ClosedForm):
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
        *,
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
