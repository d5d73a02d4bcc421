r"""Residual flows over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quarflow.flows.checks import check_sigma
from quarflow.flows.estimated import Estimated
from quarflow.flows.images import ImageDistribution, ImageFlow
from quarflow.flows.register import family
from quarflow.nn import LipschitzConvNet
from quarflow.transforms import LogDet, ResidualStep, Transform

__all__ = ["ImageResidualDistribution", "ImageResidualFlow"]


LOGDET = LogDet(memory_saving=True)


class ImageResidualDistribution(Estimated, ImageDistribution):
    r"""The distribution of a residual flow over images, whose log-density is an estimate.

    Arguments:
        transform, base, shape: As in :class:`ImageDistribution`.

    Example:
        >>> p = ImageResidualFlow((1, 4, 4), scales=1, transforms=1, hidden_channels=4)()
        >>> p.log_prob(torch.rand(5, 1, 4, 4)).shape
        torch.Size([5])
    """


@family
class ImageResidualFlow(ImageFlow):
    r"""Residual flow over images: steps x + F(x) with Lip(F) < 1 and dense Jacobians.

    At each scale ``transforms`` steps with F = activation, 3x3, activation, 1x1, activation, 3x3,
    every convolution of norm at most ``sigma``, and ActNorm before and after each. In training the
    log-det takes ``logdet.terms`` terms and a random number more, in evaluation (``flow.eval()``)
    ``eval_terms``. The fully connected steps of the reference are left out, as in the paper.

    Reference:
        | Residual Flows for Invertible Generative Modeling (Chen et al., 2019)
        | https://arxiv.org/abs/1906.02735

    Arguments:
        shape: (C, H, W).
        scales: How many; the image is squeezed in between.
        transforms: Number T of residual steps at each scale.
        hidden_channels: Width of the hidden layers.
        activation: ``lipswish`` (the reference's), ``elu``, ``sin`` or ``tanh``.
        sigma: Largest norm of each layer, in (0, 1).
        logdet: How log-dets are computed in training, or its ``mode`` alone: ``unbiased``,
            ``truncated`` or ``exact``; see :class:`quarflow.transforms.LogDet`.
        eval_terms: Terms that are always taken in evaluation.
        factor_out: Whether half of the variables are done after each scale.
        alpha: Of the logit: 0.05 for colour images, 1e-6 for MNIST.
        first_preactivation: Whether the very first step starts with an activation.
        base: ``normal`` or ``student-t``.
        levels: Grey levels of the images.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> flow = ImageResidualFlow((1, 8, 8), scales=2, transforms=2, hidden_channels=8)
        >>> flow.bits_per_dim(torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)).shape
        torch.Size([5])
    """

    distribution = ImageResidualDistribution

    def __init__(
        self,
        shape: Sequence[int],
        *,
        scales: int = 3,
        transforms: int = 16,
        hidden_channels: int = 512,
        activation: str = "lipswish",
        sigma: float = 0.98,
        logdet: LogDet | Literal["unbiased", "truncated", "exact"] = LOGDET,
        eval_terms: int = 20,
        factor_out: bool = False,
        alpha: float = 0.05,
        first_preactivation: bool = False,
        base: Literal["normal", "student-t"] = "normal",
        levels: int = 256,
    ) -> None:
        super().__init__(shape, scales, transforms, factor_out, alpha, base, levels)
        check_sigma(sigma)
        assert isinstance(logdet, LogDet)
        self._logdets = {True: logdet, False: replace(logdet, terms=eval_terms)}
        self.branches = nn.ModuleList(
            LipschitzConvNet(
                size,
                hidden_channels,
                [first_preactivation or t > 0 or s > 0 for t in range(transforms)],
                activation,
                sigma,
            )
            for s, size in enumerate(self.shapes)
        )

    @property
    def logdet(self) -> LogDet:
        """How log-dets are computed now, in training or in evaluation."""
        return self._logdets[self.training]

    def steps(self, scale: int) -> list[Transform]:
        """The residual steps of a scale, with their effective weights."""
        branch = self.branches[scale]
        assert isinstance(branch, LipschitzConvNet)

        return [ResidualStep(bound, self.logdet) for bound in branch.bind()]

    def estimate(self, p: Any, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Log-density with probes and roulette from a generator."""
        found: Tensor = p.log_prob(x, generator)

        return found

    @property
    def largest_slope(self) -> float:
        """What ``sigma`` and the three layers allow Lip(F) to be."""
        return float(self.arguments["sigma"] ** 3)
