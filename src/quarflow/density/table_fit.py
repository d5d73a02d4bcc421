r"""What a fit to a table consists of, before training: preprocessing, rows, flow and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quarflow.data.columns import Columns
from quarflow.density.base import RUN
from quarflow.density.data_units import DataUnits, data_units
from quarflow.density.defaults import NO_LIMIT, Defaults, choose_defaults
from quarflow.density.held_out import MOST
from quarflow.density.rows import TableRows
from quarflow.density.starting import Start, find_start, start_from
from quarflow.density.trusted import share_set_aside, trusted
from quarflow.density.weights import effective_rows, weighed
from quarflow.files import plain
from quarflow.flows import Flow, QuAR
from quarflow.training import TrainingResult, TrainingSettings

__all__ = ["Made", "build_flow", "build_settings", "prepare", "settings_of"]

MOST_HELD_OUT = 50_000


@dataclass(frozen=True)
class Made:
    """All that is needed to train.

    Attributes:
        columns, context_columns: The fitted preprocessing.
        train_rows, valid_rows: In data units.
        flow: With its first weights.
        chosen: Arguments of the estimator, with what was "auto" decided.
        settings: Of the training.
        start: The best Gaussian, None if there shall be none.
        set_aside: How many rows were not trusted.
    """

    columns: Columns
    context_columns: Columns | None
    train_rows: TableRows
    valid_rows: TableRows
    flow: QuAR
    chosen: dict[str, Any]
    settings: TrainingSettings
    start: Start | None
    set_aside: int = 0

    @property
    def told(self) -> str:
        """A sentence on rows that were set aside, "" if none were."""
        if not self.set_aside:
            return ""
        rows = self.set_aside + len(self.train_rows) + len(self.valid_rows)

        return (
            f"{self.set_aside:,} of {rows:,} rows are set aside as likely anomalies "
            f"(contamination={self.chosen['contamination']!r})."
        )

    def model(self) -> DataUnits:
        """The flow in data units, as it is trained."""
        return data_units(self.flow, self.columns, self.context_columns)

    def held_out(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Validation rows, at most so many as scores are kept of, and their context."""
        rows = self.valid_rows

        return rows.x[:MOST].numpy(), None if rows.c is None else rows.c[:MOST].numpy()

    def their_weights(self) -> NDArray[np.float64] | None:
        """Weights of the rows of :meth:`held_out`, None if all count the same."""
        weights = self.valid_rows.weights

        return None if weights is None else weights[:MOST].numpy()

    def identity(self) -> dict[str, Any]:
        """What the fit is, besides its rows and training settings, for its checkpoints."""
        training = [field.name for field in fields(TrainingSettings)]
        known = {*RUN, "random_state", *training, *self.flow.arguments}
        found: dict[str, Any] = {
            **{name: value for name, value in self.chosen.items() if name not in known},
            **self.flow.arguments,
        }
        parts = {"columns": self.columns, "context columns": self.context_columns}
        for kind, some in parts.items():
            if some is not None:
                found[kind] = some.names
                found[f"the preprocessing of {kind}"] = {
                    repr(column.name): column.model_dump(mode="json") for column in some.columns
                }

        return found

    def counts(self, flow: Flow) -> dict[str, int]:
        """Rows, columns, and parameters of the flow that was kept."""
        given, weights = self.context_columns, self.train_rows.weights
        told = {}
        if self.set_aside:
            told["set_aside"] = self.set_aside
        if weights is not None:
            told["effective_rows"] = round(effective_rows(weights.numpy()))

        return {
            "rows": len(self.train_rows) + len(self.valid_rows),
            "train_rows": len(self.train_rows),
            "valid_rows": len(self.valid_rows),
            "columns": len(self.columns.names),
            "context": 0 if given is None else len(given.names),
            "parameters": sum(p.numel() for p in flow.parameters()),
            **told,
        }


