"""Files that say what the columns of a table are: TOML or JSON, with the keys of ``kinds``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from quarflow.data.column import Kind
from quarflow.data.kinds import read_kinds
from quarflow.data.source import shorten

__all__ = ["SCHEMAS", "join_kinds", "parse_kind", "read_schema"]

SCHEMAS = (".toml", ".json")
_MOST = 8 << 20  # bytes


def read_schema(path: str | PathLike[str]) -> dict[str, Any]:
    """What a schema file says of columns, by name, as ``kinds`` has it.

    Raises:
        ValueError: for a file that is not there, not TOML or JSON, or says what cannot be said.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "columns.toml")
        >>> _ = path.write_text('zip = "category"\\n[angle]\\nperiod = 360\\n')
        >>> read_schema(path)
        {'zip': 'category', 'angle': {'period': 360}}
    """
    path = Path(path)
    if path.suffix.lower() not in SCHEMAS:
        raise ValueError(f"{path}: a schema file ends in {' or '.join(SCHEMAS)}.")
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    if path.stat().st_size > _MOST:
        raise ValueError(f"{path} is too large for a schema file.")
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text.") from None
    except ValueError as error:  # of either
        kind = path.suffix[1:].upper()
        raise ValueError(f"{path} is no valid {kind}: {error}.") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold columns and their kinds, not {shorten(found)}.")
    read_kinds(found, argument=str(path))

    return found


def parse_kind(text: str, option: str = "--kind") -> tuple[str, Any]:
    """A column and its kind as they are typed: ``name=kind``, or ``name=`` and a JSON object.

    What follows the kind after a colon is the period, or the cyclic parts of a date.

    Raises:
        ValueError: for something else.

    Example:
        >>> parse_kind("zip=category"), parse_kind("angle=periodic:360")
        (('zip', 'category'), ('angle', {'kind': 'periodic', 'period': 360.0}))
        >>> parse_kind("t=date:day,year")
        ('t', {'kind': 'date', 'cyclic': ['day', 'year']})
        >>> parse_kind('t={"kind": "date", "format": "%d.%m.%Y"}')
        ('t', {'kind': 'date', 'format': '%d.%m.%Y'})
    """
    name, said = _split(text, option)
    if said.startswith("{"):
        try:
            kind: Any = json.loads(said)
        except ValueError:
            raise ValueError(f"{option} {name}: {shorten(said)} is no valid JSON.") from None
    else:
        kind = _short_form(said, name, option)
    read_kinds({name: kind}, argument=option)

    return name, kind


def join_kinds(options: Sequence[str], schema: str | PathLike[str] | None) -> dict[str, Any]:
    """What a schema file and the options of a command say together; options count for more.

    Raises:
        ValueError: for a column named twice among the options, and as the others.
    """
    found = {} if schema is None else read_schema(schema)
    seen = set()
    for option in options:
        name, kind = parse_kind(option)
        if name in seen:
            raise ValueError(f"--kind names the column {shorten(name)} twice.")
        seen.add(name)
        found[name] = kind

    return found


def _split(text: str, option: str) -> tuple[str, str]:
    before, brace, after = text.partition("={")
    if brace:
        return before.strip(), "{" + after
    name, equals, said = text.rpartition("=")
    if not equals or not name.strip() or not said.strip():
        kinds = ", ".join(_kinds())
        raise ValueError(
            f"{option} takes a column and its kind, such as {option} zip=category, not "
            f"{shorten(text)}; the kinds are {kinds}."
        )
    return name.strip(), said.strip()


def _short_form(said: str, name: str, option: str) -> Any:
    kind, colon, more = said.partition(":")
    if not colon:
        return said
    if kind == "periodic":
        try:
            return {"kind": kind, "period": float(more)}
        except ValueError:
            raise ValueError(
                f"{option} {name}: the period must be a number, such as periodic:360, not "
                f"{shorten(more)}."
            ) from None
    if kind == "date":
        return {"kind": kind, "cyclic": [part.strip() for part in more.split(",")]}
    raise ValueError(
        f"{option} {name}: after {kind}: nothing can follow; leave {colon}{more} out."
    )


def _kinds() -> tuple[str, ...]:
    return get_args(Kind)
