r"""QuAR flows over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from quarflow.flows.images import ImageFlow
from quarflow.flows.quar import ORDERS
from quarflow.flows.register import family
from quarflow.nn import ConvBranch
from quarflow.transforms import QuARStep, Transform

__all__ = ["ImageQuAR"]


@family
class ImageQuAR(ImageFlow):
    r"""Quasi-autoregressive residual flow over images with exact log-density.

    At each scale ``transforms`` steps x + F(x) with F = activation, 3x3, activation, 1x1,
    activation, 3x3, all convolutions causal, and an affine map per channel (ActNorm) before and
    after each.

    The paper's own choices are ``norm="center"``, ``order="fixed"``, ``activation="elu"``; the
    defaults do better.

    Reference:
        | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020), section 5.2, appendices A, C
        | https://arxiv.org/abs/2009.07419

    Arguments:
        shape: (C, H, W).
        scales: How many; the image is squeezed in between.
        transforms: Number T of residual steps at each scale.
        hidden_channels: Width of the hidden layers, rounded up to a multiple of the channels.
        norm: ``dimension`` or ``center`` (abs(d) < sigma), or ``operator`` (Lip(F) < sigma).
        order: ``alternate`` reverses the raster order every other step, ``fixed`` never does.
        activation: ``lipswish``, ``elu``, ``sin`` or ``tanh``.
        sigma: Strict bound on abs(d), in (0, 1).
        factor_out: Whether half of the variables are done after each scale.
        alpha: Of the logit: 0.05 for colour images, 1e-6 for MNIST.
        first_preactivation: Whether the very first step starts with an activation.
        base: ``normal`` or ``student-t``.
        levels: Grey levels of the images.
        trick: Whether theta of the Lipschitz Trick is learned.
        recompute: Whether hidden units are computed anew in the backward pass: far less memory.
        implementation: ``fused``, or ``paper``: dense masked convolutions under autograd.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> flow = ImageQuAR((1, 8, 8), scales=2, transforms=2, hidden_channels=8)
        >>> flow.bits_per_dim(torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)).shape
        torch.Size([5])
        >>> images, evaluations = flow.sample_images(3)
        >>> images.shape, images.dtype, evaluations.shape
        (torch.Size([3, 1, 8, 8]), torch.uint8, torch.Size([4, 3]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        scales: int = 3,
        transforms: int = 16,
        hidden_channels: int = 512,
        norm: Literal["dimension", "center", "operator"] = "dimension",
        order: Literal["alternate", "fixed"] = "alternate",
        activation: str = "lipswish",
        sigma: float = 0.97,
        factor_out: bool = False,
        alpha: float = 0.05,
        first_preactivation: bool = False,
        base: Literal["normal", "student-t"] = "normal",
        levels: int = 256,
        trick: bool = True,
        recompute: bool = True,
        implementation: Literal["fused", "paper"] = "fused",
    ) -> None:
        super().__init__(shape, scales, transforms, factor_out, alpha, base, levels)
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, not {order!r}.")
        reverse = [order == "alternate" and t % 2 == 1 for t in range(transforms)]
        self.branches = nn.ModuleList(
            ConvBranch(
                size,
                hidden_channels,
                reverse,
                [first_preactivation or t > 0 or s > 0 for t in range(transforms)],
                activation,
                norm,
                sigma,
                trick,
                recompute=recompute,
                implementation=implementation,
            )
            for s, size in enumerate(self.shapes)
        )

    def steps(self, scale: int) -> list[Transform]:
        """The QuAR steps of a scale, with their effective weights."""
        branch = self.branches[scale]
        assert isinstance(branch, ConvBranch)

        return [QuARStep(bound) for bound in branch.bind()]

    @property
    def largest_slope(self) -> float:
        """sigma: what abs(d) is at most."""
        return float(self.arguments["sigma"])
