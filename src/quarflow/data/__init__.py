"""Data: tables and images from files, preprocessing with an exact log-det, built-in data sets."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name -> module, imported on first use: `import quarflow` stays light
_HOME = {
    "Column": "columns",
    "Columns": "columns",
    "Table": "tables",
    "TableError": "tables",
    "TableWriter": "tables",
    "column_names": "tables",
    "iter_table": "tables",
    "Images": "images",
    "ImageError": "images",
    "is_images": "images",
    "read_images": "images",
    "load_set": "image_sets",
    "read_table": "tables",
    "MagicGamma": "demo",
    "load_magic": "demo",
    "magic_path": "demo",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
