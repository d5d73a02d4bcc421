"""Numbers of a table back as what they stand for: labels, flags, dates, durations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quarflow.data.column import Column
from quarflow.data.columns import Columns
from quarflow.data.raw import NAT
from quarflow.data.times import to_times

if TYPE_CHECKING:
    import polars as pl

__all__ = ["decode", "decode_frame"]


def decode(values: NDArray[np.float64], columns: Columns) -> dict[str, pl.Series]:
    """The columns of values (n, D) by name, each of its own type, null where missing.

    Example:
        >>> import polars as pl
        >>> from quarflow.data.encode import encode
        >>> frame = pl.DataFrame({"cut": ["good", "fair", None], "price": [1.5, None, 2.0]})
        >>> found = encode(frame)
        >>> pl.DataFrame(decode(found.values, Columns(found.drafts))).equals(frame)
        True
    """
    values = np.asarray(values, dtype=np.float64)
    return {column.name: _series(values[:, j], column) for j, column in enumerate(columns.columns)}


def decode_frame(values: NDArray[np.float64], columns: Columns, like: Any = None) -> Any:
    """The columns of values (n, D) as a frame: pandas' if ``like`` is one, else polars'.

    A pandas frame has the index of ``like`` where it has as many rows.
    """
    found = decode(values, columns)
    if not hasattr(like, "iloc"):
        import polars as pl

        return pl.DataFrame(list(found.values()))
    import pandas as pd

    index = like.index if len(like) == len(values) else None
    held = {name: _for_pandas(series) for name, series in found.items()}

    return pd.DataFrame(held, index=index)


def _series(values: NDArray[np.float64], column: Column) -> pl.Series:
    import polars as pl

    name = column.name
    if column.kind == "category":
        return _labels(values, column)
    if column.kind not in ("date", "duration"):
        return pl.Series(name, values, dtype=pl.Float64, nan_to_null=True)
    times = to_times(values, column)
    whole = pl.Series(name, times).set(pl.Series(times == NAT), None)
    if column.kind == "duration":
        return whole.cast(pl.Duration("us"))
    moments = whole.cast(pl.Datetime("us"))
    if column.epoch is not None and "T" not in column.epoch:
        return moments.cast(pl.Date)
    if column.zone is None:
        return moments
    return moments.dt.replace_time_zone("UTC").dt.convert_time_zone(column.zone)


def _labels(values: NDArray[np.float64], column: Column) -> pl.Series:
    import polars as pl

    labels = column.categories
    codes = np.where(np.isnan(values) | (values < 0), len(labels), values).astype(np.int64)
    kinds = {type(label) for label in labels}
    if kinds == {int, float}:
        labels, kinds = tuple(map(float, labels)), {float}
    of = {str: pl.String, bool: pl.Boolean, int: pl.Int64, float: pl.Float64}
    large = kinds == {int} and any(abs(int(label)) >= 2**63 for label in labels)
    if len(kinds) == 1 and not large:
        known = pl.Series(column.name, [*labels, None], dtype=of[next(iter(kinds))])
        return known.gather(pl.Series(codes))
    items = [*labels, None]

    return pl.Series(column.name, [items[i] for i in codes.tolist()], dtype=pl.Object)


def _for_pandas(series: pl.Series) -> Any:
    import polars as pl

    if series.dtype in (pl.Boolean, pl.Int64) and series.null_count():
        return np.array(series.to_list(), dtype=object)
    if series.dtype in (pl.String, pl.Object):
        return series.to_list()
    if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone:
        import pandas as pd

        bare = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy()
        return pd.Series(bare).dt.tz_localize("UTC").dt.tz_convert(series.dtype.time_zone).array
    if series.dtype == pl.Date:
        return np.array(series.to_list(), dtype=object)

    return series.to_numpy()
