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
from quarflow.density.data_units import DataUnits
from quarflow.density.defaults import has_few_rows
from quarflow.density.gaussian import Gaussian, best_gaussian, marginal_entropies
from quarflow.density.rows import TableRows
from quarflow.density.weights import effective_rows
from quarflow.flows import QuAR
from quarflow.seeds import seeded
from quarflow.training.rows import Plan, Rows, validation_batch, weights_of
from quarflow.training.settings import TrainingResult, TrainingSettings
from quarflow.transforms import call_and_ladj

__all__ = [
    "Judge",
    "Start",
    "fall_back",
    "find_start",
    "gaussian_flow",
    "start_from",
    "what_happened",
]

Array = NDArray[np.float64]

MOST_ROWS = 100_000  # that a Gaussian is fitted to
WORTH = 0.7  # nats a column that mixing has to bring: with 0.4 whole fits were worse for it
MANY_ROWS = 50  # for each column; with fewer, whitening makes noise loud
CLEAR = math.log(20)  # nats in all by which a flow has to be better
JUDGED = 10_000  # validation rows that a flow is compared with the Gaussian on


@dataclass(frozen=True)
class Judge:
    """Validation rows with the noise that training evaluates them with.

    Attributes:
        x, c: The rows in data units, (n, D), and their context, (n, C) or None.
        nats: Of the Gaussian on each row, in data units, (n).
        weights: Of the rows, (n), None if all count the same.
    """

    x: Tensor
    c: Tensor | None
    nats: Array
    weights: Array | None = None

    def evidence(self, model: DataUnits, size: int = 1024) -> float:
        """How many nats fewer all rows together, at most JUDGED, take under a flow.

        Of weighted rows: as many as tell the same, times the weighted mean.
        """
        at, found = next(model.parameters()).device, []
        with torch.no_grad():
            for index in torch.arange(min(len(self.x), JUDGED)).split(size):
                c = None if self.c is None else self.c[index].to(at)
                log_prob = model(c).log_prob(self.x[index].to(at)).double()
                found.append(self.nats[index] + log_prob.cpu().numpy())
        gains = np.concatenate(found)
        if self.weights is None:
            return float(gains.sum())
        weights = self.weights[: len(gains)]

        return float(weights @ gains / weights.sum()) * effective_rows(weights)


@dataclass(frozen=True)
class Start:
    """The best Gaussian of the standardised columns, and whether to train from it.

    Attributes:
        gaussian: The Gaussian.
        nats: Its mean on the validation rows, in data units; infinite where it has no finite one.
        pays: Whether to train from it.
        gently: Whether the steps shall begin as identities, so that the first weights to be
            kept are the Gaussian itself.
        valid: The validation rows, to compare a flow with it.
    """

    gaussian: Gaussian
    nats: float
    pays: bool
    gently: bool
    valid: Judge


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
    weights, valid_weights = _numbers(weights_of(train_rows, index)), _numbers(valid_rows.weights)
    gaussian = best_gaussian(u, c, valid, valid_c, weights, valid_weights)[0]
    nats = gaussian.nats(valid, valid_c) - ladj
    cells = valid_rows.cells
    if cells.discrete:  # as in DataUnits: probabilities instead of densities
        nats -= cells.log_measure(batch[0]).numpy()
    mean = float(np.average(nats, weights=valid_weights))

    few = has_few_rows(len(train_rows), u.shape[1])

    return Start(
        gaussian,
        mean if math.isfinite(mean) else math.inf,
        pays=few or _pays(gaussian, u, c),
        gently=few,
        valid=Judge(*batch, nats, valid_weights),
    )


def _numbers(weights: Tensor | None) -> Array | None:
    return None if weights is None else weights.numpy()


def _pays(gaussian: Gaussian, u: Array, c: Array | None) -> bool:
    """Whether training from the Gaussian was better than without in comparisons.

    It has to mix columns, there have to be many rows for each of them, and what it makes of them
    has to be nearer to independence, by far, than they are themselves, each with a density of its
    own: columns with spikes, or that depend little, are better left alone.
    """
    if gaussian.kind == "independent" or len(u) < MANY_ROWS * u.shape[1]:
        return False
    before, after = (marginal_entropies(rows).sum() for rows in (u, gaussian.standardised(u, c)))

    return bool(before - after + gaussian.ladj > WORTH * u.shape[1])


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


def fall_back(
    flow: QuAR, start: Start | None, result: TrainingResult, model: DataUnits
) -> tuple[QuAR, str]:
    """The trained flow, or the Gaussian where validation rows do not tell clearly against it.

    Were rows drawn from the Gaussian, a flow's likelihood on rows that it has not seen would be
    20 times that of the Gaussian in one fit of 20 at most, whatever the flow and however few the
    rows: this is what is asked of it, in all on the validation rows. Without that the weights
    kept, the luckiest of many evaluations, are nearly always better than the truth.

    Arguments:
        flow: As trained.
        start: The Gaussian, None to keep the flow whatever comes.
        result: Of the training.
        model: The flow in data units.

    Returns:
        The flow, and a sentence where it is the Gaussian, else "".

    Reference:
        | Testing by betting (Shafer, 2021), https://doi.org/10.1111/rssa.12647
    """
    if start is None or not math.isfinite(start.nats):
        return flow, ""
    evidence = start.valid.evidence(model)
    if evidence > CLEAR:
        return flow, ""
    rows = f"{min(len(start.valid.x), JUDGED):,} validation rows"
    told = (
        f"Nothing seen in training ({result.best:.3f} nats) describes the {rows} clearly better "
        f"than a Gaussian ({start.nats:.3f} nats), that is by {CLEAR:.0f} nats in all: the "
        "Gaussian is kept."
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
