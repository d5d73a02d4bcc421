r"""The scikit-learn estimator: a table in, an exact density out."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from quarflow.data.finite import check_finite
from quarflow.density.checks import check_rows, read_context
from quarflow.density.starting import fall_back, what_happened
from quarflow.density.table_answers import TableAnswers
from quarflow.density.table_fit import prepare, settings_of
from quarflow.training import StopSignals, TrainingProgress, train

__all__ = ["QuARDensity"]


class QuARDensity(TableAnswers):
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
    kinds
        What columns are where they shall not be what they look like: ``{"zip": "category"}``,
        ``{"angle": {"kind": "periodic", "period": 360}}``, ``{"sold": {"cyclic": ["year"]}}``.
    unseen
        What a category is, in scoring, that training did not have: ``"error"``, ``"impossible"``
        (minus infinity), or ``"missing"``.
    queries
        ``"any"`` makes it one density of any columns given any others, the rest integrated out;
        ``"none"`` models whole rows only. ``"auto"`` is ``"any"`` where training rows have
        missing values, which are integrated out, and else ``"none"``.
    missing
        ``"absent"`` takes missing values for what is not known (missing at random), in training
        and in scoring; ``"refuse"`` refuses them.
    batch_size, learning_rate, max_epochs, patience, ema, clip, weight_decay
        Of the training; see :class:`quarflow.training.TrainingSettings`.
    minutes
        Time budget for training; None for none.
    validation_fraction
        Share of the rows that is held out to stop on.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
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
    >>> import numpy as np
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
        kinds: Mapping[str, Any] | None = None,
        unseen: Literal["error", "impossible", "missing"] = "error",
        queries: Literal["auto", "any", "none"] = "auto",
        missing: Literal["absent", "refuse"] = "absent",
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
        self.kinds = kinds
        self.unseen = unseen
        self.queries = queries
        self.missing = missing
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
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.resume = resume

    # Fitting

    def fit(self, X: ArrayLike, y: object = None, context: ArrayLike | None = None) -> QuARDensity:
        """Fit the density to a table.

        Parameters
        ----------
        X
            Rows to model, shape (n, D): an array, a tensor, lists, or a pandas or polars frame,
            of numbers, text, flags, categories, dates and durations in any type.
        y
            Ignored.
        context
            Conditioning variables of the same rows, shape (n, C), or None. Nothing depends on
            one that is constant.

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

        known = self._encoded(X, reset=True)
        rows = known.values
        if self.missing == "refuse":
            check_finite(rows, known.names)
        given, context_names = (None, []) if context is None else read_context(context, len(rows))
        check_rows(len(rows))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        asked = self.get_params(deep=False)
        made = prepare(asked, rows, known, given, context_names, seed)
        notice = made.notice(rows)
        if notice is not None:
            warnings.warn(notice, UserWarning, stacklevel=2)

        model = made.model()
        with StopSignals():  # passed on in the end, when all that was reached is kept
            with TrainingProgress(verbose=bool(self.verbose)) as progress:
                result = train(
                    model,
                    made.train_rows,
                    made.valid_rows,
                    made.settings,
                    device=self.device,
                    checkpoint=self.checkpoint,
                    resume=self.resume,
                    identity=made.identity(),
                    on_event=progress,
                    begun=begun,
                )
                flow, told = fall_back(made.flow, made.start, result, model)
                if told:
                    progress.say(told)
            self.flow_ = flow.cpu().eval()
            self.columns_, self.context_columns_ = made.columns, made.context_columns
            self.history_ = result.history
            self.settings_ = settings_of(made, self.flow_, result)
            self.metrics_ = made.counts(flow) | what_happened(result, made.start, told)

        return self
