r"""Scores of rows that a density was not trained on, by which new rows are ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarflow.store.read import StoreError

__all__ = ["MOST", "HeldOut"]

Array = NDArray[np.float64]

MOST = 10_000  # rows whose scores are kept: ranks to one in so many
LOWEST = -1e300  # stands for minus infinity, which no file of a model holds


@dataclass(frozen=True)
class HeldOut:
    """Log-densities of rows that were held out, in ascending order.

    Attributes:
        scores: Shape (m).
        weights: Of these rows, (m), None if all count the same.
    """

    scores: Array
    weights: Array | None = None

    @classmethod
    def of(cls, scores: Array, weights: Array | None) -> HeldOut:
        """Scores (m) in any order, and weights (m) of the rows or None."""
        order = np.argsort(scores, kind="stable")
        scores = np.maximum(scores[order], LOWEST)

        return cls(scores, None if weights is None else weights[order])

    def p_values(self, scores: Array) -> Array:
        r"""The part of the held-out rows, a new row counted in, that score as low or lower, (n).

        A new row of unknown weight is taken to have the largest one held out, which errs on the
        side of high p-values.

        Example:
            >>> HeldOut.of(np.array([-3.0, -1.0, -2.0, -4.0]), None).p_values(np.array([-9, -2.5]))
            array([0.2, 0.6])
        """
        below = np.searchsorted(self.scores, np.maximum(scores, LOWEST), "right")
        if self.weights is None:
            return np.asarray((1 + below) / (1 + len(self.scores)))
        sums = np.concatenate([[0.0], np.cumsum(self.weights)])
        own = self.weights.max()

        return np.asarray((own + sums[below]) / (own + sums[-1]))

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it."""
        parts = {"scores": self.scores, "weights": self.weights}

        return {name: torch.from_numpy(part) for name, part in parts.items() if part is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> HeldOut | None:
        """What :meth:`tensors` gave; None where there are none.

        Raises:
            StoreError: if they are not what it gives.
        """
        if not tensors:
            return None
        parts = {name: tensor.numpy() for name, tensor in tensors.items()}
        scores, weights = parts.get("scores"), parts.get("weights")
        sound = (
            parts.keys() <= {"scores", "weights"}
            and scores is not None
            and all(part.ndim == 1 and part.dtype == np.float64 for part in parts.values())
            and 0 < len(scores) <= MOST
            and bool((np.diff(scores) >= 0).all())
            and (weights is None or (len(weights) == len(scores) and (weights > 0).all()))
        )
        if not sound or scores is None:
            raise StoreError("The model is damaged: its scores of held-out rows are none.")

        return cls(scores, weights)
