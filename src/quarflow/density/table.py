r"""The scikit-learn estimator: a table in, an exact density out."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import DensityMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from quarflow.data.column_notices import dependence, far_away
from quarflow.data.finite import check_finite
from quarflow.data.values import is_frame, read_values
from quarflow.density.checks import (
    check_rows,
    check_table,
    context_for,
    read_context,
    warn_of_new_values,
)
from quarflow.density.data_units import DataUnits, data_units
from quarflow.density.held_out import HeldOut
from quarflow.density.table_files import TableFiles
from quarflow.density.table_fit import prepare
from quarflow.density.table_odd import TableOdd
from quarflow.density.table_run import run
from quarflow.density.table_use import chunk_rows, in_chunks, refuse_unsure
from quarflow.density.weights import counted, read_weights
from quarflow.flows import FlowDistribution
from quarflow.training import StopSignals
from quarflow.transforms.trust import Amplification

__all__ = ["QuARDensity"]


class QuARDensity(DensityMixin, TransformerMixin, TableOdd, TableFiles):
    r"""Exact density of a table by a QuAR flow, in the shape of scikit-learn's KernelDensity.

    Log-densities are natural logarithms in the data's own units: preprocessing is part of the
    density. What is ``"auto"`` is chosen from the data and recorded in ``settings_``.

    Parameters
    ----------
    transforms, hidden_features
        Number of residual steps, and widths of their hidden layers.
    norm, order, activation, sigma, mix, base
        See :class:`quarflow.QuAR`.
    start
        ``"auto"`` starts from the best Gaussian in closed form where that pays, and falls back
        to it where the validation rows are described no better after training; ``"none"``
        does neither.
    bounds
        ``{column: (lower, upper)}``, None for an open side; columns are named, or x0, x1, ...
    discrete
        Columns that get noise of the width of a step while training, and whose score is a
        probability: ``"auto"`` detects integer-valued and heavily tied ones, ``"none"``, or a
        list of columns.
    tails
        ``"auto"`` tames heavy-tailed columns by an asinh before the flow, ``"none"`` does not.
    batch_size, learning_rate, max_epochs, patience, ema, clip, weight_decay
        Of the training; see :class:`quarflow.training.TrainingSettings`.
    minutes
        Time budget for training; None for none.
    validation_fraction
        Share of the rows that is held out to stop on.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    contamination
        Part of the rows to set aside as likely anomalies, ``"auto"`` for 0.15, or ``"none"``.
    random_state
        Seed, RandomState or None: of initialisation, split, order and noise.
    verbose
        Whether to show progress.
    checkpoint, resume
        Folder for checkpoints while fitting, and whether to go on from the one found there, to
        the same result; one of other arguments or other rows is refused.

    Attributes
    ----------
    flow_ : QuAR
        The flow over standardised columns.
    columns_, context_columns_ : Columns
        The fitted preprocessing.
    settings_ : dict
        Every choice that was made.
    history_ : list of dict
        Per evaluation: epoch, step, seconds, train_nats, valid_nats, learning_rate.
    metrics_ : dict
        Rows, steps, seconds, validation nats, why training stopped, parameters.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    >>> density = QuARDensity(max_epochs=5, random_state=0).fit(X)
    >>> density.score_samples(X[:3]).shape
    (3,)
    >>> density.sample(4, random_state=0).shape
    (4, 2)
    """

    def __init__(
        self,
        *,
        transforms: int | Literal["auto"] = "auto",
        hidden_features: Sequence[int] | Literal["auto"] = "auto",
        norm: str = "dimension",
        order: str = "alternate",
        activation: str = "sin",
        sigma: float = 0.97,
        mix: str = "none",
        base: str = "normal",
        start: Literal["auto", "none"] = "auto",
        bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
        discrete: Literal["auto", "none"] | Sequence[str] = "auto",
        tails: Literal["auto", "none"] = "auto",
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: float | Literal["auto"] = "auto",
        max_epochs: int | Literal["auto"] = "auto",
        minutes: float | None = None,
        patience: int | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        ema: float | Literal["auto"] = "auto",
        clip: float | None = 5.0,
        weight_decay: float | Literal["auto"] = "auto",
        device: str = "auto",
        contamination: Literal["none", "auto"] | float = "none",
        random_state: Any = None,
        verbose: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> None:
        self.transforms = transforms
        self.hidden_features = hidden_features
        self.norm = norm
        self.order = order
        self.activation = activation
        self.sigma = sigma
        self.mix = mix
        self.base = base
        self.start = start
        self.bounds = bounds
        self.discrete = discrete
        self.tails = tails
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.minutes = minutes
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.ema = ema
        self.clip = clip
        self.weight_decay = weight_decay
        self.device = device
        self.contamination = contamination
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.resume = resume

    # Fitting

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        context: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> QuARDensity:
        """Fit the density to a table.

        Parameters
        ----------
        X
            Rows to model, shape (n, D): an array, a tensor, or a pandas or polars frame, of
            numbers in any type (whole, boolean, Decimal, nullable, objects).
        y
            Ignored.
        context
            Conditioning variables of the same rows, shape (n, C), or None. Nothing depends on
            one that is constant.
        sample_weight
            How much each row counts, (n), at least 0; None if all count the same.

        Raises
        ------
        ValueError
            For data that cannot be fitted or an argument out of its range; it names the
            column, the row or the argument.
        KeyboardInterrupt
            After Ctrl-C, when the best so far has become this density: who catches it can use
            it. SIGTERM ends the process at the same point; handlers of one's own are called.
        """
        begun = time.perf_counter()
        rows = self._check_rows(X, reset=True)
        given, context_names = (None, []) if context is None else read_context(context, len(rows))
        check_rows(len(rows))
        rows, given, weights = counted(rows, given, read_weights(sample_weight, len(rows)))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        asked = self.get_params(deep=False)
        made = prepare(asked, rows, self._names(), given, context_names, seed, weights)
        notice = dependence(rows, made.columns.columns)
        if notice is not None:
            warnings.warn(notice, UserWarning, stacklevel=2)

        with StopSignals():  # passed on in the end, when all that was reached is kept
            ran = run(made, asked, begun)
            self.columns_, self.context_columns_ = made.columns, made.context_columns
            self.flow_, self.history_ = ran.flow, ran.history
            self.settings_, self.metrics_ = ran.settings, ran.metrics
            self.held_out_ = HeldOut.of(
                self._log_densities(*made.held_out()), made.their_weights()
            )

        return self

    # Using

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
        rows = self._check_rows(X, reset=False)

        return self._log_densities(rows, self._given_context(context, len(rows)))

    def _log_densities(
        self, rows: NDArray[np.float64], given: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
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
        return self._chunks(X, context, lambda p, x: p.transform(x))

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
        model: DataUnits | None = None,
    ) -> NDArray[np.float64]:
        """Rows through the density in chunks; weights are bound once when there is no context."""
        check_is_fitted(self)
        rows = X if checked else self._check_rows(X, reset=False)
        given = self._given_context(context, len(rows))
        model = self._exact() if model is None else model

        size = chunk_rows(max(self.n_features_in_, *self.flow_.arguments["hidden_features"]))

        return in_chunks(model, rows, given, compute, size)

    def _exact(self) -> DataUnits:
        """The model in float64."""
        flow = deepcopy(self.flow_).double().eval()

        return data_units(flow, self.columns_, self.context_columns_)

    def _check_rows(self, X: Any, reset: bool) -> NDArray[np.float64]:
        values, names = read_values(X, "X")
        check_table(values)
        framed = is_frame(X) and names is not None
        if framed:  # scikit-learn compares the names; the values have been read
            validate_data(self, X, reset=reset, skip_check_array=True)
        check = check_array if framed else partial(validate_data, self, reset=reset)
        rows = check(values, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=reset)
        check_finite(rows, self._names())

        return np.require(rows, requirements=["C", "W"])  # tensors cannot share read-only memory

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
