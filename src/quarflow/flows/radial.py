r"""Radial flows."""

from __future__ import annotations

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

    def numbers(self) -> dict[str, tuple[int, float]]:
        """Of each parameter of a step: how many numbers, and their standard deviation at first."""
        return {"center": (self.features, 1.0), "alpha": (1, 0.1), "beta": (1, 0.1)}

    def step(self, t: int, parameters: dict[str, Tensor]) -> RadialStep:
        """One step."""
        return RadialStep(**parameters)
