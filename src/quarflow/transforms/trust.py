r"""Whether an inverse deserves trust: residuals are small, but are errors?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quarflow.solvers import InversionError
from quarflow.transforms.base import Transform

__all__ = ["Trust"]


DIRECTIONS = 2  # a single one may happen to be one that the inverse does not amplify


@dataclass(frozen=True)
class _Limits:
    floor: float  # rounding and nudges are relative to this + abs(z)
    rounding: float  # of z and of what is computed from it
    nudge: float  # what z is moved by to see how the inverse moves
    residual: float  # of the inverse of the nudged z, well below the nudge
    error: float  # of x, relative to 1 + abs(x): what is promised


# In float32 the nudge is the rounding of z itself; all else is done in float64. In float64 it has
# to stand out from the residuals that the steps stop at.
_LIMITS = {
    torch.float32: _Limits(0.0, 6e-8, 6e-8, 2e-9, 1e-5),
    torch.float64: _Limits(1.0, 1e-15, 4e-10, 1e-11, 1e-10),
}


@dataclass(frozen=True)
class Trust:
    r"""Raise where the rounding of z moves its inverse by more than is promised.

    A steep inverse amplifies the rounding of z, and what the solvers leave, by its own Lipschitz
    constant; no residual shows that. So the inverses of nudged z are found too, starting from
    the one that is known: how far they move, times how large rounding and the residual are beside
    the nudge, is how far x may be off. The nudges go in two directions of rounding and in that of
    the residual: a probe, not a proof, which on single points of maps made steep on purpose lets
    about one wrong answer in a hundred pass.

    Attributes:
        precision: Of the points as the user sees them: float32 promises an error of 1e-5, relative
            to 1 + abs(x), float64 one of 1e-10. None for that of the points at hand.
    """

    precision: torch.dtype | None = None

    @torch.no_grad()
    def check(self, transforms: Sequence[Transform], path: Sequence[Tensor]) -> None:
        """Look at an inverse that was just computed.

        Arguments:
            transforms: The steps from x to z.
            path: z, then what it became after the inverse of each step, last to first.

        Raises:
            InversionError: if some of x is not determined well enough.
        """
        limits = _LIMITS.get(self.precision or path[0].dtype)
        if limits is None or not path[0].numel():
            return
        z, x = path[0].detach(), path[-1].detach()
        back = x
        for transform in transforms:
            back = transform._call(back)
        # Directions of rounding, and of what is left: the second is often one that hardly matters.
        scale = limits.floor + z.abs()
        left = (back - z).expand(scale.shape)
        size = left.abs().amax(-1, keepdim=True)
        tiny = torch.finfo(z.dtype).tiny
        moves = torch.cat((scale * _signs(z), (left / size.clamp_min(tiny))[None]))
        nudged = z + limits.nudge * moves
        for transform, near in zip(reversed(transforms), path[1:], strict=True):
            near = near.detach().expand(len(moves), *near.shape)
            nudged = transform.inverse_near(nudged, near, limits.residual)
        moved = ((nudged - x).abs() / (1 + x.abs())).amax(-1)
        error = moved[:-1].amax(0) * (limits.rounding / limits.nudge)
        error = error + moved[-1] * (size.squeeze(-1) / limits.nudge)
        failed = int((~(error <= limits.error)).sum())
        if failed:
            worst = float(error.nan_to_num(nan=float("inf")).max())
            wide = limits is _LIMITS[torch.float64]
            advice = "" if wide else " Use float64, or"
            raise InversionError(
                failed,
                error.numel(),
                worst,
                limits.error,
                f"{failed} of {error.numel()} samples are not determined by z to within "
                f"{limits.error:.0e}: the inverse is so steep there that rounding alone may move "
                f"them by {worst:.1e}, relative to 1 + |x|.{advice or ' Use'} "
                f"transform.unchecked.inv to have them nevertheless.",
            )


def _signs(z: Tensor) -> Tensor:
    """Signs without a pattern, (DIRECTIONS, *): a check must not draw random numbers."""
    number = torch.arange(DIRECTIONS * z.numel(), device=z.device, dtype=torch.float64)
    noise = (number.add_(1).mul_(12.9898).sin_() * 43758.5453) % 1

    return torch.where(noise > 0.5, 1.0, -1.0).to(z).reshape(DIRECTIONS, *z.shape)
