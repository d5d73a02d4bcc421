r"""Fitting image flows: rows of images for the training loop, the fit, and its evaluation."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from quarflow.data.images import ImageError, Images
from quarflow.flows import Flow
from quarflow.store.folder import read_model, save_flow
from quarflow.store.read import StoreError
from quarflow.store.schema import ImageConfig
from quarflow.training.rows import seeded
from quarflow.transforms import dequantise

if TYPE_CHECKING:
    from quarflow.training import Listener, TrainingSettings

__all__ = [
    "FIRST",
    "Evaluation",
    "ImageModel",
    "ImageRows",
    "default_arguments",
    "evaluate",
    "fit_images",
    "hold_out",
    "make_flow",
    "parameter_counts",
]

BLOCK = 256  # images that share one stream of noise in an evaluation
FIRST = 256  # images for the data-dependent initialisation
MOST_HELD_OUT = 1000
Name = Literal["ImageQuAR", "ImageResidualFlow"]


class ImageRows:
    """Images as rows of the training loop: dequantised anew in each batch.

    Arguments:
        images: Whole grey levels.
        flip: Whether each image is mirrored left to right with probability 1/2.
        device: Where they are kept; batches are made there.

    Example:
        >>> rows = ImageRows(Images(np.zeros((5, 1, 4, 4), np.uint8), None, 17, "black"))
        >>> x, _ = rows.batch(torch.arange(2), torch.Generator().manual_seed(0))
        >>> x.shape, bool((x < 1 / 17).all())
        (torch.Size([2, 1, 4, 4]), True)
    """

    first = FIRST

    def __init__(
        self, images: Images, flip: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images.images)).to(device)
        self.levels, self.flip = images.levels, flip
        self.device = self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        """Images in [0, 1), shape (n, C, H, W), and no context."""
        x = self.images[index]
        if self.flip:
            mirrored = torch.rand(len(x), generator=generator, device=self.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)

        return dequantise(x, self.levels, generator), None

    def identity(self) -> dict[str, Any]:
        """What is asked of the images, and a digest of every pixel of each, in their order."""
        from quarflow.training.identity import digest

        pixels = digest(self.images.cpu().numpy())

        return {"levels": self.levels, "flip": self.flip, "pixels": pixels}


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
    shape, levels = tuple(flow.arguments["shape"]), flow.arguments["levels"]
    if images.shape != shape or images.levels != levels:
        raise ImageError(
            f"{images.name} has images of shape {images.shape} and {images.levels} levels; the "
            f"model is for shape {shape} and {levels} levels."
        )
    if len(images) == 0:
        raise ImageError(f"{images.name} holds no images.")
    if draws < 1 or batch_size < 1:
        raise ImageError("draws and batch_size must be at least 1.")
    begun = time.perf_counter()
    device = next(flow.parameters()).device
    rows = ImageRows(images)
    training = flow.training
    flow.eval()
    total = torch.zeros(len(images), dtype=torch.float64)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # for flows that estimate
        p = flow()  # effective weights, once
        for draw in range(draws):
            for block, start in enumerate(range(0, len(images), BLOCK)):
                index = torch.arange(start, min(start + BLOCK, len(images)))
                x, _ = rows.batch(index, seeded(seed, "evaluation", draw, block))
                for part, some in zip(index.split(batch_size), x.split(batch_size), strict=True):
                    total[part] += p.log_prob(some.to(device)).double().cpu()
    flow.train(training)
    D = math.prod(shape)
    bits = math.log2(levels) - total / (draws * D * math.log(2))
    seconds = time.perf_counter() - begun

    return Evaluation(bits.numpy(), draws, levels, D, seconds)


def default_arguments(shape: tuple[int, int, int], levels: int) -> dict[str, Any]:
    """Architecture for images of a shape: as many scales as it allows, up to 3, to 4 x 4.

    Example:
        >>> [default_arguments((1, size, size), 256)["scales"] for size in (7, 8, 28, 32)]
        [1, 2, 3, 3]
    """
    C, H, W = shape
    scales = 1
    while scales < 3 and H % 2**scales == W % 2**scales == 0 and min(H, W) >> scales >= 4:
        scales += 1

    return {
        "shape": [C, H, W],
        "scales": scales,
        "blocks": 4,
        "hidden_channels": 96,
        "levels": levels,
        "alpha": 0.05 if C > 1 else 1e-3,
    }


def make_flow(name: str, arguments: Mapping[str, Any], seed: int) -> Flow:
    """An image flow with its weights drawn from a seed.

    Raises:
        ValueError: if the flow has no such argument, or it is out of its range.
    """
    import quarflow.flows as flows

    constructor = getattr(flows, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow: Flow = constructor(**arguments)

    return flow


def parameter_counts(flow: Flow) -> dict[str, int]:
    """Parameters: those that are learned, and those of the same layers without masks.

    ``unmasked`` counts what is learned. ``total`` counts what dense 3 x 3 and 1 x 1 convolutions
    of the same width would hold, as the paper counts both of its models (section 5.2).
    """
    from quarflow.nn import CausalConv2d

    unmasked = sum(p.numel() for p in flow.parameters())
    total = unmasked
    for module in flow.modules():
        if isinstance(module, CausalConv2d):
            size = 2 * max(abs(offset) for tap in module.taps[0] for offset in tap) + 1
            inside, outside = (module.channels * k for k in (module.units_in, module.units_out))
            total += len(module.reverse) * inside * outside * size * size
            total -= sum(
                w.numel() for w in (module.off_center, module.off_diagonal, module.diagonal)
            )

    return {"total": total, "unmasked": unmasked}


@dataclass
class ImageModel:
    """A fitted image flow with what is known about it.

    Attributes:
        flow: The flow, with the averaged weights that were best on the validation images.
        images: What it was fitted to.
        settings: Every choice made.
        metrics: How well it did.
        history: One dict per evaluation while training.
    """

    flow: Flow
    images: ImageConfig
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it as a folder, atomically; see :mod:`quarflow.store`."""
        save_flow(
            self.flow,
            folder,
            images=self.images,
            settings=self.settings,
            metrics=self.metrics,
            log=self.history,
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> ImageModel:
        """Read one back; nothing in the folder is executed.

        Raises:
            StoreError: if the folder does not hold a whole, valid image model.
        """
        from quarflow.training.device import choose_device

        model = read_model(folder)
        if model.config.images is None:
            raise StoreError(f"{folder} does not hold an image model.")

        return cls(
            model.flow.to(choose_device(device)),
            model.config.images,
            model.config.settings,
            model.metrics,
            model.log,
        )


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


def fit_images(
    images: Images,
    settings: TrainingSettings,
    *,
    name: Name = "ImageQuAR",
    arguments: Mapping[str, Any] | None = None,
    flip: bool = False,
    validation_fraction: float = 0.1,
    first: int = FIRST,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    on_event: Listener | None = None,
) -> ImageModel:
    """Fit an image flow by maximum likelihood.

    Arguments:
        images: Whole grey levels; some are held out to choose the best weights by.
        settings: Of the training; its seed also draws the weights and the validation part.
        name: Of the flow.
        arguments: Of the flow, over :func:`default_arguments`.
        flip: Whether training images are mirrored at random. It changes what is modelled: only
            for images that are as likely as their mirror images.
        validation_fraction: How many images are held out, at most 1,000.
        first: Images for the data-dependent initialisation, if a batch is not larger.
        device: ``auto``, ``cpu`` or ``cuda``.
        checkpoint, resume, on_event: See :func:`quarflow.training.train`.

    A signal to stop is passed on after the checkpoint was written: within a
    :class:`quarflow.training.StopSignals` context there is a model of the best so far first.

    Raises:
        ValueError: if something cannot be as asked, in plain words.

    Example:
        >>> from quarflow.training import TrainingSettings
        >>> x = Images(np.zeros((32, 1, 4, 4), np.uint8), None, 17, "black")
        >>> model = fit_images(x, TrainingSettings(max_epochs=1, batch_size=8),
        ...     arguments={"blocks": 1, "hidden_channels": 4})
        >>> model.metrics["parameters"]["unmasked"] < model.metrics["parameters"]["total"]
        True
    """
    from quarflow.training import train
    from quarflow.training.device import choose_device

    chosen = {**default_arguments(images.shape, images.levels), **(arguments or {})}
    flow = make_flow(name, chosen, settings.seed)
    train_part, valid_part = hold_out(images, validation_fraction, settings.seed)
    home = choose_device(device)
    rows = ImageRows(train_part, flip, home)
    rows.first = first
    result = train(
        flow,
        rows,
        ImageRows(valid_part, device=home),
        settings,
        device=device,
        checkpoint=checkpoint,
        resume=resume,
        identity={"flip": flip, "validation_fraction": validation_fraction},
        on_event=on_event,
    )
    D, levels = math.prod(images.shape), images.levels
    metrics = {
        "images": len(images),
        "train_images": len(train_part),
        "valid_images": len(valid_part),
        "steps": result.steps,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "valid_bits_per_dim": to_bits(result.best, D, levels),
        "stopped": result.stopped,
        "interrupted": result.interrupted,
        "device": result.device,
        "recoveries": result.recoveries,
        "parameters": parameter_counts(flow),
    }
    return ImageModel(
        flow.eval(),
        ImageConfig(shape=images.shape, levels=levels, name=images.name),
        {
            "flow": name,
            **flow.arguments,
            "flip": flip,
            "validation_fraction": validation_fraction,
            **asdict(settings),
        },
        metrics,
        [with_bits(record, D, levels) for record in result.history],
    )


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
