r"""What image flows have in common: plumbing, bits per dimension, samples as pictures."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints

from quarflow.flows.actnorm import ActNorms, standardise
from quarflow.flows.bases import SCALAR, Base
from quarflow.flows.bases import base as make_base
from quarflow.flows.flow import Flow, FlowDistribution
from quarflow.transforms import (
    Logit,
    MultiScale,
    Transform,
    dequantise,
    quantise,
)

__all__ = ["ImageDistribution", "ImageFlow", "scale_shapes"]


def scale_shapes(
    shape: Sequence[int], scales: int, factor_out: bool
) -> list[tuple[int, int, int]]:
    """(C, H, W) at each scale.

    Arguments:
        shape: (C, H, W) of the images.
        scales: How many; the image is squeezed in between.
        factor_out: Whether half of the variables are done after each scale.

    Raises:
        ValueError: if the shape is not that of an image, or cannot be squeezed so often.

    Example:
        >>> scale_shapes((3, 32, 32), 3, False)
        [(3, 32, 32), (12, 16, 16), (48, 8, 8)]
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (channels, height, width), not {tuple(shape)}.")
    if scales < 1:
        raise ValueError(f"scales must be at least 1, not {scales}.")
    C, H, W = shape
    if H % 2 ** (scales - 1) or W % 2 ** (scales - 1):
        raise ValueError(
            f"Images of {H} x {W} pixels cannot be halved {scales - 1} times: give fewer scales "
            f"than {scales}."
        )

    return MultiScale((C, H, W), [[] for _ in range(scales)], factor_out).shapes


class ImageDistribution(FlowDistribution):
    r"""The distribution of images (C, H, W) with pixels in [0, 1]; see :class:`ImageFlow`.

    Arguments:
        transform: From images (*, C, H, W) to vectors.
        base: Distribution of the vectors.
        shape: (C, H, W).

    Example:
        >>> from quarflow.flows import ImageQuAR
        >>> p = ImageQuAR((1, 4, 4), scales=1, transforms=1, hidden_channels=4)()
        >>> p.sample((3,)).shape, p.log_prob(torch.rand(3, 1, 4, 4)).shape
        (torch.Size([3, 1, 4, 4]), torch.Size([3]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.unit_interval, 3)

    def __init__(self, transform: Transform, base: Base, shape: Sequence[int]) -> None:
        super().__init__(transform, base, event_shape=Size(shape))

    def check(self, value: Tensor) -> None:
        """Refuse what are not images in [0, 1] of shape (*, C, H, W), floating-point numbers."""
        if not value.is_floating_point():
            raise ValueError(
                f"log_prob takes images in [0, 1] as floating-point numbers, not {value.dtype}: "
                f"use bits_per_dim, or dequantise first."
            )
        if value.shape[-3:] != self.event_shape:
            raise ValueError(
                f"Images must have shape (*, {', '.join(map(str, self.event_shape))}), not "
                f"{tuple(value.shape)}."
            )

    def sample(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images in [0, 1), shape (*sample_shape, C, H, W).

        What alpha leaves beyond the range is set to its ends; ``rsample`` leaves it there.
        """
        x = super().sample(sample_shape, generator)

        return x.clamp(0, 1 - torch.finfo(x.dtype).eps / 2)


