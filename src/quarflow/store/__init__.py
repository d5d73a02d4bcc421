"""A model on disk: a folder of JSON and safetensors that loads without running any code."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name -> module, imported on first use: what only looks at folders is light
_HOME = {
    "CONFIG": "folder",
    "LOG": "folder",
    "METRICS": "folder",
    "WEIGHTS": "folder",
    "Model": "folder",
    "ModelConfig": "folder",
    "StoreError": "read",
    "holds_images": "folder",
    "is_model": "folder",
    "load_flow": "folder",
    "load_model": "folder",
    "read_model": "folder",
    "save_flow": "folder",
    "save_model": "folder",
    "FlowConfig": "schema",
    "ImageConfig": "schema",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
