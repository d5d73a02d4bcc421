r"""Arguments of flows: how they are bound to the signature of a constructor, and recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from inspect import BoundArguments, Parameter, Signature
from typing import Any

from quarflow.flows.former import POSITIONS, by_position, present_or_warn

__all__ = ["as_json", "bound"]

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def bound(
    kind: type, signature: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> BoundArguments:
    """What a constructor is called with, defaults included.

    Arguments:
        kind: The class that is constructed.
        signature: Of its constructor.
        args, kwargs: As the caller gave them, two frames above.

    Raises:
        TypeError: if they do not suit the signature.
        ValueError: if an argument has no such field, or is given twice.
    """
    family = next((k.__name__ for k in kind.__mro__ if k.__name__ in POSITIONS), kind.__name__)
    parameters = signature.parameters
    most = sum(p.kind in POSITIONAL for p in parameters.values())
    if len(args) > most and family in POSITIONS and _named_only(signature):
        further = by_position(family, args[most:], kwargs, stacklevel=3)
        args, kwargs = args[:most], {**further, **kwargs}
    kwargs = present_or_warn(family, kwargs, stacklevel=3)
    try:
        given = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{kind.__name__}: {error}.") from None
    given.apply_defaults()
    for name, value in given.arguments.items():
        given.arguments[name] = _whole(name, value, parameters[name].default)

    return given


def _named_only(signature: Signature) -> bool:
    return all(p.kind is not Parameter.VAR_POSITIONAL for p in signature.parameters.values())


def _whole(name: str, value: Any, default: Any) -> Any:
    """The dataclass that some of its fields, or its first one, stand for."""
    if not is_dataclass(default) or isinstance(default, type):
        return value
    names = [field.name for field in fields(default)]
    if isinstance(value, str):
        value = {names[0]: value}
    if isinstance(value, type(default)):
        return value
    if not isinstance(value, Mapping):
        kind = type(default).__name__
        raise ValueError(f"{name} must be a {kind} or its {names[0]}, not {value!r}.")
    unknown = sorted(value.keys() - set(names))
    if unknown:
        raise ValueError(f"{name} has no {unknown[0]!r}; it has {', '.join(names)}.")

    return replace(default, **value)


def as_json(value: Any) -> Any:
    """An argument as JSON knows it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)

    return list(value) if isinstance(value, (list, tuple)) else value
