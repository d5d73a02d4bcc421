r"""What image flows have in common: plumbing, bits per dimension, samples as pictures."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints

from quarflow.flows.bases import SCALAR, Base
from quarflow.flows.bases import base as make_base
from quarflow.flows.flow import Flow, FlowDistribution
from quarflow.solvers import Solution
from quarflow.transforms import (
    ChannelAffine,
    Logit,
    MultiScale,
    Transform,
    dequantise,
    quantise,
)

__all__ = ["ChannelActNorms", "ImageDistribution", "ImageFlow", "scale_shapes"]


def scale_shapes(
    shape: Sequence[int], scales: int, factor_out: bool
) -> list[tuple[int, int, int]]:
    """(C, H, W) at each scale.

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
    r"""The distribution of images (C, H, W) with pixels in [0, 1]; see :class:`ImageFlow`."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.unit_interval, 3)

    def __init__(self, transform: Transform, base: Base, shape: Sequence[int]) -> None:
        Distribution.__init__(self, SCALAR, Size(shape), validate_args=False)
        self.transform, self.base = transform, base

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log-density, in nats, shape (*) for images in [0, 1] of shape (*, C, H, W)."""
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
        z, ladj = self.transform.call_and_ladj(value)

        return self.base.log_prob(z) + ladj

    def sample(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images in [0, 1), shape (*sample_shape, C, H, W).

        What alpha leaves beyond the range is set to its ends; ``rsample`` leaves it there.
        """
        x = super().sample(sample_shape, generator)

        return x.clamp(0, 1 - torch.finfo(x.dtype).eps / 2)


class ChannelActNorms(nn.Module):
    r"""One affine map per channel (ActNorm) after each step of a scale, shape (T, C).

    Reference:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039
    """

    def __init__(self, steps: int, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(steps, channels))
        self.log_scale = nn.Parameter(torch.zeros(steps, channels))

    def forward(self) -> list[ChannelAffine]:
        """The T affine maps."""
        return [
            ChannelAffine(*step)
            for step in zip(self.shift.unbind(), self.log_scale.unbind(), strict=True)
        ]

    @torch.no_grad()
    def normalize(self, step: int, x: Tensor) -> ChannelAffine:
        """Set one of the maps so that it standardises the channels of x, (N, C, H, W)."""
        std, mean = torch.std_mean(x, (0, 2, 3), correction=0)
        log_scale = -(std + 1e-6).log()
        self.log_scale[step] = log_scale
        self.shift[step] = -mean * log_scale.exp()

        return self()[step]

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        return f"channels={self.shift.shape[1]}, steps={len(self.shift)}"


class ImageFlow(Flow):
    r"""A density over images: logit, then residual steps and affine maps at several scales.

    Densities are over pixels in [0, 1]: of whole grey levels after :meth:`dequantise`.

    Arguments:
        shape: (C, H, W).
        scales: How many; the image is squeezed in between.
        blocks: Residual steps at each scale.
        factor_out: Whether half of the variables are done after each scale.
        alpha: Of the logit, in [0, 0.5).
        base: ``normal`` or ``student-t``.
        levels: Grey levels of the images, 256 for 8 bits.

    Raises:
        ValueError: if an argument is out of its range.
    """

    initialized: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        scales: int,
        blocks: int,
        factor_out: bool,
        alpha: float,
        base: str,
        levels: int,
    ) -> None:
        self.shapes = scale_shapes(shape, scales, factor_out)
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, not {blocks}.")
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must be at least 0 and below 0.5, not {alpha}.")
        if not 2 <= levels <= 256:
            raise ValueError(f"levels must be from 2 to 256, not {levels}.")
        super().__init__(math.prod(shape))
        self.shape, self.factor_out = self.shapes[0], factor_out
        self.alpha, self.levels = alpha, levels
        # The affine map before a scale's first step is the one after the last scale's last.
        self.actnorms = nn.ModuleList(
            ChannelActNorms(blocks + (s == 0), C) for s, (C, _, _) in enumerate(self.shapes)
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

        return ImageDistribution(self.transforms(c)[0], self.base(SCALAR), self.shape)

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
            for each image, (scales * blocks, n), first step first.

        Raises:
            InversionError: if a step could not be inverted.
        """
        p = self()
        images, evaluations = [], []
        for z in p.base.sample((n,), generator).split(batch):
            counts: list[Tensor] = []
            chains = [
                [_Counted(t, counts) if hasattr(t, "solve") else t for t in chain]
                for chain in self.chains()
            ]
            x = MultiScale(self.shape, chains, self.factor_out)._inverse(z)
            images.append(quantise(x, self.levels))
            evaluations.append(torch.stack(counts[::-1]))

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
        norms = self._actnorms()
        at = [0] * len(norms)
        chains: list[list[Transform]] = []
        for scale, chain in enumerate(self.chains()):
            chains.append([_First(t, norms[scale], at, scale) for t in chain])
        MultiScale(self.shape, chains, self.factor_out)._call(x)
        self.initialized.fill_(True)

        return True

    def visit(self, look: Callable[[Any, Tensor | None], None], x: Tensor | None) -> None:
        """Show each residual step, and what it gets from the images x in [0, 1]."""
        chains = self.chains()
        if x is None:
            for transform in (t for chain in chains for t in chain if hasattr(t, "solve")):
                look(transform, None)
            return
        watched: list[list[Transform]] = [
            [_Watched(t, look) if hasattr(t, "solve") else t for t in chain] for chain in chains
        ]
        MultiScale(self.shape, watched, self.factor_out)._call(x)

    def _actnorms(self) -> list[ChannelActNorms]:
        return [norms for norms in self.actnorms if isinstance(norms, ChannelActNorms)]

    def _parameter(self) -> Tensor:
        return self._actnorms()[0].shift

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"shape={self.shape}, scales={len(self.shapes)}, factor_out={self.factor_out}"


class _Counted(Transform):
    """A step whose inverse notes how many evaluations it took."""

    def __init__(self, step: Any, counts: list[Tensor]) -> None:
        super().__init__()
        self.step, self.counts = step, counts

    def _inverse(self, y: Tensor) -> Tensor:
        solution: Solution = self.step.solve(y)
        self.counts.append(solution.iterations)
        x: Tensor = self.step.solved(solution, y)

        return x


class _Watched(Transform):
    """A step that shows itself and its argument on the way."""

    def __init__(self, step: Transform, look: Callable[[Any, Tensor | None], None]) -> None:
        super().__init__()
        self.step, self.look = step, look

    def _call(self, x: Tensor) -> Tensor:
        self.look(self.step, x)

        return self.step._call(x)


class _First(Transform):
    """A transform on its first pass: affine maps are set to standardise what comes."""

    def __init__(
        self, transform: Transform, norms: ChannelActNorms, at: list[int], scale: int
    ) -> None:
        super().__init__()
        self.transform, self.norms, self.at, self.scale = transform, norms, at, scale

    def _call(self, x: Tensor) -> Tensor:
        transform = self.transform
        if isinstance(transform, ChannelAffine):
            transform = self.norms.normalize(self.at[self.scale], x)
            self.at[self.scale] += 1

        return transform._call(x)
