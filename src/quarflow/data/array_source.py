"""NumPy files: .npy, read through a memory map, and .npz, read whole. Nothing is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quarflow.data.source import TableError, not_a_number

if TYPE_CHECKING:
    import polars as pl

_KINDS = {"O": "Python objects", "U": "text", "S": "text", "M": "dates", "m": "time spans"}


class ArraySource:
    """An opened .npy or .npz file.

    A 2-D array gives the columns x0, x1, ...; a 1-D array one column; a structured array its
    fields. An .npz holds one 2-D array (or several arrays, one of them called X), with names
    in a text array called ``columns`` or ``names`` if it has one; or 1-D arrays, one a column.
    Raises TableError for anything else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.named = False
        array = self._load()
        if isinstance(array, np.ndarray):
            columns = self._columns(array, "an array")
        else:
            columns = self._from_archive(array)
        self._columns_by_name = columns
        self.names = list(columns)

    def not_numeric(self) -> dict[int, str]:
        """Columns of text, dates or anything else that is no number."""
        found: dict[int, str] = {}
        for i, values in enumerate(self._columns_by_name.values()):
            kind = values.dtype.kind
            if kind in "US" and len(values):
                found[i] = not_a_number(str(values[0]), 1)
            elif kind not in "biuf":
                found[i] = f"holds {_KINDS.get(kind, values.dtype)}, not numbers"
        return found

    def chunks(
        self, columns: Sequence[int], rows: int, others: Sequence[int] = ()
    ) -> Iterator[tuple[np.ndarray, pl.DataFrame | None]]:
        """See Source."""
        wrong = self.not_numeric()
        for i in columns:
            if i in wrong:
                raise TableError(f"{self.path}: column {self.names[i]!r} {wrong[i]}.")
        chosen = [self._columns_by_name[self.names[i]] for i in columns]
        for start in range(0, max(len(chosen[0]), 1), rows):
            part = slice(start, start + rows)
            values = np.stack([np.asarray(c[part], dtype=np.float64) for c in chosen], axis=1)
            yield values, self._kept(others, part)

    def frames(self, columns: Sequence[int], rows: int) -> Iterator[pl.DataFrame]:
        """See Source; the flags of a bare array are numbers."""
        import polars as pl

        count = len(next(iter(self._columns_by_name.values())))
        for start in range(0, max(count, 1), rows):
            held = self._kept(columns, slice(start, start + rows))
            assert held is not None
            found = held.rename({self.names[i]: f"c{i}" for i in columns})
            yield found if self.named else found.cast({pl.Boolean: pl.Float64})

    def _kept(self, others: Sequence[int], part: slice) -> pl.DataFrame | None:
        """Other columns as they are, as far as a table can hold them."""
        import polars as pl

        if not others:
            return None
        found = []
        for name in (self.names[i] for i in others):
            values = np.asarray(self._columns_by_name[name][part])
            kind = values.dtype.kind
            if values.ndim != 1 or kind not in "biufUSMm":
                raise TableError(f"{self.path}: column {name!r} cannot be kept in a table.")
            if kind in "Mm":  # to the unit that tables have
                values = values.astype("datetime64[us]" if kind == "M" else "timedelta64[us]")
            found.append(pl.Series(name, values.astype(str) if kind == "S" else values))

        return pl.DataFrame(found)

    def _load(self) -> np.ndarray | dict[str, np.ndarray | None]:
        """The array, or the arrays of an archive (None for one that would need unpickling)."""
        path = self.path
        if path.stat().st_size == 0:
            raise TableError(f"{path} is empty.")
        try:
            if path.suffix.lower() == ".npz" and not zipfile.is_zipfile(path):
                raise TableError(f"{path} is cut off or not an .npz file.")
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                return {key: _member(loaded, key) for key in loaded.files}
        except TableError:
            raise
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            with path.open("rb") as file:
                numpys = file.read(6) == b"\x93NUMPY"
            if numpys and "bject" in str(error):
                raise TableError(
                    f"{path} holds Python objects, which are not read because unpickling them "
                    "can run code; save a plain array of numbers."
                ) from None
            if numpys:
                raise TableError(f"{path} is cut off; write or copy it again.") from None
            raise TableError(f"{path} is damaged or not a NumPy file.") from None

    def _columns(self, array: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """The columns of one array, as views."""
        if array.dtype.names and array.ndim == 1:
            self.named = True
            return {name: array[name] for name in array.dtype.names}
        if array.ndim not in (1, 2):
            shape = " x ".join(map(str, array.shape)) or "a single value"
            raise TableError(
                f"{self.path} holds {what} with {array.ndim} dimensions ({shape}), not a table; "
                "reshape it to rows x columns."
            )
        if array.dtype.kind not in "biuf":
            kind = _KINDS.get(array.dtype.kind, f"values of type {array.dtype}")
            raise TableError(f"{self.path} holds {kind}, not numbers.")
        matrix = array[:, None] if array.ndim == 1 else array
        if matrix.shape[1] == 0:
            raise TableError(f"{self.path} has no columns.")
        return {f"x{j}": matrix[:, j] for j in range(matrix.shape[1])}

    def _from_archive(self, arrays: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
        plain = {key: array for key, array in arrays.items() if array is not None}
        numbers = {key: a for key, a in plain.items() if a.dtype.kind in "biuf"}
        tables = [key for key, a in numbers.items() if a.ndim == 2]
        vectors = {key: a for key, a in plain.items() if a.ndim == 1}
        if "X" in arrays and "X" not in plain:
            raise TableError(f"{self.path}: X holds Python objects, which are not read.")
        key = "X" if "X" in plain else ""
        if not key and len(tables) == 1 and len([k for k in vectors if k in numbers]) <= 1:
            key = tables[0]  # one vector beside it is taken for labels
        if key:
            columns = self._columns(plain[key], f"the array {key!r}")
            for label in ("columns", "names"):
                names = vectors.get(label)
                if names is not None and names.dtype.kind == "U" and len(names) == len(columns):
                    self.named = True
                    if len(set(names.tolist())) < len(names):
                        raise TableError(f"{self.path}: {label} holds the same name twice.")
                    return dict(zip(names.tolist(), columns.values(), strict=True))
            return columns
        if vectors and not tables and len({len(a) for a in vectors.values()}) == 1:
            self.named = True
            return vectors
        held = ", ".join(
            f"{k} ({' x '.join(map(str, a.shape)) if a is not None else 'Python objects'})"
            for k, a in list(arrays.items())[:8]
        )
        raise TableError(
            f"{self.path} holds {held or 'no arrays'}; "
            "save one 2-D array called X, or 1-D arrays of equal length."
        )


def _member(archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray | None:
    try:
        return np.asarray(archive[key])
    except ValueError as error:
        if "bject" in str(error):
            return None
        raise
