"""Numbers and settings in words: what the page prints, besides pictures."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quarflow.report.names import readable

if TYPE_CHECKING:
    from quarflow.report.model import Model


def number(value: Any, digits: int = 4) -> str:
    """Write a number to be read; None is a dash.

    Example:
        >>> number(19020), number(0.00012345), number(3.0), number(1234567.8)
        ('19,020', '0.0001234', '3', '1,234,568')
    """
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    value = float(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "not a number"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Write a time to be read.

    >>> duration(4.25), duration(95)
    ('4.2 s', '1 min 35 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s"


def nats(value: float | None) -> str:
    """Say a mean of -log p, with the sign and direction that everything shares.

    >>> nats(4.25)
    '4.2500 nats per row (-log p, less is better)'
    >>> nats(None)
    'unknown'
    """
    return "unknown" if value is None else f"{value:.4f} nats per row (-log p, less is better)"


def settings_table(model: Model) -> list[dict[str, str]]:
    """Every setting, and who chose it."""
    asked = model.estimator.get_params(deep=False)
    usual = inspect.signature(type(model.estimator)).parameters
    result = []
    for key, value in model.estimator.settings_.items():
        by = ""
        if key in asked:
            if isinstance(asked[key], str) and asked[key] == "auto":
                by = "chosen from the data"
            elif key in usual and usual[key].default != asked[key]:
                by = "set by the user"
        result.append({"name": str(key), "value": readable(typed(value), 160), "by": by})
    return result


def typed(value: Any) -> str:
    """Write a setting as one would type it."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(typed(item) for item in value)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {typed(item)}" for key, item in value.items()) or "none"
    return "none" if value is None else str(value)


def headline(content: dict[str, Any]) -> list[dict[str, str]]:
    """The few figures that come first."""
    metrics, data, found = content["metrics"], content["data"], content["calibration"]
    tiles = []
    if data and data["nats"] is not None:
        note = f"± {number(data['error'], 2)}, mean -log p of {number(data['scored'])} rows given"
        tiles.append({"value": f"{data['nats']:.3f}", "unit": "nats", "note": note})
        if data["gaussian"] is not None:
            lead = data["gaussian"] - data["nats"]
            word = "better" if lead >= 0 else "worse"
            note = f"{word} than a full-covariance Gaussian fitted to the same rows"
            tiles.append({"value": f"{abs(lead):.3f}", "unit": "nats", "note": note})
    valid = metrics.get("valid_nats")
    if valid is not None:
        note = (
            f"at the end of training, on its {number(metrics.get('valid_rows'))} validation rows"
        )
        tiles.append({"value": f"{valid:.3f}", "unit": "nats", "note": note})
    if found:
        note = f"KS distance of the joint calibration; chance alone: {found['chance']:.3f}"
        tiles.append({"value": f"{found['joint_ks']:.3f}", "unit": "", "note": note})
    bound = max(step["bound"] for step in content["certificate"])
    note = "certified bound on abs(d), below 1: invertible everywhere"
    tiles.append({"value": f"{bound:.3f}", "unit": "", "note": note})
    if content["inversion"]:
        note = "largest relative error of samples there and back"
        tiles.append({"value": f"{content['inversion']['error']:.0e}", "unit": "", "note": note})
    return tiles
