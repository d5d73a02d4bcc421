"""Parquet files, read by slices of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quarflow.data.source import TableError, not_a_number

if TYPE_CHECKING:
    import polars as pl

SLICE = 1 << 22  # numbers read at a time (32 MiB); a smaller slice decodes row groups more often


class ParquetSource:
    """An opened Parquet file. Raises TableError where it is cut off or damaged."""

    named = True

    def __init__(self, path: Path) -> None:
        import polars as pl

        self.path = path
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(size - 4, 0))
            tail = file.read(4)
        if not size:
            raise TableError(f"{path} is empty.")
        if head != b"PAR1":
            raise TableError(f"{path} is not a Parquet file.")
        if tail != b"PAR1" or size < 12:
            raise TableError(
                f"{path} is cut off: it starts as a Parquet file but its end is missing. "
                "Write or copy it again."
            )
        # hive_partitioning and glob would read meaning into the path itself
        self._table = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        self._schema = self._run(self._table.collect_schema)
        self.names = list(self._schema)

    def not_numeric(self) -> dict[int, str]:
        """Columns of any type but numbers and booleans."""
        import polars as pl

        found: dict[int, str] = {}
        for i, kind in enumerate(self._schema.values()):
            if kind.is_numeric() or kind in (pl.Boolean, pl.Null):
                continue
            if kind in (pl.String, pl.Categorical, pl.Enum):
                found[i] = self._text(i)
            elif kind.is_temporal():
                found[i] = f"holds times ({kind}): convert it to numbers first, such as days"
            else:
                found[i] = f"holds values of type {kind}, not numbers"
        return found

    def chunks(
        self, columns: Sequence[int], rows: int, others: Sequence[int] = ()
    ) -> Iterator[tuple[np.ndarray, pl.DataFrame | None]]:
        """See Source. Slices of the scan, not collect_batches: that one reads far ahead."""
        import polars as pl

        wrong = self.not_numeric() if columns else {}
        for i in columns:
            if i in wrong:
                raise TableError(f"{self.path}: column {self.names[i]!r} {wrong[i]}.")
        count = int(self._run(self._table.select(pl.len()).collect).item())
        # by position: pl.col would read a name such as "^a.*$" as a pattern
        numbers = self._table.select(
            pl.nth(i).cast(pl.Float64).alias(f"c{k}") for k, i in enumerate(columns)
        )
        rest = self._table.select(pl.nth(i) for i in others)
        rows = max(rows, SLICE // (len(columns) + len(others)))
        for start in range(0, max(count, 1), rows):
            frame: pl.DataFrame = self._run(numbers.slice(start, rows).collect)
            kept = self._run(rest.slice(start, rows).collect) if others else None
            yield frame.to_numpy(order="c", writable=True), kept

    def frames(self, columns: Sequence[int], rows: int) -> Iterator[pl.DataFrame]:
        """See Source."""
        import polars as pl

        count = int(self._run(self._table.select(pl.len()).collect).item())
        chosen = self._table.select(pl.nth(i).alias(f"c{i}") for i in columns)
        rows = max(rows, SLICE // len(columns))
        for start in range(0, max(count, 1), rows):
            yield self._run(chosen.slice(start, rows).collect)

    def _text(self, i: int) -> str:
        """An example of the text in a column, and its row."""
        import polars as pl

        column = self._table.select(pl.nth(i).cast(pl.String).alias("value"))
        first = column.with_row_index("row").drop_nulls("value").head(1)
        frame = self._run(first.collect)
        if not len(frame):
            return "is a text column"
        return not_a_number(frame["value"][0], frame["row"][0] + 1)

    def _run(self, step: Any) -> Any:
        """Run a step of polars; whatever it trips over in a damaged file is a TableError."""
        import polars as pl

        try:
            return step()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            reason = (str(error).strip().splitlines() or ["unknown"])[0][:200]
            raise TableError(
                f"{self.path} is damaged and cannot be read as Parquet ({reason})."
            ) from None
