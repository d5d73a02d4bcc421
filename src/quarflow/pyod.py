r"""quarflow as a detector of PyOD, for its pipelines, combinations and benchmarks.

Needs PyOD: ``pip install 'quarflow[pyod]'``. Nothing else in quarflow does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from quarflow import QuARDensity

try:
    from pyod.models.base import BaseDetector
except ImportError as error:
    raise ImportError("quarflow.pyod needs PyOD: pip install 'quarflow[pyod]'.") from error

__all__ = ["QuARDetector"]

LARGEST = 1e100  # stands for infinity, which PyOD's scaling of scores refuses


class QuARDetector(BaseDetector):
    r"""Finds anomalies by the exact density of a QuAR flow that was fitted without the likeliest.

    Scores are those of :meth:`quarflow.QuARDensity.anomaly_score`.

    Parameters
    ----------
    contamination
        The part of the training rows that are anomalies, above 0 and at most 0.5, or one of
        PyThresh's objects: it decides the threshold, as in all detectors of PyOD.
    density
        The density to fit, a :class:`quarflow.QuARDensity` with settings of one's own; None for
        one that sets aside the part of the rows that ``contamination`` says.
    random_state
        Seed of a density that is not given.

    Attributes
    ----------
    density_ : QuARDensity
        The fitted density.
    decision_scores_ : ndarray of shape (n,)
        Scores of the training rows, more is odder.
    threshold_ : float
        The score above which a row is an anomaly.
    labels_ : ndarray of shape (n,)
        1 for anomalies among the training rows, 0 for others.
    """

    def __init__(
        self,
        contamination: Any = 0.1,
        density: QuARDensity | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(contamination=contamination)
        self.density = density
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> QuARDetector:
        """Fit to rows X, (n, D), that may hold anomalies; y is ignored."""
        self._set_n_classes(y)
        self.density_ = self._made().fit(X)
        self.decision_scores_ = self._scores(X)
        self._process_decision_scores()

        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores of rows X, (n, D), more is odder."""
        check_is_fitted(self, ["decision_scores_", "threshold_", "labels_"])

        return self._scores(X)

    def _made(self) -> QuARDensity:
        if self.density is not None:
            made: QuARDensity = clone(self.density)
            return made
        share = self.contamination

        return QuARDensity(
            contamination=share if isinstance(share, float | int) else "auto",
            random_state=self.random_state,
        )

    def _scores(self, X: ArrayLike) -> NDArray[np.float64]:
        return np.minimum(self.density_.anomaly_score(X), LARGEST)
