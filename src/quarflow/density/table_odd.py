r"""How odd a row is: its rank among rows that were held out, and a score of anomalies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from quarflow.density.held_out import HeldOut
from quarflow.flows import FlowDistribution

__all__ = ["TableOdd"]


class TableOdd:
    """What a density of tables says of odd rows; :class:`quarflow.QuARDensity` is the density."""

    held_out_: HeldOut | None

    score_samples: Callable[..., NDArray[np.float64]]
    _chunks: Callable[..., NDArray[Any]]

    def p_value(self, X: ArrayLike, context: ArrayLike | None = None) -> NDArray[np.float64]:
        r"""How rare so low a log-density is, (n): its rank among rows that were held out.

        That is :math:`(1 + \#\{i: s_i \le s\}) / (1 + m)` for the scores of m held-out rows
        (split-conformal). A row drawn like them has a p-value of at most a with probability at
        most a, for every a and however good or bad the model is: at a threshold of 0.01 one
        ordinary row in 100 is reported. A row with a context is ranked among rows of all contexts.

        The held-out rows also decided when training stopped, which makes their scores a little
        high, and p-values of new rows a little low: the weights kept are the best of some dozens
        of evaluations, no more was fitted to them. With ``contamination`` they are held out of
        the rows that were trusted. Weighted rows count by weight.

        Parameters
        ----------
        X
            Rows, shape (n, D).
        context
            Context of the rows, shape (n, C), or one row of it for all.

        Raises
        ------
        ValueError
            For a model that was saved without scores of held-out rows.
        """
        check_is_fitted(self)

        return self._ranked().p_values(self.score_samples(X, context))

    def _ranked(self) -> HeldOut:
        if self.held_out_ is None:
            raise ValueError(
                "This model was saved without the scores of held-out rows, which p-values are "
                "ranks among: fit it again with this release to have them."
            )

        return self.held_out_

    def anomaly_score(self, X: ArrayLike, context: ArrayLike | None = None) -> NDArray[np.float64]:
        r"""A score for finding anomalies, (n), more is odder; not the density itself.

        It is the mean of -log p in two units: those of the data, where it is
        ``-score_samples(X)``, and those of the noise z that the flow maps rows to, where it is
        -log of the density of z. So it is -log p with half of the log-determinant. A clump of
        anomalies that was learnt has a high density in the units of the data; in those of the
        noise only how far out a row lies counts. It is infinite where the density is 0.

        Parameters
        ----------
        X
            Rows, shape (n, D).
        context
            Context of the rows, shape (n, C), or one row of it for all.
        """
        scores = self.score_samples(X, context)
        noise = self._chunks(X, context, log_density_of_noise)

        return np.asarray(-0.5 * (scores + noise))


def log_density_of_noise(p: FlowDistribution, x: Tensor) -> Tensor:
    """Log-density of the noise that rows x are mapped to, (n)."""
    z = p.transform(x)

    return p.base.log_prob(z).double()
