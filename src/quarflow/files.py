"""Files that appear whole or not at all, and values as JSON knows them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["plain", "whole", "write_array", "write_json", "write_whole"]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it is moved there at the end, unless that failed.

    So no half-written file is ever seen, and nothing is left of one that could not be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with whole(path) as unfinished:
        ...     _ = unfinished.write_text("all of it")
        >>> [found.name for found in path.parent.iterdir()], path.read_text()
        (['a.txt'], 'all of it')
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8 with its line ends as they are."""
    with whole(path) as unfinished:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_array(path: Path, array: Any) -> None:
    """Write an array as .npy."""
    import numpy as np  # slow to import for what only writes text

    with whole(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Write strict JSON of what :func:`plain` makes of a value."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")


def plain(value: Any) -> Any:
    """Tensors, arrays, their numbers, paths and tuples as JSON knows them; inf and NaN as null.

    Example:
        >>> import torch
        >>> plain({"a": torch.ones(2), 3: (math.inf, 1)})
        {'a': [1.0, 1.0], '3': [None, 1]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None

    return str(value) if isinstance(value, os.PathLike) else value
