r"""The flow families by name: what can be saved and loaded, and what the tests go through."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from quarflow.flows.recorded import Recorded

__all__ = ["FAMILIES", "family"]

FAMILIES: dict[str, type[Recorded]] = {}

Kind = TypeVar("Kind", bound="type[Recorded]")


def family(kind: Kind) -> Kind:
    """Make a flow a family: a decorator of its class.

    Flows of a family can be saved, and a folder that names it is loaded by its constructor, whose
    type hints say which arguments a folder may give. They must be whole numbers, numbers, truth
    values, text, a choice of these (``Literal``), sequences of whole numbers or a dataclass of
    such fields.

    Arguments:
        kind: A class of flows, or of what records its arguments alike; its name is that of the
            family.

    Raises:
        ValueError: if another family has that name.

    Example:
        >>> from quarflow.flows import PlanarFlow
        >>> FAMILIES["PlanarFlow"] is PlanarFlow
        True
    """
    known = FAMILIES.setdefault(kind.__name__, kind)
    if known is not kind and known.__module__ != kind.__module__:
        raise ValueError(f"There is a flow family {kind.__name__} already, in {known.__module__}.")
    FAMILIES[kind.__name__] = kind  # a module that is loaded again, as in a notebook

    return kind
