r"""How far an inverse amplifies rounding: residuals are small, but are errors?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from quarflow.modes import traced, transformed
from quarflow.solvers import InversionError, listed

if TYPE_CHECKING:
    from quarflow.transforms.base import Transform

__all__ = ["Amplification", "amplification", "check_errors", "check_finite"]


DIRECTIONS = 2  # a single one may happen to be one that the inverse does not amplify


@dataclass(frozen=True)
class _Limits:
    floor: float  # rounding and nudges are relative to this + abs(z)
    rounding: float  # of z and of what is computed from it
    nudge: float  # what z is moved by to see how the inverse moves
    residual: float  # of the inverse of the nudged z, well below the nudge
    error: float  # of x, relative to 1 + abs(x): what a checked inverse promises


# In float32 the nudge is the rounding of z itself; all else is done in float64. In float64 it has
# to stand out from the residuals that the steps stop at.
_LIMITS = {
    torch.float32: _Limits(0.0, 6e-8, 6e-8, 2e-9, 1e-5),
    torch.float64: _Limits(1.0, 1e-15, 4e-10, 1e-11, 1e-10),
}


class Amplification(NamedTuple):
    r"""What rounding does to an inverse, for each sample, shapes (*).

    Attributes:
        condition: By how much a change of z, relative to 1 + abs(z) (to abs(z) for points in
            float32), is amplified in x, relative to 1 + abs(x).
        error: How far x may be off: rounding and the residual left, times that.
        limit: The error that a checked inverse allows, 1e-5 for float32 and 1e-10 for float64.

    Example:
        >>> from quarflow.transforms import Affine
        >>> flat = Affine(torch.zeros(1), torch.tensor([-10.0]))  # z = exp(-10) x
        >>> _, found = flat.inv.with_amplification(torch.tensor([1e-6]))
        >>> found.condition.shape, found.limit
        (torch.Size([]), 1e-05)
    """

    condition: Tensor
    error: Tensor
    limit: float


@torch.no_grad()
def amplification(
    transforms: Sequence[Transform], path: Sequence[Tensor], precision: torch.dtype | None = None
) -> Amplification:
    r"""Look at an inverse that was just computed.

    A steep inverse amplifies the rounding of z, and what the solvers leave, by its own Lipschitz
    constant; no residual shows that. So the inverses of nudged z are found too, starting from
    the one that is known: how far they move, beside the nudge, is the condition. The nudges go in
    two directions of rounding and in that of the residual: a probe, not a proof, which on single
    points of maps made steep on purpose lets about one wrong answer in a hundred pass.

    Arguments:
        transforms: The steps from x to z.
        path: z, then what it became after the inverse of each step, last to first.
        precision: Of the points as the user sees them; that of the points at hand by default.
    """
    limits = _LIMITS.get(precision or path[0].dtype, _LIMITS[torch.float32])
    events = transforms[0].domain.event_dim, transforms[-1].codomain.event_dim
    z, x = path[0].detach(), path[-1].detach()
    back = x
    for transform in transforms:
        back = transform._call(back)
    # Directions of rounding, and of what is left: the second is often one that hardly matters.
    scale = limits.floor + z.abs()
    left = (back - z).expand(scale.shape)
    dims, event = tuple(range(-events[1], 0)), tuple(range(-events[0], 0))
    size = left.abs().amax(dims, keepdim=True)
    tiny = torch.finfo(z.dtype).tiny
    moves = torch.cat((scale * _signs(z), (left / size.clamp_min(tiny))[None]))
    nudged = z + limits.nudge * moves
    for transform, near in zip(reversed(transforms), path[1:], strict=True):
        near = near.detach().expand(len(moves), *near.shape)
        nudged = transform.inverse_near(nudged, near, limits.residual)
    moved = ((nudged - x).abs() / (1 + x.abs())).amax(event) / limits.nudge
    condition = moved[:-1].amax(0)
    error = condition * limits.rounding + moved[-1] * size.reshape(condition.shape)

    return Amplification(condition, error, limits.error)


def check_errors(found: Amplification) -> None:
    """Keep the promise of a checked inverse.

    Raises:
        InversionError: if rounding may move some samples by more than the limit.
    """
    failed = (~(found.error <= found.limit)).flatten()
    if failed.any():
        worst = float(found.error.nan_to_num(nan=float("inf")).max())
        raise InversionError(
            int(failed.sum()),
            failed.numel(),
            worst,
            found.limit,
            f"{int(failed.sum())} of {failed.numel()} samples are not determined by z to within "
            f"{found.limit:.0e}: the inverse is so steep there that rounding alone may move them "
            f"by {worst:.1e}, relative to 1 + |x| ({listed(failed)}). Leave the check out to have "
            "them nevertheless.",
        )


def check_finite(x: Tensor, z: Tensor, events: tuple[int, int] = (1, 1)) -> None:
    """Nothing that is not finite comes out of an inverse.

    Arguments:
        x: The inverse of z.
        z: Where it was asked for.
        events: Dimensions of a point x and of a point z.

    Raises:
        InversionError: if some x is not finite where z is.
    """
    if transformed(x) or torch.compiler.is_compiling() or traced() or x.isfinite().all():
        return
    found, given = (t.isfinite().flatten(-n).all(-1) for t, n in zip((x, z), events, strict=True))
    failed = (~found & given).flatten()
    if failed.any():
        count = int(failed.sum())
        raise InversionError(
            count,
            failed.numel(),
            float("inf"),
            0.0,
            f"{count} of {failed.numel()} samples have no finite inverse ({listed(failed)}): "
            "their z is so far out that the numbers on the way overflow. Leave them out, or move "
            "z towards 0.",
        )


def _signs(z: Tensor) -> Tensor:
    """Signs without a pattern, (DIRECTIONS, *): a check must not draw random numbers."""
    number = torch.arange(DIRECTIONS * z.numel(), device=z.device, dtype=torch.float64)
    noise = (number.add_(1).mul_(12.9898).sin_() * 43758.5453) % 1

    return torch.where(noise > 0.5, 1.0, -1.0).to(z).reshape(DIRECTIONS, *z.shape)
