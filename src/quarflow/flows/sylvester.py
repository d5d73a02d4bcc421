r"""Sylvester flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from quarflow.flows.closed_form import ClosedForm
from quarflow.flows.register import family
from quarflow.nn.draws import normal_
from quarflow.transforms import SylvesterStep

__all__ = ["SylvesterFlow"]


@family
class SylvesterFlow(ClosedForm):
    r"""Sylvester flow; see :class:`quarflow.transforms.SylvesterStep`.

    With context, a small network shifts all parameters but Q. An elementwise affine map stands
    before and after each step.

    Arguments:
        features: Number D of features.
        context: Number C of context variables.
        transforms: Number T of steps.
        hidden_features: Widths of the network for the context; without context it does not exist.
        ridges: Number M of ridges of a step, at most D; D by default.
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
        *,
        transforms: int = 16,
        hidden_features: Sequence[int] = (64,),
        ridges: int | None = None,
        inverse: bool = False,
        base: Literal["normal", "student-t"] = "normal",
    ) -> None:
        self.ridges = M = features if ridges is None else ridges
        if not 1 <= M <= features:
            raise ValueError(f"ridges must be between 1 and features = {features}, not {M}.")
        super().__init__(
            features,
            context,
            transforms=transforms,
            hidden_features=hidden_features,
            inverse=inverse,
            base=base,
        )
        self.directions = nn.Parameter(normal_(torch.empty(transforms, features, M)))

    def numbers(self) -> dict[str, tuple[int, float]]:
        """Of each parameter of a step: how many numbers, and their standard deviation at first."""
        M = self.ridges
        return {"r": (M * M, 0.1), "r_tilde": (M * M, 1.0), "b": (M, 1.0)}

    def step(self, t: int, parameters: dict[str, Tensor]) -> SylvesterStep:
        """One step; Q is the orthogonal factor of a free matrix."""
        square = (self.ridges, self.ridges)
        r, r_tilde = (parameters[name].unflatten(-1, square) for name in ("r", "r_tilde"))

        return SylvesterStep(torch.linalg.qr(self.directions[t])[0], r, r_tilde, parameters["b"])
