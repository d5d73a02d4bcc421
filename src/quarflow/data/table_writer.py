"""Writing a table as it is computed: .csv or .parquet, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from quarflow.data.source import TableError

if TYPE_CHECKING:
    import polars as pl

PART_ROWS = 1 << 18  # rows gathered before they go to the disk
WRITTEN = (".csv", ".parquet", ".pq")  # endings of the files


class TableWriter:
    """Write columns piece by piece; the file appears, complete, when the block ends well.

    NaN is written as an empty cell (.csv) or null (.parquet). An exception inside the block
    leaves what was there before.

    Raises:
        TableError: At once, for another ending than .csv, .parquet or .pq, and for a folder that
            does not exist or cannot be written to.

    Example:
        >>> import numpy as np, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "scores.csv")
        >>> with TableWriter(path) as table:
        ...     table.write({"log_prob": np.array([-1.5, np.nan])})
        ...     table.write({"log_prob": np.array([-0.25])})
        >>> path.read_text()
        'log_prob\\n-1.5\\nNaN\\n-0.25\\n'
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in WRITTEN:
            raise TableError(f"{self.path}: tables are written as .csv or .parquet; choose one.")
        if self.path.is_dir():
            raise TableError(f"{self.path} is a folder, not a file.")
        folder = self.path.parent
        if not folder.is_dir():
            raise TableError(f"There is no folder {folder} to write {self.path.name} to.")
        if not os.access(folder, os.W_OK):
            raise TableError(f"The folder {folder} cannot be written to.")
        self._csv = suffix == ".csv"
        self._names: list[str] | None = None
        self._waiting: list[pl.DataFrame] = []
        self._rows = 0
        self._parts: list[Path] = []
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        # beside the target, so that the last step is a rename on one file system
        self._folder = Path(
            tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        )
        return self

    def write(self, columns: Mapping[str, np.ndarray | pl.Series]) -> None:
        """Append rows: 1-D arrays, or series, of equal length under the same names as before."""
        import polars as pl

        if self._folder is None:
            raise RuntimeError("TableWriter.write is called inside its `with` block.")
        arrays = {
            name: values if isinstance(values, pl.Series) else np.asarray(values)
            for name, values in columns.items()
        }
        names = list(arrays)
        lengths = {array.shape for array in arrays.values()}
        if not names or len(lengths) != 1 or len(next(iter(lengths))) != 1:
            raise ValueError("TableWriter.write takes 1-D arrays of equal length.")
        if self._names is None:
            self._names = names
        elif names != self._names:
            raise ValueError(f"The columns were {self._names} at first and are now {names}.")
        frame = pl.DataFrame(
            {
                name: array.alias(name)
                if isinstance(array, pl.Series)
                else pl.Series(name, array, nan_to_null=array.dtype.kind == "f")
                for name, array in arrays.items()
            }
        )
        for name, kind in frame.schema.items():
            if self._csv and (kind.is_nested() or kind in (pl.Binary, pl.Object)):
                raise TableError(
                    f"Column {name!r} holds values of type {kind}, which have no place in a .csv; "
                    "write a .parquet instead."
                )
        self._waiting.append(frame)
        self._rows += len(frame)
        if self._rows >= PART_ROWS:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        folder, self._folder = self._folder, None
        assert folder is not None
        try:
            if kind is None:
                if self._names is None:
                    raise TableError(f"Nothing was written to {self.path}.")
                self._flush(folder)
                os.replace(self._joined(folder), self.path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _flush(self, folder: Path | None = None) -> None:
        """Move the waiting rows to the disk: appended to the CSV, or as one Parquet part."""
        import polars as pl

        folder = folder or self._folder
        assert folder is not None
        if not self._waiting:
            return
        frame = pl.concat(self._waiting)
        self._waiting, self._rows = [], 0
        if self._csv:
            part = folder / "table.csv"
            # an empty cell alone on its line would be a blank line, which readers skip, and a
            # quoted one is text to them
            null = "NaN" if frame.width == 1 else ""
            with part.open("ab") as file:
                frame.write_csv(file, include_header=not self._parts, null_value=null)
            self._parts = [part]
        else:
            part = folder / f"{len(self._parts):06d}.parquet"
            frame.write_parquet(part)
            self._parts.append(part)

    def _joined(self, folder: Path) -> Path:
        """The finished file, still in the temporary folder."""
        import polars as pl

        if len(self._parts) == 1:
            return self._parts[0]
        whole = folder / "table.parquet"
        pl.scan_parquet(self._parts, glob=False).sink_parquet(whole)
        return whole
