r"""What a density of tables has to do with files and readers: its folder, tables, the report."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from quarflow.data.columns import Columns
from quarflow.data.pipeline import Ahead
from quarflow.data.table_writer import WRITTEN
from quarflow.data.tables import column_names
from quarflow.density.base import RUN, Place, Say, Scores, Section, certified, quiet, trained
from quarflow.density.samples import TableSamples
from quarflow.density.table_model import takes_holes
from quarflow.density.table_reading import Fitted, Rows, read_fitted, read_new, rows_of
from quarflow.files import plain
from quarflow.flows import MixedQuAR, QuAR
from quarflow.report.names import readable
from quarflow.report.words import duration, nats, number, typed
from quarflow.store.folder import ModelConfig, load_model, save_model
from quarflow.store.schema import flow_config

__all__ = ["TableFiles"]

SCORE = "log_prob"


class TableFiles(BaseEstimator):
    """Files of a density of tables; :class:`quarflow.QuARDensity` is the density."""

    of: ClassVar[str] = "tables"
    draws_to: ClassVar[tuple[str, ...]] = (*WRITTEN, ".npy")

    flow_: QuAR | MixedQuAR
    columns_: Columns
    context_columns_: Columns | None
    settings_: dict[str, Any]
    metrics_: dict[str, Any]
    history_: list[dict[str, Any]]

    score_samples: Callable[..., NDArray[np.float64]]
    sample: Callable[..., NDArray[np.float64]]
    kinds: Mapping[str, Any] | None
    unseen: Literal["error", "impossible", "missing"]
    missing: str

    def read(
        self,
        path: Place,
        *,
        columns: Sequence[str] | None = None,
        context: Sequence[str] | None = None,
        drop_missing: bool = False,
        say: Say = quiet,
    ) -> dict[str, Any]:
        """The table in a file, as arguments of :meth:`fit`; ``quarflow fit`` does the same.

        Parameters
        ----------
        path
            A .csv, .parquet, .npy or .npz file.
        columns, context
            Names of the columns to model, all but the context by default, and of the context.
        drop_missing
            Whether to leave out rows with missing values.
        say
            Called with what is to be told about the file.
        """
        wanted, given = list(columns or []), list(context or [])
        if given and not wanted:
            wanted = [name for name in column_names(path) if name not in given]
            if not wanted:
                raise ValueError("All columns are context; leave at least one to model.")
        frame = read_new(path, [*wanted, *given] or None, self.kinds, drop_missing, say)
        width = frame.width - len(given)

        return {"X": frame[:, :width], "context": frame[:, width:] if given else None}

    def score_file(
        self, path: Place, *, keep: bool = False, allow_missing: bool = False
    ) -> Scores:
        """Log-density of every row of a table, which may be larger than memory.

        Parameters
        ----------
        path
            A file that has the columns of the model, by name.
        keep
            Whether to copy all columns of the table, used or not.
        allow_missing
            Whether rows with missing values are left without score instead of refused.
        """
        names = self._needed()
        order = column_names(path) if keep else []
        if keep and SCORE in {*names, *order}:
            raise ValueError(
                f"The column {SCORE!r} cannot be kept: it has the scores' name. Rename it, or "
                "keep no columns."
            )
        tables = rows_of(path, self._fitted_table(), keep, allow_missing)
        return Scores(partial(self._scored, tables))

    def _scored(
        self, tables: Iterator[Rows], said: list[str]
    ) -> Generator[Mapping[str, Any], None, None]:
        rows = scored = impossible = 0
        total, start = 0.0, time.perf_counter()
        with Ahead(tables) as ahead:  # reading runs beside the scoring
            for table in ahead:
                whole, log_prob = table.whole, np.full(len(table.whole), np.nan)
                if whole.any():
                    log_prob[whole] = self.score_samples(table.X, context=table.context)
                yield {**table.kept, SCORE: log_prob}
                finite = np.isfinite(log_prob)
                rows += len(whole)
                scored += int(finite.sum())
                impossible += int(np.isneginf(log_prob).sum())
                total += float(log_prob[finite].sum())
        seconds = time.perf_counter() - start
        rate = rows / max(seconds, 1e-9)
        said.append(f"{rows:,} rows, {duration(seconds)} ({rate:,.0f} rows/s).")
        if scored:
            said.append(f"Mean: {nats(-total / scored)}.")
        if impossible:
            said.append(
                f"{impossible:,} rows lie outside the bounds of a column, or hold a value that it "
                "cannot take: log_prob is -inf."
            )
        if rows > scored + impossible:
            said.append(
                f"{rows - scored - impossible:,} rows with missing values have no log_prob."
            )

    def draw(
        self, n_samples: int = 1000, seed: int = 0, context: ArrayLike | None = None
    ) -> TableSamples:
        """New rows that know how to write themselves, drawn as they are written.

        Parameters
        ----------
        n_samples, context
            As in :meth:`sample`; one context for all.
        seed
            Of all rows. The first 65,536 are those of ``sample(n_samples, seed)``.
        """
        check_is_fitted(self)

        return TableSamples(
            lambda n, state: self.sample(n, state, context), self.columns_, n_samples, seed
        )

    def save(self, path: Place) -> None:
        """Write the model as a folder, atomically; see :mod:`quarflow.store`."""
        check_is_fitted(self)
        kept = {k: plain(v) for k, v in self.get_params().items() if k not in RUN}
        if not isinstance(kept["random_state"], int | None):
            kept["random_state"] = self.settings_["seed"]
        context = self.context_columns_
        config = ModelConfig(
            flow=flow_config(self.flow_),
            columns=list(self.columns_.columns),
            context_columns=None if context is None else list(context.columns),
            named=hasattr(self, "feature_names_in_"),
            parameters=kept,
            settings=self.settings_,
        )
        save_model(path, config, self.flow_, self.metrics_, self.history_)

    @classmethod
    def load(cls, path: Place) -> Self:
        """Read a model that was saved; nothing in it is executed.

        Raises
        ------
        ValueError
            If the folder does not hold a whole, valid model.
        """
        model = load_model(path)
        if not isinstance(model.flow, QuAR | MixedQuAR):
            raise ValueError(
                f"{os.fspath(path)} holds a {type(model.flow).__name__}, not a QuAR flow over "
                "the columns of a table: load it with quarflow.store.load_model."
            )
        known = cls().get_params()
        self = cls(**{k: v for k, v in model.config.parameters.items() if k in known})
        self.flow_ = model.flow
        self.columns_ = Columns(tuple(model.config.columns))
        context = model.config.context_columns
        self.context_columns_ = None if context is None else Columns(tuple(context))
        self.settings_, self.metrics_ = model.config.settings, model.metrics
        self.history_ = model.log
        self.n_features_in_ = len(self.columns_.columns)
        if model.config.named:
            self.feature_names_in_ = np.array(self.columns_.names, dtype=object)

        return self

    @classmethod
    def former_setting_names(cls) -> set[str]:
        """None of its settings has another name now."""
        return set()

    @classmethod
    def setting_names(cls) -> list[str]:
        """Its arguments, but for those of a run."""
        return [name for name in inspect.signature(cls).parameters if name not in RUN]

    @property
    def context_names(self) -> list[str]:
        """Names of the columns it is conditioned on, empty for none."""
        check_is_fitted(self)

        return [] if self.context_columns_ is None else list(self.context_columns_.names)

    def info(self) -> list[Section]:
        """What is known about it: columns, settings, figures and certificate."""
        check_is_fitted(self)
        metrics, context = self.metrics_, self.context_columns_
        facts = [
            ("rows", f"{metrics.get('rows') or 0:,}"),
            ("columns", f"{len(self.columns_.names):,}"),
            ("parameters", number(sum(p.numel() for p in self.flow_.parameters()))),
            ("validation", nats(metrics.get("valid_nats"))),
            *trained(metrics),
        ]
        shown = [("modelled", ", ".join(map(readable, self.columns_.names)))]
        sentences = ["Every column is standardised.", *self.columns_.describe()]
        if context is not None:
            shown.append(("context", ", ".join(map(readable, context.names))))
            sentences += [f"Context: {line}" for line in context.describe()]
        shown.append(("preprocessing", "\n".join(readable(line, 300) for line in sentences)))
        settings = [(key, typed(value)) for key, value in self.settings_.items()]

        return [
            Section("Model", facts),
            Section("Columns", shown),
            Section("Settings", settings),
            certified(self.flow_),
        ]

    def summary(self) -> list[str]:
        """What it was fitted to and how well, in sentences."""
        check_is_fitted(self)
        metrics = self.metrics_  # why training stopped, the progress has said
        context = f" given {metrics['context']}" if metrics.get("context") else ""

        return [
            f"{metrics['rows']:,} rows, {len(self.columns_.names)} columns{context}, "
            f"{metrics['parameters']:,} parameters.",
            *(readable(line, 300) for line in self.columns_.describe_kinds()),
            f"Validation: {nats(metrics['valid_nats'])}, after {duration(metrics['seconds'])}.",
        ]

    def report(
        self,
        path: Place,
        X: Any = None,
        context: Any = None,
        *,
        title: str | None = None,
        seed: int = 0,
        drop_missing: bool = False,
        say: Say = quiet,
    ) -> Path:
        """Write the page of :func:`quarflow.report.write_report`.

        Parameters
        ----------
        path
            The file to write.
        X
            Rows to compare with, or a file that holds them; best, rows it was not fitted to.
        context
            Context of the rows; of those in a file, it comes from there.
        title
            Heading of the page.
        seed
            Of the samples and of the choice of rows where there are too many.
        drop_missing
            Whether to leave out rows of a file that have missing values.
        say
            Called with what is to be told about the file.
        """
        from quarflow.report import write_report  # matplotlib is slow to import

        if isinstance(X, str | os.PathLike):
            X, context = read_fitted(X, self._fitted_table(), drop_missing, say)
        elif drop_missing:
            raise ValueError("Rows with missing values are left out of a file only; give one.")

        return write_report(self, path, X, context, title=title, seed=seed)

    def _needed(self) -> list[str]:
        """The columns a table must have: those modelled, then those of the context."""
        return [*self.columns_.names, *self.context_names]

    def _fitted_table(self) -> Fitted:
        """What it needs of a table."""
        check_is_fitted(self)

        return Fitted(
            self.columns_,
            self.context_columns_,
            hasattr(self, "feature_names_in_"),
            takes_holes(self.flow_, self.missing),
            self.unseen,
        )
