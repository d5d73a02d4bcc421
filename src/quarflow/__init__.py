"""Exact-likelihood density estimation with quasi-autoregressive residual (QuAR) flows."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quarflow._version import __version__

if TYPE_CHECKING:
    from quarflow.density.table import QuARDensity
    from quarflow.flows import (
        Autoregressive,
        Flow,
        ImageQuAR,
        ImageResidualFlow,
        PlanarFlow,
        QuAR,
        RadialFlow,
        ResidualFlow,
        SylvesterFlow,
    )
    from quarflow.solvers import InversionError
    from quarflow.store.folder import load_flow, save_flow

__all__ = [
    "Autoregressive",
    "Flow",
    "ImageQuAR",
    "ImageResidualFlow",
    "InversionError",
    "PlanarFlow",
    "QuAR",
    "QuARDensity",
    "RadialFlow",
    "ResidualFlow",
    "SylvesterFlow",
    "__version__",
    "load_flow",
    "save_flow",
]

# Where each name lives; it is imported when first asked for, so that importing quarflow is light.
_HOMES = {
    "Autoregressive": "quarflow.flows",
    "Flow": "quarflow.flows",
    "ImageQuAR": "quarflow.flows",
    "ImageResidualFlow": "quarflow.flows",
    "InversionError": "quarflow.solvers",
    "PlanarFlow": "quarflow.flows",
    "QuAR": "quarflow.flows",
    "QuARDensity": "quarflow.density.table",
    "RadialFlow": "quarflow.flows",
    "ResidualFlow": "quarflow.flows",
    "SylvesterFlow": "quarflow.flows",
    "load_flow": "quarflow.store.folder",
    "save_flow": "quarflow.store.folder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'quarflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
