r"""Plumbing of image flows: transforms of tensors (*, C, H, W) with exact log-dets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from quarflow.transforms.base import REALS, Transform

__all__ = [
    "Flatten",
    "ImageTransform",
    "Logit",
    "Squeeze",
    "dequantise",
    "quantise",
]


class ImageTransform(Transform):
    r"""A bijection of images (*, C, H, W); the ladj has shape (*).

    Example:
        >>> Squeeze().domain.event_dim, Logit(0.05).codomain.event_dim
        (3, 3)
    """

    domain = REALS[3]
    codomain = REALS[3]


class Logit(ImageTransform):
    r"""Pixels of the unit interval to the real line: :math:`\mathrm{logit}(a + (1 - 2a) x)`.

    The inverse can leave [0, 1], by a / (1 - 2a) at most: there the model has density too.

    Reference:
        | Density estimation using Real NVP (Dinh et al., 2016), section 4.1
        | https://arxiv.org/abs/1605.08803

    Arguments:
        alpha: a, in [0, 0.5): how far x is drawn in from the ends.

    Example:
        >>> Logit(0.05)(torch.tensor([[[0.5]]]))
        tensor([[[0.]]])
    """

    domain = constraints.independent(constraints.unit_interval, 3)

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """logit, elementwise."""
        a = self.alpha
        below, above = (a + (1 - 2 * a) * part for part in (x, 1 - x))  # s and 1 - s
        low, high = below.log(), above.log()

        return low - high, (math.log1p(-2 * a) - low - high).sum((-3, -2, -1))

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled sigmoid, elementwise."""
        a = self.alpha
        x = (z.sigmoid() - a) / (1 - 2 * a)
        log_slopes = torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)

        return x, (log_slopes - math.log1p(-2 * a)).sum((-3, -2, -1))

    def __repr__(self) -> str:
        return f"Logit(alpha={self.alpha})"


class Squeeze(ImageTransform):
    r"""2 x 2 pixels become one with four times the channels.

    Channel ``c`` becomes the channels ``4 c, ..., 4 c + 3``: upper left, upper right, lower left,
    lower right.

    Example:
        >>> Squeeze()(torch.arange(4.0).view(1, 2, 2)).flatten()
        tensor([0., 1., 2., 3.])
    """

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Volume is preserved."""
        *batch, C, H, W = x.shape
        z = x.reshape(*batch, C, H // 2, 2, W // 2, 2).movedim((-3, -1), (-4, -3))

        return z.reshape(*batch, 4 * C, H // 2, W // 2), x.new_zeros(batch)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels again."""
        *batch, C, H, W = z.shape
        x = z.reshape(*batch, C // 4, 2, 2, H, W).movedim((-4, -3), (-3, -1))

        return x.reshape(*batch, C // 4, 2 * H, 2 * W), z.new_zeros(batch)

    def forward_shape(self, shape: Size) -> Size:
        """Half the height and width."""
        *batch, C, H, W = shape
        return Size((*batch, 4 * C, H // 2, W // 2))

    def inverse_shape(self, shape: Size) -> Size:
        """Twice the height and width."""
        *batch, C, H, W = shape
        return Size((*batch, C // 4, 2 * H, 2 * W))

    @property
    def sign(self) -> int:
        """The orientation depends on the size of the image."""
        raise NotImplementedError("the sign of a squeeze depends on the size of the image")

    def __repr__(self) -> str:
        return "Squeeze()"


class Flatten(Transform):
    """Images (*, C, H, W) as vectors (*, C H W), in that order.

    Arguments:
        shape: (C, H, W).

    Example:
        >>> Flatten((1, 2, 2))(torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 4])
    """

    domain = REALS[3]

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Volume is preserved."""
        return x.reshape(*x.shape[:-3], math.prod(self.shape)), x.new_zeros(x.shape[:-3])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Images again."""
        return z.reshape(*z.shape[:-1], *self.shape), z.new_zeros(z.shape[:-1])

    def forward_shape(self, shape: Size) -> Size:
        """Three dimensions become one."""
        return Size((*shape[:-3], math.prod(self.shape)))

    def inverse_shape(self, shape: Size) -> Size:
        """One dimension becomes three."""
        return Size((*shape[:-1], *self.shape))

    def __repr__(self) -> str:
        return f"Flatten({self.shape})"


def dequantise(
    x: Tensor, levels: int = 256, generator: torch.Generator | None = None, **like: Any
) -> Tensor:
    r"""Uniform dequantisation :math:`(x + u) / \text{levels}`, in [0, 1).

    Arguments:
        x: Whole numbers from 0 to levels - 1, any integer type and shape.
        levels: Number of grey levels.
        generator: Of u; the global one by default.
        like: ``dtype`` and ``device`` of the result; float32 where x is by default.

    Raises:
        ValueError: if x does not hold whole numbers, or numbers out of range.

    Example:
        >>> bool((dequantise(torch.full((9,), 3, dtype=torch.uint8), 4) >= 0.75).all())
        True
    """
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(
            f"Images to dequantise must hold whole grey levels (uint8), not {x.dtype}."
        )
    if levels < 2:
        raise ValueError(f"levels must be at least 2, not {levels}.")
    if x.numel():
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= levels:
            raise ValueError(
                f"Images must hold grey levels from 0 to {levels - 1}, but there are {low} to "
                f"{high}; give the number of levels of the images."
            )
    options: dict[str, Any] = {"dtype": torch.float32, "device": x.device} | like
    device = options["device"] if generator is None else generator.device
    u = torch.rand(x.shape, dtype=options["dtype"], device=device, generator=generator)
    found = (x.to(**options) + u.to(options["device"])) / levels

    # Rounding must not lift the brightest pixels to 1, nor any pixel to its next level.
    return torch.minimum(
        found, torch.nextafter(_next_level(x, levels, options), -found.new_ones(()))
    )


def _next_level(x: Tensor, levels: int, options: dict[str, Any]) -> Tensor:
    return (x.to(**options) + 1) / levels


def quantise(x: Tensor, levels: int = 256) -> Tensor:
    """Grey levels of images in [0, 1), as uint8; beyond the range, its ends.

    Raises:
        ValueError: if there are more levels than uint8 has.

    Example:
        >>> quantise(torch.tensor([0.0, 0.5, 0.999, 1.2]))
        tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be from 2 to 256, not {levels}.")

    return (x * levels).floor().clamp(0, levels - 1).to(torch.uint8)