def prepare(
    asked: Mapping[str, Any],
    rows: NDArray[np.float64],
    names: list[str],
    given: NDArray[np.float64] | None,
    context_names: list[str],
    seed: int,
    weights: NDArray[np.float64] | None = None,
) -> Made:
    """Fit the preprocessing, hold rows out, choose what is "auto", and make the flow.

    Arguments:
        asked: Arguments of the estimator.
        rows, names: The table, (n, D), and its columns.
        given, context_names: The context, (n, C) or None, and its columns.
        seed: Of all random choices.
        weights: Of the rows, (n), above 0; None if all count the same.

    Raises:
        ValueError: for a column that cannot be modelled or an argument out of its range.
    """
    if not 0 < asked["validation_fraction"] <= 0.5:
        raise ValueError(
            "validation_fraction must be above 0 and at most 0.5, not "
            f"{asked['validation_fraction']}."
        )
    share = share_set_aside(asked["contamination"])
    if asked["start"] not in ("auto", "none"):
        raise ValueError(f"start must be 'auto' or 'none', not {asked['start']!r}.")
    columns = Columns.fit(
        rows,
        names,
        bounds=asked["bounds"],
        discrete=asked["discrete"],
        tails=asked["tails"],
    )
    columns = weighed(columns, rows, weights)
    context_columns = None
    if given is not None:
        context_columns = Columns.fit(
            given, context_names, discrete="none", tails=asked["tails"], constant=True
        )
        context_columns = weighed(context_columns, given, weights)
    kept = trusted(rows, given, columns, context_columns, weights, share)
    order = np.random.default_rng(seed).permutation(len(rows))
    order = order[kept[order]]
    held_out = min(max(round(asked["validation_fraction"] * len(order)), 1), MOST_HELD_OUT)
    train_rows, valid_rows = (
        TableRows(rows, given, columns, index, context_names, weights)
        for index in (order[held_out:], order[:held_out])
    )
    width = 0 if given is None else given.shape[1]
    chosen = _chosen(asked, choose_defaults(len(train_rows), rows.shape[1], width))
    settings = build_settings(chosen, seed)
    start = None
    if asked["start"] != "none":
        start = find_start(train_rows, valid_rows, columns, context_columns, settings)
    chosen["start"] = "gaussian" if start is not None and start.pays else "none"
    flow = build_flow(chosen, rows.shape[1], width, seed)
    if start is not None and start.pays:
        start_from(flow, start)

    return Made(
        columns,
        context_columns,
        train_rows,
        valid_rows,
        flow,
        chosen,
        settings,
        start,
        set_aside=len(rows) - len(order),
    )


def _chosen(asked: Mapping[str, Any], auto: Defaults) -> dict[str, Any]:
    """The arguments, with what is "auto" taken from the defaults."""
    values: dict[str, Any] = plain(asked)
    for name, value in asdict(auto).items():
        if values[name] == "auto":
            values[name] = value
    if asked["minutes"] is not None and asked["max_epochs"] == "auto":
        values["max_epochs"] = NO_LIMIT  # the time budget is the only limit

    return values


def settings_of(made: Made, flow: Flow, result: TrainingResult) -> dict[str, Any]:
    """Every choice that was made, in Python's own types."""
    return {
        # random_state may be a generator; what it gave is the seed
        **{k: v for k, v in made.chosen.items() if k not in {*RUN, "random_state"}},
        **flow.arguments,
        **asdict(made.settings),
        "steps_per_epoch": result.steps_per_epoch,
        "evaluate_every": result.evaluate_every,
        "device": result.device,
    }


def build_flow(chosen: Mapping[str, Any], features: int, context: int, seed: int) -> QuAR:
    """The flow with the chosen arguments, initialised from a seed."""
    names = ("transforms", "norm", "order", "activation", "sigma", "mix", "base", "start")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)

        flow = QuAR(
            features,
            context,
            hidden_features=tuple(chosen["hidden_features"]),
            **{name: chosen[name] for name in names},
        )

    return flow.float()  # whatever the default dtype is


def build_settings(chosen: Mapping[str, Any], seed: int) -> TrainingSettings:
    """The training settings among the chosen arguments."""
    names = {field.name for field in fields(TrainingSettings)}

    return TrainingSettings(
        seed=seed, evaluate_start=True, **{k: v for k, v in chosen.items() if k in names}
    )
