"""Exact-likelihood density estimation with quasi-autoregressive residual (QuAR) flows."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quarflow._version import __version__

if TYPE_CHECKING:
    from quarflow.density.image import ImageDensity
    from quarflow.density.kinds import density_for, open_density
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
    "ImageDensity",
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
    "density_for",
    "load_flow",
    "open_density",
    "save_flow",
]

# Where each name lives; it is imported when first asked for, so that importing quarflow is light.
_HOMES = {
    "Autoregressive": "quarflow.flows",
    "Flow": "quarflow.flows",
    "ImageDensity": "quarflow.density.image",
    "ImageQuAR": "quarflow.flows",
    "ImageResidualFlow": "quarflow.flows",
    "InversionError": "quarflow.solvers",
    "PlanarFlow": "quarflow.flows",
    "QuAR": "quarflow.flows",
    "QuARDensity": "quarflow.density.table",
    "RadialFlow": "quarflow.flows",
    "ResidualFlow": "quarflow.flows",
    "SylvesterFlow": "quarflow.flows",
    "density_for": "quarflow.density.kinds",
    "load_flow": "quarflow.store.folder",
    "open_density": "quarflow.density.kinds",
    "save_flow": "quarflow.store.folder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'quarflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
