r"""What a fit to a table consists of, before training: preprocessing, rows, flow and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quarflow.data.column_notices import dependence
from quarflow.data.columns import Columns
from quarflow.data.encode import Encoded
from quarflow.density.base import RUN
from quarflow.density.data_units import DataUnits, data_units
from quarflow.density.defaults import NO_LIMIT, Defaults, choose_defaults
from quarflow.density.rows import PatternRows, TableRows
from quarflow.density.starting import Start, find_start, start_from
from quarflow.density.table_model import TableModel
from quarflow.files import plain
from quarflow.flows import Flow, MixedQuAR, QuAR
from quarflow.training import TrainingResult, TrainingSettings

__all__ = [
    "Made",
    "asks_any",
    "build_flow",
    "build_mixed",
    "build_settings",
    "prepare",
    "settings_of",
]

MOST_HELD_OUT = 50_000
QUERIES = ("auto", "any", "none")
WHOLE = 0.4  # part of the training rows that is modelled whole, where anything may be asked
CONTEXT_FEATURES = (128, 128)


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
    """

    columns: Columns
    context_columns: Columns | None
    train_rows: TableRows
    valid_rows: TableRows
    flow: QuAR | MixedQuAR
    chosen: dict[str, Any]
    settings: TrainingSettings
    start: Start | None = None

    def model(self) -> DataUnits | TableModel:
        """The flow in data units, as it is trained."""
        if isinstance(self.flow, MixedQuAR):
            return TableModel(self.flow, self.columns, self.context_columns)

        return data_units(self.flow, self.columns, self.context_columns)

    def notice(self, rows: NDArray[np.float64]) -> str | None:
        """A sentence on columns of the rows that others determine exactly, if there are any."""
        parts = self.columns.parts()
        numbers = rows[:, parts.numbers]
        there = ~np.isnan(numbers).any(1)
        if there.sum() < 2 or not numbers.shape[1]:
            return None

        return dependence(numbers[there], parts.columns)

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

    def counts(self, flow: Flow | MixedQuAR) -> dict[str, int]:
        """Rows, columns, and parameters of the flow that was kept."""
        given = self.context_columns

        return {
            "rows": len(self.train_rows) + len(self.valid_rows),
            "train_rows": len(self.train_rows),
            "valid_rows": len(self.valid_rows),
            "columns": len(self.columns.names),
            "context": 0 if given is None else len(given.names),
            "parameters": sum(p.numel() for p in flow.parameters()),
        }


def prepare(
    asked: Mapping[str, Any],
    rows: NDArray[np.float64],
    known: Encoded,
    given: NDArray[np.float64] | None,
    context_names: list[str],
    seed: int,
) -> Made:
    """Fit the preprocessing, hold rows out, choose what is "auto", and make the flow.

    Arguments:
        asked: Arguments of the estimator.
        rows: The table, (n, D).
        known: What is known of its columns.
        given, context_names: The context, (n, C) or None, and its columns.
        seed: Of all random choices.

    Raises:
        ValueError: for a column that cannot be modelled or an argument out of its range.
    """
    if not 0 < asked["validation_fraction"] <= 0.5:
        raise ValueError(
            "validation_fraction must be above 0 and at most 0.5, not "
            f"{asked['validation_fraction']}."
        )
    if asked["missing"] not in ("absent", "refuse"):
        raise ValueError(f"missing must be 'absent' or 'refuse', not {asked['missing']!r}.")
    if asked["start"] not in ("auto", "none"):
        raise ValueError(f"start must be 'auto' or 'none', not {asked['start']!r}.")
    columns = Columns.fit(
        rows,
        known.names,
        bounds=asked["bounds"],
        discrete=asked["discrete"],
        tails=asked["tails"],
        drafts=known.drafts,
        asked=known.asked,
        mixed=not known.plain,
    )
    context_columns = None
    if given is not None:
        context_columns = Columns.fit(
            given, context_names, discrete="none", tails=asked["tails"], constant=True
        )
    held_out = min(max(round(asked["validation_fraction"] * len(rows)), 1), MOST_HELD_OUT)
    order = np.random.default_rng(seed).permutation(len(rows))
    width = 0 if given is None else given.shape[1]
    chosen = _chosen(asked, choose_defaults(len(rows) - held_out, rows.shape[1], width))
    chosen["queries"] = "any" if asks_any(asked, rows) else "none"
    settings = build_settings(chosen, seed)
    parts = order[held_out:], order[:held_out]
    if is_mixed(chosen["queries"], columns):
        whole = WHOLE if chosen["queries"] == "any" else 1.0
        chosen["start"] = "none"
        return Made(
            columns,
            context_columns,
            PatternRows(rows, given, columns, parts[0], context_names, whole),
            PatternRows(rows, given, columns, parts[1], context_names),
            build_mixed(chosen, columns, width, seed),
            chosen,
            settings,
        )
    train_rows, valid_rows = (
        TableRows(rows, given, columns, index, context_names) for index in parts
    )
    start = None
    if asked["start"] != "none":
        start = find_start(train_rows, valid_rows, columns, context_columns, settings)
    chosen["start"] = "gaussian" if start is not None and start.pays else "none"
    flow = build_flow(chosen, rows.shape[1], width, seed)
    if start is not None and start.pays:
        start_from(flow, start)

    return Made(columns, context_columns, train_rows, valid_rows, flow, chosen, settings, start)