class ImageFlow(Flow):
    r"""A density over images: logit, then residual steps and affine maps at several scales.

    Densities are over pixels in [0, 1]: of whole grey levels after :meth:`dequantise`.

    Arguments:
        shape: (C, H, W).
        scales: How many; the image is squeezed in between.
        transforms: Number T of residual steps at each scale.
        factor_out: Whether half of the variables are done after each scale.
        alpha: Of the logit, in [0, 0.5).
        base: ``normal`` or ``student-t``.
        levels: Grey levels of the images, 256 for 8 bits.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> from quarflow.flows import ImageQuAR
        >>> flow = ImageQuAR((3, 4, 4), scales=2, transforms=1, hidden_channels=12)
        >>> flow.shapes
        [(3, 4, 4), (12, 2, 2)]
    """

    initialized: Tensor
    distribution: ClassVar[type[ImageDistribution]] = ImageDistribution

    def __init__(
        self,
        shape: Sequence[int],
        scales: int,
        transforms: int,
        factor_out: bool,
        alpha: float,
        base: str,
        levels: int,
    ) -> None:
        self.shapes = scale_shapes(shape, scales, factor_out)
        if transforms < 1:
            raise ValueError(f"transforms must be at least 1, not {transforms}.")
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must be at least 0 and below 0.5, not {alpha}.")
        if not 2 <= levels <= 256:
            raise ValueError(f"levels must be from 2 to 256, not {levels}.")
        super().__init__(math.prod(shape))
        self.shape, self.factor_out = self.shapes[0], factor_out
        self.alpha, self.levels = alpha, levels
        # The affine map before a scale's first step is the one after the last scale's last.
        self.actnorms = nn.ModuleList(
            ActNorms(transforms + (s == 0), C, 3, flagged=False)
            for s, (C, _, _) in enumerate(self.shapes)
        )
        self.base = make_base(base, self.features)
        self.register_buffer("initialized", torch.tensor(False))

    @abstractmethod
    def steps(self, scale: int) -> list[Transform]:
        """The residual steps of a scale, with their effective weights."""

    def chains(self) -> list[list[Transform]]:
        """For each scale its transforms: (logit, affine,) step, affine, ..., step, affine."""
        found: list[list[Transform]] = []
        for scale, norms in enumerate(self._actnorms()):
            affines, chain = norms(), []
            if scale == 0:
                chain += [Logit(self.alpha), affines.pop(0)]
            for step, affine in zip(self.steps(scale), affines, strict=True):
                chain += [step, affine]
            found.append(chain)

        return found

    def transforms(self, c: Tensor | None) -> list[Transform]:
        """All of it is one transform, from images in [0, 1] to vectors."""
        return [MultiScale(self.shape, self.chains(), self.factor_out)]

    def forward(self, c: Tensor | None = None) -> ImageDistribution:
        """The distribution of images in [0, 1], shape (C, H, W).

        Raises:
            ValueError: if a context is given.
        """
        self._check_context(c)

        return self.distribution(self.transforms(c)[0], self.base(SCALAR), self.shape)

    def dequantise(
        self, x: Tensor, generator: torch.Generator | None = None, levels: int | None = None
    ) -> Tensor:
        r"""Grey levels to [0, 1): :math:`(x + u) / \text{levels}` with u uniform in [0, 1).

        Arguments:
            x: Whole numbers, shape (*, C, H, W).
            generator: Of u; the global one by default.
            levels: Number of grey levels; the flow's own by default.

        Raises:
            ValueError: if x does not hold grey levels.
        """
        like = self._parameter()

        return dequantise(
            x, levels or self.levels, generator, dtype=like.dtype, device=like.device
        )

    @torch.no_grad()
    def bits_per_dim(
        self,
        x: Tensor,
        draws: int = 1,
        generator: torch.Generator | None = None,
        levels: int | None = None,
    ) -> Tensor:
        r"""Bits per dimension of whole images, shape (N).

        .. math:: \log_2 \text{levels} - \frac{1}{D} \, E_u[\log_2 p((x + u) / \text{levels})]

        It is the bound that uniform dequantisation gives: the mean over draws of -log2 p, not the
        -log2 of a mean, so more draws make it less noisy and not smaller. A model that is uniform
        on the unit cube has exactly log2(levels), 8 bits for 256 levels.

        Arguments:
            x: Grey levels, whole numbers of shape (N, C, H, W).
            draws: Number of draws of u.
            generator: Of u; the global one by default.
            levels: Number of grey levels; the flow's own by default.

        Raises:
            ValueError: if x does not hold grey levels, or there is no draw.
        """
        if draws < 1:
            raise ValueError(f"draws must be at least 1, not {draws}.")
        levels = levels or self.levels
        p = self()
        total = self._parameter().new_zeros(())
        for _ in range(draws):
            total = total + self.estimate(p, self.dequantise(x, generator, levels), generator)

        return math.log2(levels) - total / (draws * self.features * math.log(2))

    def estimate(self, p: Any, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Log-density under the flow's distribution p; the generator is for those that need it."""
        found: Tensor = p.log_prob(x)

        return found

    @torch.no_grad()
    def sample_images(
        self, n: int, generator: torch.Generator | None = None, batch: int = 64
    ) -> tuple[Tensor, Tensor]:
        """Samples as grey levels, and what they cost.

        Arguments:
            n: How many images.
            generator: Of the noise; the global one by default.
            batch: How many are inverted at a time.

        Returns:
            Images, uint8, (n, C, H, W), and how often each residual step's branch was evaluated
            for each image, (scales * transforms, n), first step first.

        Raises:
            InversionError: if a step could not be inverted.
        """
        p = self()
        images, evaluations = [], []
        for z in p.base.sample((n,), generator).split(batch):
            x, solutions = p.transform.invert(z)
            images.append(quantise(x, self.levels))
            evaluations.append(torch.stack([s.iterations for s in solutions]))

        return torch.cat(images), torch.cat(evaluations, 1)

    @torch.no_grad()
    def initialize(self, x: Tensor, c: Tensor | None = None) -> bool:
        """Set every affine map so that its output is standardised on x; only the first time.

        Arguments:
            x: Images, shape (*, C, H, W): grey levels, or numbers in [0, 1].
            c: No context is taken.

        Returns:
            Whether anything was done: not on a flow that has been initialised or loaded.

        Raises:
            ValueError: if x is not finite.
        """
        self._check_context(c)
        if self.initialized:
            return False
        if not x.is_floating_point():
            x = self.dequantise(x, torch.Generator().manual_seed(0))
        x = x.reshape(-1, *self.shape).to(self._parameter())
        if not Logit(self.alpha)(x).isfinite().all():
            raise ValueError(
                "The images to initialise on hold NaN or infinite values, or pixels outside of "
                "[0, 1]."
            )

        return standardise(self.transform(None), self._actnorms(), x, self.initialized)

    def _parameter(self) -> Tensor:
        return self._actnorms()[0].shift

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"shape={self.shape}, scales={len(self.shapes)}, factor_out={self.factor_out}"
