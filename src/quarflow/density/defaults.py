r"""Choices made from the data: how wide, how many steps, how long to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "IMAGE_TRAINING",
    "Defaults",
    "choose_defaults",
    "has_few_rows",
    "image_architecture",
]

FEW_ROWS = 10  # for each column
NO_LIMIT = 10**6  # epochs, where a time budget is the only limit

# Of images, over the defaults of TrainingSettings.
IMAGE_TRAINING: dict[str, Any] = {
    "batch_size": 64,
    "learning_rate": 3e-3,
    "clip": 1.0,
    "ema": 0.998,
    "checkpoint_seconds": 60.0,
}


@dataclass(frozen=True)
class Defaults:
    """What :func:`choose_defaults` chooses.

    Attributes:
        transforms: Residual steps.
        hidden_features: Widths of the hidden layers.
        batch_size: Rows per update.
        learning_rate: The highest rate of the schedule.
        max_epochs: Passes over the data at most.
        patience: Evaluations without improvement before the rate is cut.
        ema: Decay of the averaged weights.
        weight_decay: Decoupled weight decay.
    """

    transforms: int
    hidden_features: tuple[int, ...]
    batch_size: int
    learning_rate: float
    max_epochs: int
    patience: int
    ema: float
    weight_decay: float


def has_few_rows(rows: int, features: int) -> bool:
    """Whether rows are so few beside the columns that little can be learnt but a Gaussian.

    Example:
        >>> has_few_rows(1350, 1000), has_few_rows(1350, 10)
        (True, False)
    """
    return rows < FEW_ROWS * features


def choose_defaults(rows: int, features: int, context: int = 0) -> Defaults:
    """Defaults for a table of so many training rows, features and context variables.

    Example:
        >>> choose_defaults(15_000, 10).hidden_features
        (128, 128)
    """
    small, tiny = rows < 4000, rows < 1000
    width = 64 if small else 128 if rows < 200_000 else 192
    # From 64 features on, at least 2 units per dimension, so that each has a nonlinear diagonal.
    # A table with few rows for each column gets one unit, and half of the steps.
    few = has_few_rows(rows, features)
    width = max(width, features if few else 2 * features)
    batch = min(
        max(2 ** max((rows // 40).bit_length() - 1, 0), 16), 256 if rows < 100_000 else 512
    )
    # Few rows are soon learnt by heart; many deserve several thousand updates and more.
    updates = 1500 if tiny else 3000 if small else 6000 if rows < 100_000 else 12_000
    epochs = max(1, round(updates * batch / rows))

    return Defaults(
        transforms=2 if few else 4 if tiny else 6 if small else 8,
        hidden_features=(width, width),
        batch_size=batch,
        learning_rate=5e-3,
        max_epochs=epochs,
        patience=5 if few else 10,
        ema=0.99 if small else 0.998,
        weight_decay=3.0 if few else 1.0 if tiny else 0.3,
    )


def image_architecture(shape: tuple[int, int, int], levels: int) -> dict[str, Any]:
    """Architecture for images of a shape: as many scales as it allows, up to 3, to 4 x 4.

    Example:
        >>> [image_architecture((1, size, size), 256)["scales"] for size in (7, 8, 28, 32)]
        [1, 2, 3, 3]
    """
    C, H, W = shape
    scales = 1
    while scales < 3 and H % 2**scales == W % 2**scales == 0 and min(H, W) >> scales >= 4:
        scales += 1

    return {
        "shape": [C, H, W],
        "scales": scales,
        "transforms": 4,
        "hidden_channels": 96,
        "levels": levels,
        "alpha": 0.05 if C > 1 else 1e-3,
    }
