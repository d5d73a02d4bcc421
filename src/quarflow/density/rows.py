r"""What the estimator fits: rows with their noise, and the flow and settings it chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.density.data_units import DataUnits
from quarflow.flows import Flow, QuAR

if TYPE_CHECKING:
    from quarflow.training import TrainingSettings

__all__ = ["TableRows", "build_flow", "build_settings", "data_units", "identity", "plain"]

RUN = {"checkpoint", "resume", "verbose", "device", "random_state"}  # what none of a fit is


def plain(value: Any) -> Any:
    """Python's own numbers for NumPy's, which parameter searches hand over.

    Example:
        >>> plain({"a": (np.int64(3), None)}), plain(np.array([4, 5]))
        ({'a': (3, None)}, [4, 5])
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))

    return value


class TableRows:
    """Some rows of a table in data units, with noise on the discrete columns.

    Arguments:
        rows, context: The whole table, (n, D), and its context, (n, C) or None.
        columns: The fitted preprocessing, which knows the discrete columns.
        index: Which rows.
        context_names: Of the context's columns.
    """

    def __init__(
        self,
        rows: NDArray[np.float64],
        context: NDArray[np.float64] | None,
        columns: Columns,
        index: NDArray[np.int64],
        context_names: Sequence[str] = (),
    ) -> None:
        self.x = torch.from_numpy(rows[index])
        self.c = None if context is None else torch.from_numpy(context[index])
        self.columns, self.context_names = columns, context_names
        self.cells = columns.cells()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Rows (n, D) and context (n, C) in data units, float64."""
        x = self.columns.dequantise(self.x[index], generator, self.cells)

        return x, None if self.c is None else self.c[index]

    def identity(self) -> dict[str, str]:
        """A digest of every value of each column, in the order of the rows."""
        from quarflow.training.identity import column_digests

        found = column_digests(self.x.numpy(), [f"column {n!r}" for n in self.columns.names])
        if self.c is not None:
            names = [f"context column {name!r}" for name in self.context_names]
            found |= column_digests(self.c.numpy(), names)

        return found


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
    from quarflow.training import TrainingSettings

    names = {field.name for field in fields(TrainingSettings)}

    return TrainingSettings(
        seed=seed, evaluate_start=True, **{k: v for k, v in chosen.items() if k in names}
    )


def data_units(flow: Flow, columns: Columns, context: Columns | None) -> DataUnits:
    """The flow with the preprocessing of columns and context in front of it."""
    given, cells = None if context is None else context.transform(), columns.cells()

    return DataUnits(
        flow, columns.transform(), given, cells.log_measure if cells.discrete else None
    )


def identity(
    chosen: Mapping[str, Any], flow: Flow, columns: Columns, context: Columns | None
) -> dict[str, Any]:
    """What a fit to a table is, besides its rows and training settings, for its checkpoints."""
    from quarflow.training import TrainingSettings

    known = RUN | {field.name for field in fields(TrainingSettings)} | set(flow.arguments)
    found: dict[str, Any] = {
        **{name: value for name, value in chosen.items() if name not in known},
        **flow.arguments,
    }
    for kind, some in (("columns", columns), ("context columns", context)):
        if some is not None:
            found[kind] = some.names
            found[f"the preprocessing of {kind}"] = {
                repr(column.name): column.model_dump(mode="json") for column in some.columns
            }

    return found
