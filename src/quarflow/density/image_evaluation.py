r"""Bits per dimension of images under a flow, with noise that does not depend on batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quarflow.data.images import ImageError, Images
from quarflow.density.rows import ImageRows
from quarflow.flows import Flow
from quarflow.seeds import seeded

__all__ = ["Evaluation", "evaluate", "summed", "to_bits", "with_bits"]

BLOCK = 256  # images that share one stream of noise


@dataclass(frozen=True)
class Evaluation:
    """Bits per dimension of some images.

    Attributes:
        bits_per_dim: Of each image, the mean over the draws, shape (N,), float64.
        draws: Draws of the dequantisation noise.
        levels: Grey levels of the images.
        dimensions: C * H * W.
        seconds: What it took.
    """

    bits_per_dim: np.ndarray
    draws: int
    levels: int
    dimensions: int
    seconds: float

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return float(self.bits_per_dim.mean())

    @property
    def error(self) -> float | None:
        """Standard error of the mean, from how the images differ; None for a single one."""
        n = len(self.bits_per_dim)

        return float(self.bits_per_dim.std(ddof=1)) / math.sqrt(n) if n > 1 else None

    @property
    def log_prob(self) -> np.ndarray:
        """Mean over the draws of the log-density of the images in [0, 1], nats, shape (N,)."""
        bits = math.log2(self.levels) - self.bits_per_dim

        return bits * self.dimensions * math.log(2)


@torch.no_grad()
def evaluate(
    flow: Flow, images: Images, *, draws: int = 1, batch_size: int = BLOCK, seed: int = 0
) -> Evaluation:
    """Score images: each draw of noise depends on the seed and the image's number alone.

    So the result is the same, but for rounding, for any ``batch_size``; for a flow whose
    log-density is an estimate, only the noise of the dequantisation is the same.

    Arguments:
        flow: An image flow, on the device to use.
        images: Of the flow's shape and levels.
        draws: Draws of the dequantisation noise, averaged.
        batch_size: Images at a time.
        seed: Of the noise.

    Raises:
        ImageError: if the images do not suit the flow, there are none, or there is no draw.
    """
    if draws < 1 or batch_size < 1:
        raise ImageError("draws and batch_size must be at least 1.")
    begun = time.perf_counter()
    total = summed(flow, images, lambda p, x: p.log_prob(x), draws, batch_size, seed)
    D, levels = math.prod(images.shape), images.levels
    bits = math.log2(levels) - total / (draws * D * math.log(2))
    seconds = time.perf_counter() - begun

    return Evaluation(bits.numpy(), draws, levels, D, seconds)


@torch.no_grad()
def summed(
    flow: Flow,
    images: Images,
    compute: Callable[[Any, Tensor], Tensor],
    draws: int = 1,
    batch_size: int = BLOCK,
    seed: int = 0,
) -> Tensor:
    """Something of each image, by the flow's distribution, summed over draws of noise; float64.

    Arguments:
        flow, images, draws, batch_size, seed: See :func:`evaluate`.
        compute: Of the distribution and dequantised images (n, C, H, W), shape (n, *).

    Raises:
        ImageError: if the images do not suit the flow, or there are none.
    """
    shape, levels = tuple(flow.arguments["shape"]), flow.arguments["levels"]
    if images.shape != shape or images.levels != levels:
        raise ImageError(
            f"{images.name} has images of shape {images.shape} and {images.levels} levels; the "
            f"model is for shape {shape} and {levels} levels."
        )
    if len(images) == 0:
        raise ImageError(f"{images.name} holds no images.")
    device = next(flow.parameters()).device
    rows, total = ImageRows(images), torch.zeros((), dtype=torch.float64)
    training = flow.training
    flow.eval()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # for flows that estimate
        p = flow()  # effective weights, once
        for draw in range(draws):
            found = []
            for block, start in enumerate(range(0, len(images), BLOCK)):
                index = torch.arange(start, min(start + BLOCK, len(images)))
                x, _ = rows.batch(index, seeded(seed, "evaluation", draw, block))
                found += [
                    compute(p, some.to(device)).double().cpu() for some in x.split(batch_size)
                ]
            total = total + torch.cat(found)
    flow.train(training)

    return total


def to_bits(nats: float, dimensions: int, levels: int) -> float:
    """Bits per dimension from nats (-log p over [0, 1]).

    Example:
        >>> to_bits(0.0, 64, 256)  # the uniform density
        8.0
    """
    return math.log2(levels) + nats / (dimensions * math.log(2))


def with_bits(record: Mapping[str, Any], dimensions: int, levels: int) -> dict[str, Any]:
    """A line of the training's history with its nats as bits per dimension too."""
    bits = {
        f"{part}_bits_per_dim": None if nats is None else to_bits(nats, dimensions, levels)
        for part, nats in (("train", record["train_nats"]), ("valid", record["valid_nats"]))
    }

    return {**record, **bits}
