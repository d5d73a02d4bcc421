"""What Table 1's models are made of, in the paper's setting and in ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ALPHA", "PUBLISHED", "Recipe", "recipe_for"]

# Table 1 of the paper: bits per dimension.
PUBLISHED: dict[str, dict[str, float]] = {
    "digits": {},
    "mnist": {"Glow": 1.05, "Residual": 0.970, "QuAR": 0.963},
    "cifar10": {"Glow": 3.35, "Flow++": 3.29, "Residual": 3.280, "QuAR": 3.378},
}
ALPHA = {"digits": 1e-6, "mnist": 1e-6, "cifar10": 0.05}  # of the logit; not stated in the paper
LEVELS = {"digits": 17, "mnist": 256, "cifar10": 256}
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
WIDTH = {"digits": 512, "mnist": 512, "cifar10": 528}  # appendix A.1


@dataclass(frozen=True)
class Recipe:
    """One model of Table 1.

    Attributes:
        flow: Its class.
        arguments: Of the flow.
        training: Arguments of ``TrainingSettings``, but for the budget and the seed.
        flip: Whether training images are mirrored at random.
    """

    flow: str
    arguments: dict[str, Any]
    training: dict[str, Any]
    flip: bool


def recipe_for(dataset: str, model: str, setting: str) -> Recipe:
    """The model of a name in a setting.

    Arguments:
        dataset: ``digits``, ``mnist`` or ``cifar10``.
        model: ``quar`` or ``residual``.
        setting: ``paper`` (appendix A.1) or ``best`` (ours; a residual flow of the same size).

    Example:
        >>> recipe_for("cifar10", "quar", "paper").arguments["hidden_channels"]
        528
    """
    arguments = _images(dataset) | (
        {"scales": 3, "transforms": 16, "hidden_channels": WIDTH[dataset]}
        if setting == "paper" or dataset != "digits"
        else BEST_DIGITS
    )
    if model == "quar":
        flow = "ImageQuAR"
        arguments |= PAPER_QUAR if setting == "paper" else BEST_QUAR
        if setting == "best" and dataset == "digits":
            arguments |= BEST_QUAR_DIGITS
    else:
        flow = "ImageResidualFlow"
        arguments |= RESIDUAL
    training = PAPER_TRAINING if setting == "paper" else BEST_TRAINING[dataset == "digits"]

    return Recipe(flow, arguments, dict(training), flip=dataset == "cifar10")


def _images(dataset: str) -> dict[str, Any]:
    return {"shape": SHAPES[dataset], "levels": LEVELS[dataset], "alpha": ALPHA[dataset]}


# Appendix A.1 and C, and for what they do not say the code of Residual Flows that they build on:
# sigma 0.98, clipping at 1, no activation at the very start left out ("ELU -> 3x3 Conv -> ...").
PAPER_QUAR: dict[str, Any] = {
    "norm": "center",
    "order": "fixed",
    "activation": "elu",
    "sigma": 0.98,
    "first_preactivation": True,
}
RESIDUAL: dict[str, Any] = {"activation": "lipswish", "sigma": 0.98}
PAPER_TRAINING: dict[str, Any] = {
    "batch_size": 64,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_steps": 0,
    "ema": 0.999,
    "clip": 1.0,
    "patience": 0,
}

# Ours: see docs/images.md for the trials behind them.
BEST_QUAR: dict[str, Any] = {
    "norm": "dimension",
    "order": "alternate",
    "activation": "lipswish",
    "sigma": 0.97,
}
BEST_DIGITS: dict[str, Any] = {
    "scales": 3,
    "transforms": 4,
    "hidden_channels": 64,
    "alpha": 1e-3,
}
# On so small images ELU learns more in the same time, and memory is no matter.
BEST_QUAR_DIGITS: dict[str, Any] = {"activation": "elu", "recompute": False}
BEST_TRAINING: dict[bool, dict[str, Any]] = {
    True: {
        "batch_size": 64,
        "learning_rate": 8e-3,
        "warmup_steps": 50,
        "ema": 0.99,
        "clip": 1.0,
        "patience": 0,
    },
    False: {
        "batch_size": 64,
        "learning_rate": 2e-3,
        "warmup_steps": 500,
        "ema": 0.999,
        "clip": 1.0,
        "patience": 0,
    },
}
