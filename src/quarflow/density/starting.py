r"""What a fit starts from, and what it falls back to: the best Gaussian in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Transform

from quarflow.data.columns import Columns
from quarflow.density.defaults import has_few_rows
from quarflow.density.gaussian import Gaussian, best_gaussian, marginal_entropies
from quarflow.density.rows import TableRows
from quarflow.flows import QuAR
from quarflow.training.rows import Plan, Rows, seeded, validation_batch
from quarflow.training.settings import TrainingResult, TrainingSettings
from quarflow.transforms import call_and_ladj

__all__ = ["Start", "fall_back", "find_start", "gaussian_flow", "start_from", "what_happened"]

Array = NDArray[np.float64]

MOST_ROWS = 100_000  # that a Gaussian is fitted to
MANY_ROWS = 50  # for each column; with fewer, whitening makes noise loud
ROUNDING = 1e-4  # nats


@dataclass(frozen=True)
class Start:
    """The best Gaussian of the standardised columns, and whether to train from it.

    Attributes:
        gaussian: The Gaussian.
        nats: Its mean on the validation rows, in data units, with the noise that training
            evaluates them with; infinite where it has no finite one.
        pays: Whether to train from it.
        gently: Whether the steps shall begin as identities, so that the first weights to be
            kept are the Gaussian itself.
    """

    gaussian: Gaussian
    nats: float
    pays: bool
    gently: bool


def find_start(
    train_rows: TableRows,
    valid_rows: TableRows,
    columns: Columns,
    context_columns: Columns | None,
    settings: TrainingSettings,
) -> Start:
    """Fit Gaussians to the training rows, and choose by the validation rows.

    Arguments:
        train_rows, valid_rows: In data units.
        columns, context_columns: The fitted preprocessing.
        settings: Give the seed, and the batches that validation rows are evaluated in.
    """
    maps = columns.transform(), None if context_columns is None else context_columns.transform()
    index = torch.arange(min(len(train_rows), MOST_ROWS))
    batch = train_rows.batch(index, seeded(settings.seed, "gaussian"))
    u, c, _ = _standardised(maps, *batch)
    batch = _validation(valid_rows, Plan.of(len(train_rows), settings), settings)
    valid, valid_c, ladj = _standardised(maps, *batch)
    gaussian, nats = best_gaussian(u, c, valid, valid_c)
    nats -= float(ladj.mean())
    cells = valid_rows.cells
    if cells.discrete:  # as in DataUnits: probabilities instead of densities
        nats -= float(cells.log_measure(batch[0]).mean())

    few = has_few_rows(len(train_rows), u.shape[1])

    return Start(
        gaussian,
        nats if math.isfinite(nats) else math.inf,
        pays=few or _pays(gaussian, u, c),
        gently=few,
    )


def _pays(gaussian: Gaussian, u: Array, c: Array | None) -> bool:
    """Whether training from the Gaussian was better than without in comparisons.

    It has to mix columns, there have to be many rows for each of them, and what it makes of them
    has to be nearer to independence than they are themselves, each with a density of its own:
    columns with spikes are better left alone.
    """
    if gaussian.kind == "independent" or len(u) < MANY_ROWS * u.shape[1]:
        return False
    before, after = (marginal_entropies(rows).sum() for rows in (u, gaussian.standardised(u, c)))

    return bool(after - gaussian.ladj < before)


def _validation(
    rows: Rows, plan: Plan, settings: TrainingSettings
) -> tuple[Tensor, Tensor | None]:
    size = 4 * plan.batch_size
    batches = [
        validation_batch(rows, number, size, settings.seed)
        for number in range(-(-len(rows) // size))
    ]
    contexts = [c for _, c in batches if c is not None]

    return torch.cat([x for x, _ in batches]), torch.cat(contexts) if contexts else None


def _standardised(
    maps: tuple[Transform, Transform | None], x: Tensor, c: Tensor | None
) -> tuple[Array, Array | None, Array]:
    u, ladj = call_and_ladj(maps[0], x)
    if c is not None and maps[1] is not None:
        c = maps[1](c)

    return u.numpy(), None if c is None else c.numpy(), ladj.numpy()


def start_from(flow: QuAR, start: Start) -> None:
    """Put the Gaussian before the first step."""
    _put(flow, start.gaussian)
    if start.gently:
        flow.branches.calm()


def _put(flow: QuAR, gaussian: Gaussian) -> None:
    matrix, shift, context = (
        torch.from_numpy(np.ascontiguousarray(part))
        for part in (gaussian.matrix, gaussian.shift, gaussian.context)
    )
    flow.start_from(matrix, shift, context if flow.context else None)


def fall_back(flow: QuAR, start: Start | None, result: TrainingResult) -> tuple[QuAR, str]:
    """The trained flow, or the Gaussian where validation rows are described better by it.

    Returns:
        The flow, and a sentence where it is the Gaussian, else "".
    """
    if start is None or start.nats >= result.best - ROUNDING:
        return flow, ""
    told = (
        f"Validation rows are described better by a Gaussian ({start.nats:.3f} nats) than by "
        f"anything seen in training ({result.best:.3f} nats): the Gaussian is kept."
    )

    return gaussian_flow(flow, start.gaussian), told


def what_happened(result: TrainingResult, start: Start | None, told: str) -> dict[str, Any]:
    """Of a fit, for its metrics; `told` is what :func:`fall_back` said."""
    first = result.history[0] if result.history else {}
    known = start is not None and math.isfinite(start.nats)

    return {
        "steps": result.steps,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "valid_nats": start.nats if told and start is not None else result.best,
        "start_nats": first.get("valid_nats") if first.get("step") == 0 else None,
        "gaussian_nats": start.nats if known and start is not None else None,
        "gaussian": start.gaussian.kind if start is not None else None,
        "kept": "gaussian" if told else "flow",
        "stopped": f"{result.stopped} {told}".strip(),
        "interrupted": result.interrupted,
        "recoveries": result.recoveries,
    }


def gaussian_flow(flow: QuAR, gaussian: Gaussian) -> QuAR:
    """The Gaussian itself, as a flow over the same variables, whose only step does nothing."""
    arguments = flow.arguments | {
        "transforms": 1,
        "hidden_features": [1],
        "mix": "none",
        "base": "normal",
        "start": "gaussian",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights without effect, but the same in the same model
        made = QuAR(**arguments)
    _put(made, gaussian)
    made.branches.vanish()

    return made
