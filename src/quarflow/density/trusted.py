r"""Training rows that may hold anomalies: which of them a density is fitted to.

Maximum likelihood gives a dense clump of anomalies a high density, however few they are. Gaussians
in closed form cannot: they have no place for a clump far from all others. So rows that are
unlikely under them are set aside before a flow sees any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quarflow.data.columns import Columns
from quarflow.density.gaussian import gaussians
from quarflow.transforms import call_and_ladj

__all__ = ["AUTO", "share_set_aside", "tail_ranks", "trusted"]

Array = NDArray[np.float64]

AUTO = 0.15  # part of the rows; from 0.05 to 0.2 made little difference
MOST_SHARE = 0.5


def share_set_aside(contamination: Any) -> float:
    """The part of the rows that ``contamination`` says to set aside.

    Raises:
        ValueError: for other than "none", "auto", or a number above 0 and at most 0.5.

    Example:
        >>> share_set_aside("none"), share_set_aside(0.02)
        (0.0, 0.02)
    """
    if isinstance(contamination, str) and contamination in ("none", "auto"):
        return AUTO if contamination == "auto" else 0.0
    numeric = isinstance(contamination, float | int | np.floating)
    if isinstance(contamination, bool) or not numeric or not 0 < contamination <= MOST_SHARE:
        raise ValueError(
            "contamination must be 'none', 'auto', or the part of the rows to set aside, above 0 "
            f"and at most {MOST_SHARE}, not {contamination!r}."
        )

    return float(contamination)


def trusted(
    rows: Array,
    given: Array | None,
    columns: Columns,
    context_columns: Columns | None,
    weights: Array | None,
    share: float,
) -> NDArray[np.bool_]:
    r"""Which rows to fit to, (n): all but those that two Gaussians together find unlikeliest.

    Both are Gaussians of the standardised columns, whose heavy tails are tamed: one of independent
    columns, one of all together; means are linear in the context. The score of a row is the sum
    over both of :math:`-\log` of its rank from above, as a part of all rows.

    Arguments:
        rows, given: The table, (n, D), and its context, (n, C) or None.
        columns, context_columns: The fitted preprocessing.
        weights: Of the rows, (n), None if all count the same.
        share: Part of the rows, by weight, to set aside.
    """
    if not share:
        return np.ones(len(rows), dtype=bool)
    x = columns.dequantise(torch.from_numpy(rows), torch.Generator().manual_seed(0))
    u = call_and_ladj(columns.transform(), x)[0].numpy()
    c = None
    if given is not None and context_columns is not None:
        c = context_columns.transform()(torch.from_numpy(given)).numpy()
    score = np.zeros(len(u))
    for gaussian in gaussians(u, c, weights):
        if gaussian.kind != "factors":
            score += tail_ranks(gaussian.nats(u, c), weights)
    order = np.argsort(score, kind="stable")
    total = np.cumsum(np.ones(len(u)) if weights is None else weights[order])
    kept = np.zeros(len(u), dtype=bool)
    # rounded, so that a share of whole rows is that many
    most = (1 - share) * total[-1] * (1 + 1e-12)
    kept[order[: max(int(np.searchsorted(total, most, "right")), 1)]] = True

    return kept


def tail_ranks(scores: Array, weights: Array | None = None) -> Array:
    """-log of the part of the rows, by weight, that score as high or higher, (n).

    Example:
        >>> tail_ranks(np.array([3.0, 1.0])).round(3)
        array([ 0.693, -0.   ])
    """
    w = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    above = np.cumsum(w[order][::-1])[::-1]
    first = np.searchsorted(scores[order], scores, "left")

    return np.asarray(-np.log(above[first] / above[0]))
