r"""Fitting an image flow: its weights, the images held out, and what is said of the run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from quarflow.data.images import ImageError, Images
from quarflow.flows import Flow, ImageQuAR, ImageResidualFlow
from quarflow.nn import TriangularLayer
from quarflow.training import TrainingSettings

__all__ = ["FLOWS", "hold_out", "make_flow", "more_settings", "parameter_counts"]

FLOWS: dict[str, Any] = {"ImageQuAR": ImageQuAR, "ImageResidualFlow": ImageResidualFlow}
MOST_HELD_OUT = 1000


def more_settings() -> list[str]:
    """Arguments of the flows, but for what the images decide, and of the training.

    Example:
        >>> "transforms" in more_settings(), "learning_rate" in more_settings()
        (True, True)
    """
    training = {field.name for field in fields(TrainingSettings)} - {"seed"}
    flow = {name for made in FLOWS.values() for name in inspect.signature(made).parameters}

    return sorted(training | flow - {"shape"})


def make_flow(name: str, arguments: Mapping[str, Any], seed: int) -> Flow:
    """An image flow with its weights drawn from a seed.

    Raises:
        ValueError: if the flow has no such argument, or it is out of its range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow: Flow = FLOWS[name](**arguments)

    return flow


def parameter_counts(flow: Flow) -> dict[str, int]:
    """Parameters: those that are learned, and those of the same layers without masks.

    ``unmasked`` counts what is learned. ``total`` counts what dense 3 x 3 and 1 x 1 convolutions
    of the same width would hold, as the paper counts both of its models (section 5.2).
    """
    unmasked = sum(p.numel() for p in flow.parameters())
    total = unmasked
    for module in flow.modules():
        if isinstance(module, TriangularLayer) and module.taps is not None:
            size = 2 * max(abs(offset) for tap in module.taps[0] for offset in tap) + 1
            inside, outside = (module.features * k for k in (module.units_in, module.units_out))
            total += len(module.reverse) * inside * outside * size * size
            total -= sum(
                w.numel() for w in (module.off_center, module.off_diagonal, module.diagonal)
            )

    return {"total": total, "unmasked": unmasked}


def hold_out(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Training and validation part, at random, at most 1,000 in the latter.

    Raises:
        ImageError: if there are fewer than two images, or the fraction is no fraction.

    Example:
        >>> ten = Images(np.zeros((10, 1, 4, 4), np.uint8), None, 256, "ten")
        >>> [len(part) for part in hold_out(ten, 0.1, 0)]
        [9, 1]
    """
    if not 0 < fraction < 1:
        raise ImageError(f"validation_fraction must be between 0 and 1, not {fraction}.")
    if len(images) < 2:
        raise ImageError(f"{images.name}: at least two images are needed, one to validate with.")
    count = min(max(1, round(fraction * len(images))), MOST_HELD_OUT, len(images) - 1)
    order = np.random.default_rng(seed).permutation(len(images))

    return images.pick(np.sort(order[count:])), images.pick(np.sort(order[:count]))
