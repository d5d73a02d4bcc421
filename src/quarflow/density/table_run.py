r"""A fit to a table: training, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quarflow.density.starting import fall_back, what_happened
from quarflow.density.table_fit import Made, settings_of
from quarflow.flows import QuAR
from quarflow.training import TrainingProgress, train

__all__ = ["Ran", "run"]


@dataclass(frozen=True)
class Ran:
    """What came of a fit.

    Attributes:
        flow: The trained flow, or the Gaussian that no row speaks against.
        history: One dict per evaluation.
        settings: Every choice that was made.
        metrics: How well it did.
    """

    flow: QuAR
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    metrics: dict[str, Any]


def run(made: Made, asked: Mapping[str, Any], begun: float) -> Ran:
    """Train, and fall back to the Gaussian where that is as good.

    Arguments:
        made: All that is needed to train.
        asked: Arguments of the estimator, of which those of a run count here.
        begun: When the fit began, by ``time.perf_counter``.
    """
    model = made.model()
    with TrainingProgress(verbose=bool(asked["verbose"])) as progress:
        if made.told:
            progress.say(made.told)
        result = train(
            model,
            made.train_rows,
            made.valid_rows,
            made.settings,
            device=asked["device"],
            checkpoint=asked["checkpoint"],
            resume=asked["resume"],
            identity=made.identity(),
            on_event=progress,
            begun=begun,
        )
        flow, told = fall_back(made.flow, made.start, result, model)
        if told:
            progress.say(told)
    flow = flow.cpu().eval()
    metrics = made.counts(flow) | what_happened(result, made.start, told)

    return Ran(flow, result.history, settings_of(made, flow, result), metrics)
