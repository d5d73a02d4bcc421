"""Exact-likelihood density estimation with quasi-autoregressive residual (QuAR) flows."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quarflow._version import __version__ as __version__

if TYPE_CHECKING:
    from quarflow.density.image import ImageDensity as ImageDensity
    from quarflow.density.kinds import density_for as density_for
    from quarflow.density.kinds import open_density as open_density
    from quarflow.density.table import QuARDensity as QuARDensity
    from quarflow.flows import Flow as Flow
    from quarflow.flows.families import *  # noqa: F403
    from quarflow.solvers import InversionError as InversionError
    from quarflow.store.folder import load_flow as load_flow
    from quarflow.store.folder import save_flow as save_flow
    from quarflow.transforms import LogDet as LogDet

# Where each name lives; it is imported when first asked for, so that importing quarflow is light.
_HOMES = {
    "Flow": "quarflow.flows",
    "ImageDensity": "quarflow.density.image",
    "InversionError": "quarflow.solvers",
    "LogDet": "quarflow.transforms",
    "QuARDensity": "quarflow.density.table",
    "density_for": "quarflow.density.kinds",
    "load_flow": "quarflow.store.folder",
    "open_density": "quarflow.density.kinds",
    "save_flow": "quarflow.store.folder",
}
_FAMILIES = "quarflow.flows.families"  # and all that is in it


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__all__":
        return __dir__()
    found = getattr(import_module(_FAMILIES), name, None) if name[:1].isupper() else None
    if found is None:
        raise AttributeError(f"module 'quarflow' has no attribute {name!r}")

    return found


def __dir__() -> list[str]:
    families = [name for name in vars(import_module(_FAMILIES)) if not name.startswith("_")]

    return sorted([*_HOMES, *families, "__version__"])
