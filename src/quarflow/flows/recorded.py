r"""Modules that know what they were made with, as a model folder writes it."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

from torch import nn

from quarflow.flows.arguments import as_json, bound

__all__ = ["Recorded"]


class Recorded(nn.Module):
    r"""A module that records the arguments it is made with.

    An argument whose default is a dataclass may also be given as a dict of some of its fields,
    or as its first field alone.

    Attributes:
        arguments: What it was made with, as JSON knows it; saved with models.

    Example:
        >>> class Two(Recorded):
        ...     def __init__(self, features, context=0, *, widths=(3, 4)):
        ...         super().__init__()
        >>> Two(2).arguments
        {'features': 2, 'context': 0, 'widths': [3, 4]}
    """

    arguments: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        make, signature = cls.__init__, inspect.signature(cls)

        @wraps(make)
        def recording(self: Recorded, *args: Any, **kwargs: Any) -> None:
            given = bound(cls, signature, args, kwargs)
            make(self, *given.args, **given.kwargs)
            if type(self) is cls:
                self.arguments = {k: as_json(v) for k, v in given.arguments.items()}

        cls.__init__ = recording  # type: ignore[method-assign, assignment]
