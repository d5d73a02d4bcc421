r"""Elementwise affine maps of a flow (ActNorm), with their parameters, and their first values."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from quarflow.transforms import Affine, Transform

__all__ = ["ActNorms", "standardise"]


class ActNorms(nn.Module):
    r"""Elementwise affine maps of a flow (ActNorm), shape (T, D), or (T, C) for images.

    They start as identities; :func:`standardise` sets them from data.

    Reference:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Arguments:
        steps: Number T of maps.
        features: Number D of variables, or C of channels.
        event_dim: 1 for vectors, 3 for images.
        flagged: Whether it is noted here that they were set, and saved with the parameters.

    Example:
        >>> norms = ActNorms(1, 2)
        >>> affine = norms.normalize(0, torch.tensor([[0.0, 5.0], [2.0, 9.0]]))
        >>> affine(torch.tensor([1.0, 7.0])).tolist()
        [0.0, 0.0]
    """

    initialized: Tensor

    def __init__(
        self, steps: int, features: int, event_dim: int = 1, flagged: bool = True
    ) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.shift = nn.Parameter(torch.zeros(steps, features))
        self.log_scale = nn.Parameter(torch.zeros(steps, features))
        if flagged:
            self.register_buffer("initialized", torch.tensor(False))

    def forward(self, modelled: Tensor | None = None) -> list[Affine]:
        """The T affine maps, of the variables that a mask (*, D) says."""
        parts = (self.shift, self.log_scale, self.log_scale.exp())
        each = zip(*[p.unbind() for p in parts], strict=True)

        return [Affine(b, s, scale, self.event_dim, modelled) for b, s, scale in each]

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Shift and log-scale of all of them, as views, shapes (T, D)."""
        return self.shift.view_as(self.shift), self.log_scale.view_as(self.log_scale)

    @torch.no_grad()
    def normalize(self, step: int, x: Tensor, modelled: Tensor | None = None) -> Affine:
        """Set one of the maps so that it standardises x, (*, D) or (N, C, H, W), and give it.

        Arguments:
            step: Which of the maps.
            x: Data.
            modelled: Of which variables of each row, bool, of the shape of x, (*, D).
        """
        rows = x.movedim(-self.event_dim, -1).reshape(-1, x.shape[-self.event_dim])
        if modelled is None:
            std = rows.std(0, correction=0) if len(rows) > 1 else torch.ones_like(rows[0])
            mean = rows.mean(0)
        else:
            mean, std = _moments(rows, modelled.expand(x.shape).reshape(rows.shape))
        log_scale = -(std + 1e-6).log()
        self.log_scale[step] = log_scale
        self.shift[step] = -mean * log_scale.exp()

        return self(modelled)[step]

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        return f"features={self.shift.shape[1]}, steps={len(self.shift)}"


def _moments(rows: Tensor, modelled: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column, where it is modelled; 0 and 1 with fewer than two."""
    count = modelled.sum(0)
    total = torch.where(modelled, rows, 0).sum(0)
    mean = total / count.clamp_min(1)
    square = torch.where(modelled, rows - mean, 0).square().sum(0) / count.clamp_min(1)

    return mean, torch.where(count > 1, square.sqrt(), 1.0)


@torch.no_grad()
def standardise(
    transform: Transform,
    norms: Iterable[ActNorms],
    x: Tensor,
    initialized: Tensor,
    modelled: Tensor | None = None,
) -> bool:
    """Standardise the output of every affine map on x; only the first time.

    Arguments:
        transform: That of the flow; its affine maps are those of the norms, in their order.
        norms: What the affine maps are made of.
        x: Data, as the transform takes it.
        initialized: Whether it was done before; set to True.
        modelled: Of which variables of each row, bool, of the shape of x, (*, D).

    Returns:
        Whether anything was done: not on a flow that has been initialised or loaded.

    Raises:
        ValueError: if x is not finite.
    """
    if initialized:
        return False
    if not (x.isfinite() if modelled is None else x.isfinite() | ~modelled).all():
        raise ValueError("The data to initialise on hold NaN or infinite values.")
    places = iter([(norm, step) for norm in norms for step in range(len(norm.shift))])

    def visit(part: Transform, x: Tensor) -> Tensor:
        if isinstance(part, Affine):
            norm, step = next(places)
            part = norm.normalize(step, x, modelled)
        found: Tensor = part(x)

        return found

    transform.walk(x, visit)
    initialized.fill_(True)

    return True