def asks_any(asked: Mapping[str, Any], rows: NDArray[np.float64]) -> bool:
    """Whether any columns may be given or absent, as ``queries`` says, or holes make it.

    Raises:
        ValueError: for a value that ``queries`` cannot have, or holes where it is "none".
    """
    queries = asked["queries"]
    if queries not in QUERIES:
        raise ValueError(f"queries must be 'auto', 'any' or 'none', not {queries!r}.")
    holes = bool(np.isnan(rows).any())
    if holes and queries == "none":
        raise ValueError(
            "queries='none' is for complete tables, and this one has missing values: leave "
            "queries at 'auto', or leave those rows out."
        )

    return holes or queries == "any"


def is_mixed(queries: str, columns: Columns) -> bool:
    """Whether the density is more than one flow over all columns of complete rows."""
    return queries == "any" or bool(columns.parts().sizes)


def _chosen(asked: Mapping[str, Any], auto: Defaults) -> dict[str, Any]:
    """The arguments, with what is "auto" taken from the defaults."""
    values: dict[str, Any] = plain(asked)
    for name, value in asdict(auto).items():
        if values[name] == "auto":
            values[name] = value
    if asked["minutes"] is not None and asked["max_epochs"] == "auto":
        values["max_epochs"] = NO_LIMIT  # the time budget is the only limit

    return values


def settings_of(made: Made, flow: Flow | MixedQuAR, result: TrainingResult) -> dict[str, Any]:
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


def build_mixed(chosen: Mapping[str, Any], columns: Columns, context: int, seed: int) -> MixedQuAR:
    """The flow over numbers and categories with the chosen arguments, initialised from a seed."""
    parts = columns.parts()
    names = ("transforms", "norm", "order", "activation", "sigma", "mix", "base")
    width = tuple(chosen["hidden_features"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)

        flow = MixedQuAR(
            len(parts.numbers),
            context + len(parts.feature_owner) * (chosen["queries"] == "any"),
            categories=parts.sizes,
            switches=parts.switches,
            patterns=chosen["queries"] == "any",
            hidden_features=width,
            categorical_features=width,
            context_features=CONTEXT_FEATURES,
            **{name: chosen[name] for name in names},
        )

    return flow.float()


def build_settings(chosen: Mapping[str, Any], seed: int) -> TrainingSettings:
    """The training settings among the chosen arguments."""
    names = {field.name for field in fields(TrainingSettings)}

    return TrainingSettings(
        seed=seed, evaluate_start=True, **{k: v for k, v in chosen.items() if k in names}
    )
