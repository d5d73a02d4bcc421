"""CSV files, read in blocks of whole lines, so that memory stays small and row numbers exact."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quarflow.data.source import TableError, not_a_number

if TYPE_CHECKING:
    import polars as pl

BLOCK = 8 << 20  # bytes read at a time: polars parses this in a few milliseconds
LONGEST = 64 << 20  # a record longer than this is an unclosed quotation mark
MISSING = ["", "NA", "N/A", "NaN", "nan", "NAN", "<NA>", "null", "NULL", "None", "?"]
_COMMA = re.compile(
    r"^[+-]?\d*,\d+([eE][+-]?\d+)?$"
)  # 1,5 as written where , is the decimal point
_WORDS = {"true": 1.0, "false": 0.0} | {word.lower(): float("nan") for word in MISSING}


class CsvSource:
    """An opened CSV file with a header; comma, semicolon, tab or bar between the values.

    Raises TableError for an empty file, a file that is not UTF-8 text, a header that looks
    like data, and, while reading, for lines with too few or too many values.
    """

    named = True

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            head = file.read(LONGEST >> 4)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise TableError(f"{path} is UTF-16 text; save it as UTF-8.")
        if b"\0" in head:
            raise TableError(f"{path} is not a text file, so it cannot be read as CSV.")
        text = head.removeprefix(b"\xef\xbb\xbf")
        blank = len(text) - len(text.lstrip(b"\r\n"))
        text = text[blank:]
        if not text.strip():
            raise TableError(f"{path} is empty.")
        header = text[: _first_record_end(text)]
        if header.count(b'"') % 2:
            raise TableError(f'{path}: a quotation mark (") in the header is never closed.')
        self._start = len(head) - len(text) + len(header)
        self._line = 1 + head.count(b"\n", 0, self._start)  # line number of the first data row
        try:
            line = header.decode()
        except UnicodeDecodeError:
            raise TableError(
                f"The header of {path} is not UTF-8 text; save it as UTF-8."
            ) from None
        self.separator = _separator(line)
        cells = next(csv.reader([line], delimiter=self.separator))
        self.names = [cell.strip() for cell in cells]
        if _looks_like_data(self.names):
            raise TableError(
                f"The first line of {path} holds numbers, not column names; "
                "put a line with the names above it."
            )

    def not_numeric(self) -> dict[int, str]:
        """Columns with a value in the first block that is no number."""
        block = next(self._blocks(), (b"", 0))
        found: dict[int, str] = {}
        if block[0].strip():
            frame = self._frame(*block, range(len(self.names)), as_text=True)
            for i in range(len(self.names)):
                try:
                    self._numbers(frame, i, 0)
                except _BadValue as bad:
                    found[i] = bad.why
        return found

    def chunks(
        self, columns: Sequence[int], rows: int, others: Sequence[int] = ()
    ) -> Iterator[tuple[np.ndarray, pl.DataFrame | None]]:
        """See Source; how many rows come at a time is set by BLOCK, not by ``rows``."""
        import polars as pl

        start = 0
        for block, line in self._blocks():
            try:
                frame = self._frame(block, line, columns, as_text=False)
                out = frame.select(f"c{i}" for i in columns).to_numpy(order="c")
            except pl.exceptions.PolarsError:  # something here is no plain number: look closely
                frame = self._frame(block, line, columns, as_text=True)
                try:
                    out = np.stack([self._numbers(frame, i, start) for i in columns], axis=1)
                except _BadValue as bad:
                    name = self.names[bad.column]
                    raise TableError(f"{self.path}: column {name!r} {bad.why}.") from None
            start += len(out)
            kept = self._texts(block, line, others) if others else None
            if len(out):
                yield out, kept
        if not start:
            names = [self.names[i] for i in others]
            empty = pl.DataFrame(schema=dict.fromkeys(names, pl.String)) if others else None
            yield np.empty((0, len(columns))), empty

    def frames(self, columns: Sequence[int], rows: int) -> Iterator[pl.DataFrame]:
        """See Source; how many rows come at a time is set by BLOCK, not by ``rows``."""
        import polars as pl

        names, empty = [f"c{i}" for i in columns], True
        for block, line in self._blocks():
            self._check_text(block)
            text = self._frame(block, line, columns, as_text=True).select(names)
            blank = pl.col(names).str.strip_chars().is_in(MISSING)
            if len(text):
                empty = False
                yield text.with_columns(pl.when(~blank).then(pl.col(names)).name.keep())
        if empty:
            yield pl.DataFrame(schema=dict.fromkeys(names, pl.String))

    def _texts(self, block: bytes, line: int, others: Sequence[int]) -> pl.DataFrame:
        """Columns of a block as they are written, the numbers in them too."""
        self._check_text(block)
        frame = self._frame(block, line, others, as_text=True, missing=[])
        return frame.select(f"c{i}" for i in others).rename(
            {f"c{i}": self.names[i] for i in others}
        )

    def _check_text(self, block: bytes) -> None:
        try:
            block.decode()
        except UnicodeDecodeError:
            raise TableError(
                f"{self.path} is not UTF-8 text, so what stands in its columns of text cannot be "
                "told; save it as UTF-8."
            ) from None

    def _blocks(self) -> Iterator[tuple[bytes, int]]:
        """Whole records, about BLOCK bytes at a time, and the line number of the first."""
        rest, line = b"", self._line
        with self.path.open("rb") as file:
            file.seek(self._start)
            while True:
                data = file.read(BLOCK)
                block = rest + data
                end = _last_record_end(block) if data else len(block)
                if data and not end:
                    if len(block) > LONGEST:
                        raise TableError(
                            f'{self.path}: a quotation mark (") in or after line {line:,} '
                            "is never closed."
                        )
                    rest = block
                    continue
                if not data:
                    block = block.rstrip(b"\r\n")  # blank lines at the very end are no rows
                    end = len(block)
                if end:
                    yield block[:end], line
                if not data:
                    return
                line += block.count(b"\n", 0, end)
                rest = block[end:]

    def _frame(
        self,
        block: bytes,
        line: int,
        columns: Sequence[int],
        *,
        as_text: bool,
        missing: list[str] = MISSING,
    ) -> pl.DataFrame:
        """Parse one block; raises TableError, naming the line, where lines are ragged."""
        import polars as pl

        width = len(self.names)
        last = width - 1
        number = pl.String if as_text else pl.Float64
        chosen = set(columns)
        schema = {f"c{i}": number if i in chosen else pl.String for i in range(width)}
        try:
            frame = pl.read_csv(
                io.BytesIO(block),
                has_header=False,
                separator=self.separator,
                schema=schema,
                null_values=missing or None,
                encoding="utf8-lossy",
            ).select(f"c{i}" for i in sorted({*chosen, last}))
        except pl.exceptions.PolarsError as error:
            if not as_text:
                raise  # `chunks` tries again with text
            self._records(block, line)
            reason = str(error).partition("\n")[0]
            raise TableError(f"{self.path} cannot be read as CSV: {reason}.") from None
        # polars fills short lines up with nulls, so a null at the end may be a missing value,
        # a short line (an error) or a blank line (skipped)
        if width > 1 and frame[f"c{last}"].null_count():
            blank = self._records(block, line)
            if blank.any():
                frame = frame.filter(pl.Series(~blank))
        return frame

    def _records(self, block: bytes, line: int) -> np.ndarray:
        """Which records of the block are blank; raises TableError at the first ragged one."""
        reader = csv.reader(
            io.StringIO(block.decode("utf-8", "replace"), newline=""), delimiter=self.separator
        )
        blank, before = [], 0
        for record in reader:
            if record and len(record) != len(self.names):
                values = "value" if len(record) == 1 else "values"
                raise TableError(
                    f"{self.path}: line {line + before:,} has {len(record)} {values}, but the "
                    f"header names {len(self.names)} columns."
                )
            blank.append(not record)
            before = reader.line_num
        return np.array(blank, dtype=bool)

    def _numbers(self, frame: pl.DataFrame, column: int, start: int) -> np.ndarray:
        """One column of text as float64 (n,); raises _BadValue at the first that is no number."""
        import polars as pl

        text = frame[f"c{column}"]
        out = text.cast(pl.Float64, strict=False).to_numpy(writable=True)
        odd = (text.is_not_null() & text.cast(pl.Float64, strict=False).is_null()).to_numpy()
        for row in np.flatnonzero(odd):
            out[row] = self._number(text[int(row)], column, start + int(row) + 1)
        return out

    def _number(self, text: str, column: int, row: int) -> float:
        word = text.strip()
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        if self.separator != "," and _COMMA.match(word):
            word = word.replace(",", ".")
        try:
            if "_" in word:  # Python's own spelling of 1_000, nobody else's
                raise ValueError
            return float(word)
        except ValueError:
            raise _BadValue(column, not_a_number(text, row)) from None


class _BadValue(Exception):
    def __init__(self, column: int, why: str) -> None:
        super().__init__(why)
        self.column, self.why = column, why


def _first_record_end(text: bytes) -> int:
    """Where the first record ends, counting its newline."""
    end = 0
    while True:
        end = text.find(b"\n", end) + 1
        if not end:
            return len(text)
        if text.count(b'"', 0, end) % 2 == 0:
            return end


def _last_record_end(block: bytes) -> int:
    """Where the last whole record of a block ends; 0 if it holds none."""
    end = block.rfind(b"\n") + 1
    while end and block.count(b'"', 0, end) % 2:  # this newline is inside quotation marks
        end = block.rfind(b"\n", 0, end - 1) + 1
    return end


def _separator(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=bare.count)  # the comma where none occurs


def _looks_like_data(names: list[str]) -> bool:
    """All cells are numbers, and not 0, 1, 2, ..., which pandas writes for a bare array."""
    try:
        values = [float(name) for name in names]
    except ValueError:
        return False
    count = len(values)
    return values not in ([*map(float, range(count))], [*map(float, range(1, count + 1))])
