"""The flows on eight Gaussians that figures 3 to 6 share, and what is measured of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from quarflow.data.toys import toy
from quarflow.experiments.paper.fit import Fit, fitted, load_weights
from quarflow.experiments.paper.run import Run
from quarflow.experiments.step import Step
from quarflow.experiments.timing import median_seconds
from quarflow.flows import Autoregressive, Flow, QuAR, ResidualFlow
from quarflow.seeds import seeded

__all__ = [
    "FLOOR",
    "MODELS",
    "Model",
    "divergence",
    "for_evaluation",
    "log_density",
    "score_seconds",
    "sparse_error",
    "train",
    "trained",
    "update_seconds",
]

DATA = toy("eight_gaussians")
FLOWS = 16  # appendix A.1
FLOOR = -20.0  # nats; log-densities below it count as it, the data's and the model's alike
LOOK_POINTS, TEST_POINTS, SPARSE_POINTS = 10_000, 100_000, 50_000


@dataclass(frozen=True)
class Model:
    """A kind of flow, and how it is trained.

    Attributes:
        name: Of the part.
        title: For pictures and tables.
        make: A new flow.
        learning_rate: The best of a short trial; see docs/paper.md.
        optimizer: The paper's choice.
    """

    name: str
    title: str
    make: Callable[[], Flow]
    learning_rate: float
    optimizer: Literal["adam", "adamax"] = "adam"

    def fit(self, steps: int, seed: int) -> Fit:
        """The settings of its training."""
        return Fit(steps, self.learning_rate, self.optimizer, seed=seed)


def _quar(**options: Any) -> Flow:
    return QuAR(2, transforms=FLOWS, hidden_features=(128, 128), **options)


# 112 instead of the paper's 128 units, so that all have as many numbers as the QuAR flow, whose
# masked weights do not exist: 206,980 in it, 211,588 in the residual and 209,796 in the
# autoregressive flow.
def _residual() -> Flow:
    return ResidualFlow(2, transforms=FLOWS, hidden_features=(112, 112), activation="elu")


def _autoregressive() -> Flow:
    return Autoregressive(2, transforms=FLOWS, hidden_features=(112, 112))


_paper = partial(_quar, activation="elu", norm="operator", order="fixed")

MODELS = {
    m.name: m
    for m in (
        Model("autoregressive", "Autoregressive", _autoregressive, 1e-2, "adamax"),
        Model("residual", "Residual", _residual, 1e-2),
        Model("quar", "QuAR", _quar, 1e-2),
        Model("quar-elu", "QuAR with ELU", partial(_quar, activation="elu"), 1e-2),
        Model("quar-paper", "QuAR, as in the paper", _paper, 1e-2),
    )
}


def train(run: Run, model: Model, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """Train and measure one flow: the numbers of a part.

    Arguments:
        run: The recipe at work.
        model: What to train.
        steps: Updates.
        seed: Of the start and the draws.
        folder: Of the part; the weights stay there.
    """
    x, truth = points(LOOK_POINTS, "look")

    def last(flow: Flow) -> dict[str, Any]:
        kl, error = divergence(flow, *points(TEST_POINTS, "test"))
        return {"kl": kl, "kl_error": error, "sparse_error": sparse_error(flow)}

    found = fitted(
        model.make,
        DATA.sample,
        model.fit(steps, seed),
        lambda flow: {"kl": divergence(flow, x, truth)[0]},
        last,
        folder,
        run,
        model.name,
    )

    return {"model": model.name, **found}


def trained(model: Model, folder: Path) -> Flow:
    """The flow that :func:`train` left in a part's folder, ready to be evaluated."""
    flow = model.make()
    load_weights(flow, folder)

    return for_evaluation(flow)


def for_evaluation(flow: Flow) -> Flow:
    """The same flow with exact log-determinants, in evaluation mode."""
    if isinstance(flow, ResidualFlow) and flow.logdet.mode != "exact":
        exact = ResidualFlow(**(flow.arguments | {"logdet": "exact"}))
        exact.load_state_dict(flow.state_dict())
        flow = exact

    return flow.eval()


@torch.no_grad()
def log_density(flow: Flow, x: Tensor) -> Tensor:
    """Exact log-density in float64, shape (N), of points (N, 2)."""
    p = for_evaluation(flow)()

    return torch.cat([p.log_prob(part).double() for part in x.split(5000)])


def points(count: int, kind: str) -> tuple[Tensor, Tensor]:
    """A fixed sample of the data, the same for every model and seed, and its log-density."""
    x = DATA.sample(count, seeded(0, kind))

    return x, DATA.log_prob(x.double())


def divergence(flow: Flow, x: Tensor, truth: Tensor) -> tuple[float, float]:
    """KL from the data to the model in nats over a sample of the data, and its standard error.

    Arguments:
        flow: The model.
        x: Draws of the data, shape (N, 2).
        truth: Their exact log-densities, shape (N).
    """
    gap = truth - log_density(flow, x)

    return gap.mean().item(), gap.std().item() / math.sqrt(len(gap))


def sparse_error(
    flow: Flow, floors: tuple[float, ...] = (-12.0, FLOOR, -30.0)
) -> dict[str, float]:
    """Root mean square error of the log-density where there are hardly any data.

    Over points drawn uniformly in the toy's box, of those where the data's density is below its
    5 % quantile (5 % of the data lie where it is lower still). Both log-densities are clipped at
    a floor: far out, neither matters.
    """
    low, high = DATA.limits
    quantile = torch.quantile(points(100_000, "quantile")[1], 0.05)
    x = low + (high - low) * torch.rand(SPARSE_POINTS, 2, generator=seeded(0, "box"))
    truth = DATA.log_prob(x.double())
    x, truth = x[truth < quantile], truth[truth < quantile]
    found = log_density(flow, x)

    return {
        f"{floor:g}": (found.clamp_min(floor) - truth.clamp_min(floor))
        .square()
        .mean()
        .sqrt()
        .item()
        for floor in floors
    }


def update_seconds(model: Model, repeats: int = 15) -> float:
    """Median time of an update, on an untrained flow."""
    flow, how = model.make(), model.fit(1, 0)
    x = DATA.sample(how.batch_size, seeded(0, "time"))
    flow.initialize(x)
    step = Step(flow, optimizer=how.optimizer)

    return median_seconds(lambda: step(x), repeats)


@torch.no_grad()
def score_seconds(flow: Flow, repeats: int = 5, count: int = 10_000) -> float:
    """Median time of scoring 10,000 points, the way the flow does it by itself.

    Arguments:
        flow: A trained one.
        repeats: How often it is timed.
        count: Points.
    """
    x = DATA.sample(count, seeded(0, "time"))
    flow = flow.eval()

    return median_seconds(lambda: flow().log_prob(x), repeats)
