r"""Planar flows."""

from __future__ import annotations

from torch import Tensor

from quarflow.flows.closed_form import ClosedForm
from quarflow.flows.register import family
from quarflow.transforms import PlanarStep

__all__ = ["PlanarFlow"]


@family
class PlanarFlow(ClosedForm):
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

    def numbers(self) -> dict[str, tuple[int, float]]:
        """Of each parameter of a step: how many numbers, and their standard deviation at first."""
        return {"u": (self.features, 0.1), "w": (self.features, 1.0), "b": (1, 1.0)}

    def step(self, t: int, parameters: dict[str, Tensor]) -> PlanarStep:
        """One step."""
        return PlanarStep(**parameters)
