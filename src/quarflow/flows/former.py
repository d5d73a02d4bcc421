r"""What the arguments of flows were called, and where they stood, before they were made alike.

Accepted from callers for one more release, with a warning; model folders may always use it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["by_position", "former_names", "present", "present_or_warn"]

RENAMED: dict[str, dict[str, str]] = {
    "ResidualFlow": {"coeff": "sigma"},
    "ImageQuAR": {"blocks": "transforms"},
    "ImageResidualFlow": {"blocks": "transforms", "coeff": "sigma"},
}

# Fields of `logdet: LogDet` that were arguments of residual flows themselves.
FIELDS = {
    "train_terms": "terms",
    **{n: n for n in ("distribution", "rate", "probe", "neumann_gradient", "memory_saving")},
}

# What could be given by position after the features and the context, or the shape of images.
POSITIONS: dict[str, str] = {
    "QuAR": "transforms hidden_features norm order activation sigma mix base trick start",
    "ResidualFlow": "transforms hidden_features activation sigma logdet train_terms eval_terms "
    "distribution rate probe neumann_gradient memory_saving base",
    "Autoregressive": "transforms hidden_features inverse order activation limit method base",
    "PlanarFlow": "transforms hidden_features inverse base",
    "RadialFlow": "transforms hidden_features inverse base",
    "SylvesterFlow": "transforms ridges hidden_features inverse base",
    "ImageQuAR": "scales transforms hidden_channels norm order activation sigma factor_out alpha "
    "first_preactivation base levels trick recompute implementation",
    "ImageResidualFlow": "scales transforms hidden_channels activation sigma logdet train_terms "
    "eval_terms distribution rate probe neumann_gradient memory_saving factor_out alpha "
    "first_preactivation base levels",
}


def former_names(family: str) -> set[str]:
    """What arguments of a flow were called before, and are not now."""
    return {*RENAMED.get(family, {}), *(FIELDS if family.endswith("ResidualFlow") else ())}


def present(family: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments under their present names.

    Arguments:
        family: Name of the flow.
        arguments: As they are called now or were called before.

    Raises:
        ValueError: if an argument is given under both names.

    Example:
        >>> present("ResidualFlow", {"coeff": 0.9, "train_terms": 4})
        {'sigma': 0.9, 'logdet': {'terms': 4}}
        >>> present("QuAR", {"sigma": 0.9})
        {'sigma': 0.9}
    """
    new = RENAMED.get(family, {})
    for old in new.keys() & arguments.keys():
        if new[old] in arguments:
            raise ValueError(f"{old} is now called {new[old]}: give one of them.")
    found = {new.get(name, name): value for name, value in arguments.items()}

    return _with_logdet(found) if family.endswith("ResidualFlow") else found


def _with_logdet(arguments: dict[str, Any]) -> dict[str, Any]:
    parts = {FIELDS[name]: arguments.pop(name) for name in FIELDS if name in arguments}
    if not parts:
        return arguments
    mode = arguments.get("logdet")
    if mode is not None and not isinstance(mode, str):
        raise ValueError(f"{next(iter(parts))} is a field of logdet now: give it there only.")

    return {**arguments, "logdet": parts if mode is None else {"mode": mode, **parts}}


def present_or_warn(
    family: str, arguments: Mapping[str, Any], stacklevel: int = 2
) -> dict[str, Any]:
    """Arguments under their present names; whoever used others is told.

    Arguments:
        family: Name of the flow.
        arguments: As they are called now or were called before.
        stacklevel: Of the warning, as seen from the caller of this function.

    Raises:
        ValueError: if an argument is given under both names.
    """
    found = present(family, arguments)
    old = sorted(arguments.keys() - found.keys())
    if old:
        renamed = RENAMED.get(family, {})
        new = ", ".join(
            f"{name} by {renamed[name] if name in renamed else f'logdet.{FIELDS[name]}'}"
            for name in old
        )
        warnings.warn(
            f"Replace, in the arguments of {family}, {new}: the old names go with the next "
            "release.",
            DeprecationWarning,
            stacklevel + 1,
        )

    return found


def by_position(
    family: str, values: Sequence[Any], named: Mapping[str, Any], stacklevel: int = 2
) -> dict[str, Any]:
    """Names for arguments that are given by position but have to be named; the caller is told.

    Arguments:
        family: Name of the flow.
        values: What stands after the arguments that may be given by position.
        named: What is given by name.
        stacklevel: Of the warning, as seen from the caller of this function.

    Raises:
        TypeError: if the flow never took so many, or one is also given by name.
    """
    names = POSITIONS.get(family, "").split()
    if len(values) > len(names):
        raise TypeError(f"{family} takes {len(values) - len(names)} arguments fewer by position.")
    names = names[: len(values)]
    twice = [name for name in names if name in named]
    if twice:
        raise TypeError(f"{twice[0]} is given by position and by name.")
    warnings.warn(
        f"Name these arguments of {family}: {', '.join(names)}. Their position will mean nothing "
        "in the next release.",
        DeprecationWarning,
        stacklevel + 1,
    )

    return dict(zip(names, values, strict=True))
