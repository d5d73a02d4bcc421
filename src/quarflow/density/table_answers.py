r"""What a fitted density of a table is asked: scores, noise and samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import DensityMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from quarflow.data.column_notices import far_away
from quarflow.data.encode import Encoded, encode
from quarflow.data.finite import check_finite, refuse_infinite
from quarflow.data.values import is_frame, read_values
from quarflow.density.checks import check_table, context_for, warn_of_new_values
from quarflow.density.data_units import DataUnits, data_units
from quarflow.density.table_files import TableFiles
from quarflow.density.table_model import TableModel, takes_holes
from quarflow.density.table_use import CHUNK, CHUNK_NUMBERS, by_parts, in_chunks, refuse_unsure
from quarflow.flows import FlowDistribution, MixedQuAR
from quarflow.transforms.trust import Amplification

__all__ = ["TableAnswers"]


class TableAnswers(DensityMixin, TransformerMixin, TableFiles):
    """Scores, noise and samples of a density of tables; :class:`quarflow.QuARDensity` is it."""

    n_features_in_: int
    kinds: Mapping[str, Any] | None
    unseen: Literal["error", "impossible", "missing"]
    missing: str

    def score_samples(self, X: ArrayLike, context: ArrayLike | None = None) -> NDArray[np.float64]:
        """Log-density of each row, in nats and the data's own units.

        A column of whole numbers scores a probability, so that exp(score) is that of its values
        times the density of the others; one in other steps the mean density over a step (see
        ``columns_.describe()``). Computed in float64, so that it is the same to many digits in
        whatever batches. Rows off the values a column can take have minus infinity.

        Parameters
        ----------
        X
            Rows, shape (n, D).
        context
            Context of the rows, shape (n, C), or one row of it for all.
        """
        check_is_fitted(self)
        rows = self._check_rows(X)
        given = self._given_context(context, len(rows))
        model = self._exact()
        if isinstance(model, TableModel):
            score = partial(_scored, model)
            return by_parts(score, rows, given, self._chunk_rows())
        cells = self.columns_.cells()

        def averaged(p: FlowDistribution, x: Tensor) -> Tensor:
            return cells.average(x, p.log_prob)

        some = cells.needed(torch.from_numpy(rows)).numpy()
        if some.all() and len(some):
            return self._chunks(rows, given, averaged, checked=True)
        scores = self._chunks(rows, given, lambda p, x: p.log_prob(x), checked=True)
        if some.any():
            given = None if given is None else given[some]
            scores[some] = self._chunks(rows[some], given, averaged, checked=True)

        return scores

    def score(self, X: ArrayLike, y: object = None, context: ArrayLike | None = None) -> float:
        """Total log-likelihood of the rows, as in KernelDensity; divide by n for the mean."""
        return float(self.score_samples(X, context).sum())

    def transform(self, X: ArrayLike, context: ArrayLike | None = None) -> NDArray[np.float64]:
        """The noise that rows are mapped to, shape (n, D); it follows the base distribution."""
        model = self._exact()
        if isinstance(model, TableModel):
            rows = self._check_rows(X)
            given = self._given_context(context, len(rows))
            return by_parts(partial(_noise, model), rows, given, self._chunk_rows())

        return self._chunks(X, context, lambda p, x: p.transform(x), model=model)

    def inverse_transform(
        self, Z: ArrayLike, context: ArrayLike | None = None, checked: bool = False
    ) -> NDArray[np.float64]:
        """The rows that noise is mapped to; the inverse of :meth:`transform`.

        Parameters
        ----------
        Z
            Noise, shape (n, D).
        context
            Context of the rows, shape (n, C), or one row of it for all.
        checked
            Whether to raise where rounding of Z may move a row by more than 1e-10, in
            standardised units and relative to their size; otherwise that is a warning.

        Raises
        ------
        InversionError
            If a row did not converge, is too far out to have finite numbers, or, with
            ``checked``, is not determined well enough. The message names the rows.
        """
        check_is_fitted(self)
        if isinstance(self.flow_, MixedQuAR) and self.flow_.discrete is not None:
            raise ValueError(
                "Noise does not tell the categories of a row, so it cannot be mapped back; "
                "sample draws both."
            )
        Z, _ = read_values(Z, "Z")
        if Z.ndim != 2 or Z.shape[1] != self.n_features_in_:
            raise ValueError(f"Z must have shape (n, {self.n_features_in_}), not {Z.shape}.")
        errors: list[Amplification] = []

        def inverse(p: FlowDistribution, z: Tensor) -> Tensor:
            x, found = p.transform.inv.with_amplification(z)
            errors.append(found)
            return x

        x = self._chunks(Z, context, inverse, checked=True)
        refuse_unsure(errors, checked)

        return x

    def sample(
        self, n_samples: int = 1, random_state: Any = None, context: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """New rows, shape (n_samples, D); discrete columns take values that they can take.

        Parameters
        ----------
        n_samples
            How many.
        random_state
            Seed, RandomState or None.
        context
            One context (C) for all the samples, or one for each, (n_samples, C).
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, not {n_samples}.")
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        model = self._exact()
        if isinstance(model, TableModel):
            empty = np.full((n_samples, self.n_features_in_), np.nan)
            given = self._given_context(context, n_samples)
            draw = partial(_drawn, model, generator)
            return by_parts(draw, empty, given, self._chunk_rows())
        z = model.flow.base().sample((n_samples,), generator=generator).numpy()
        x = self._chunks(z, context, lambda p, z: p.drawn(z), checked=True, model=model)

        rows = self.columns_.cells().settle(torch.from_numpy(x), generator)

        return self.columns_.snap(rows).numpy()

    # Checking and chunking

    def _chunks(
        self,
        X: Any,
        context: Any,
        compute: Any,
        checked: bool = False,
        model: DataUnits | TableModel | None = None,
    ) -> NDArray[np.float64]:
        """Rows through the density in chunks; weights are bound once when there is no context."""
        check_is_fitted(self)
        rows = X if checked else self._check_rows(X)
        given = self._given_context(context, len(rows))
        model = self._exact() if model is None else model
        assert isinstance(model, DataUnits)

        return in_chunks(model, rows, given, compute, self._chunk_rows())

    def _chunk_rows(self) -> int:
        """Rows to compute at once, a power of 2."""
        widest = max(self.n_features_in_, *self.flow_.arguments["hidden_features"])
        rows = CHUNK_NUMBERS * torch.get_num_threads() // widest

        return int(min(2 ** max(rows.bit_length() - 1, 6), CHUNK))

    def _exact(self) -> DataUnits | TableModel:
        """The model in float64."""
        check_is_fitted(self)
        flow = deepcopy(self.flow_).double().eval()
        if isinstance(flow, MixedQuAR):
            return TableModel(flow, self.columns_, self.context_columns_)

        return data_units(flow, self.columns_, self.context_columns_)

    def _check_rows(self, X: Any) -> NDArray[np.float64]:
        """Rows to use the fitted density with, (n, D), NaN where missing."""
        check_is_fitted(self)
        values = self._encoded(X, reset=False).values
        if not takes_holes(self.flow_, self.missing):
            check_finite(values, self._names())

        return values

    def _encoded(self, X: Any, reset: bool) -> Encoded:
        """A table as numbers, of the columns that were fitted, or are to be."""
        named = is_frame(X) and any(isinstance(name, str) for name in X.columns)
        if not is_frame(X):
            check_table(X if hasattr(X, "ndim") else np.asarray(X, dtype=object))
        if named or not reset:
            self._check_names(X, reset)
        found = encode(X, None if reset else self.columns_, kinds=self.kinds, unseen=self.unseen)
        if not named:
            validate_data(
                self,
                found.values,
                reset=reset,
                ensure_all_finite=False,
                ensure_min_samples=int(reset),
            )
        refuse_infinite(found.values, found.names)

        return found

    def _check_names(self, X: Any, reset: bool) -> None:
        """Let scikit-learn compare names and numbers of columns."""
        if not is_frame(X):
            shape = np.shape(X)
            if len(shape) != 2:
                return
            X = np.empty((1, shape[1]))
        validate_data(self, X, reset=reset, skip_check_array=True)

    def _given_context(self, context: Any, rows: int) -> NDArray[np.float64] | None:
        if self.context_columns_ is None:
            if context is not None:
                raise ValueError("This density was fitted without context; leave context out.")
            return None
        wanted = self.context_columns_.names
        if context is None:
            raise ValueError(f"This density needs context: columns {', '.join(wanted)}.")

        values = context_for(context, wanted, rows)
        warn_of_new_values(values, self.context_columns_)
        notice = far_away(values, self.context_columns_.columns)
        if notice is not None:
            warnings.warn(notice, UserWarning, stacklevel=4)

        return values

    def _names(self) -> list[str]:
        named = getattr(self, "feature_names_in_", None)

        return [f"x{i}" for i in range(self.n_features_in_)] if named is None else list(named)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "flow_")


def _scored(model: TableModel, x: Tensor, c: Tensor | None) -> Tensor:
    return model.log_prob(x, c=c)


def _noise(model: TableModel, x: Tensor, c: Tensor | None) -> Tensor:
    there = ~x.isnan()

    return model.noise(x, torch.zeros_like(there), there, c)


def _drawn(model: TableModel, generator: torch.Generator, x: Tensor, c: Tensor | None) -> Tensor:
    nothing = torch.zeros_like(x, dtype=torch.bool)

    return model.sample(x, nothing, ~nothing, c, generator)
