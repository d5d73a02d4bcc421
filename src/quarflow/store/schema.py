r"""The flows that may be in a model folder, all families, and the arguments they may have.

What comes from a file is checked before anything is built: arguments by the type hints of the
constructor, and by what it refuses itself when the flow is built without memory, to count its
numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)
from torch import nn

from quarflow.flows import FAMILIES, Flow
from quarflow.flows.arguments import as_json
from quarflow.flows.former import present

__all__ = [
    "FlowConfig",
    "ImageConfig",
    "Settings",
    "Strict",
    "build_flow",
    "flow_config",
    "least_numbers",
]

Width = Annotated[int, Field(ge=1, le=65_536, strict=True)]
Whole = Annotated[int, Field(ge=0, le=65_536, strict=True)]
Few = Annotated[int, Field(ge=1, le=1024, strict=True)]
FEW = ("transforms", "scales", "terms", "eval_terms")  # loops run over them
NONE_TOO = ("context_features",)  # sequences that may be empty


PLAIN: dict[Any, Any] = {
    int: Whole,
    bool: Annotated[bool, Field(strict=True)],
    float: Annotated[float, Field(strict=True)],
    str: Annotated[str, Field(max_length=64)],
}


def _shallow(value: Any, depth: int = 0) -> Any:
    """Settings are a few levels deep: what shows them, goes down by calling itself."""
    if depth > 8:
        raise ValueError("nested too deeply")
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list | tuple):
            _shallow(part, depth + 1)

    return value


Settings = Annotated[dict[str, Any], AfterValidator(_shallow)]


class Strict(BaseModel):
    """Refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


def _known(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"there is no flow {name[:64]!r}; there are {', '.join(FAMILIES)}")

    return name


class FlowConfig(Strict):
    """Which flow, with which arguments."""

    name: Annotated[str, AfterValidator(_known)]
    arguments: SerializeAsAny[BaseModel]

    @field_validator("arguments", mode="before")
    @classmethod
    def _checked(cls, value: Any, info: ValidationInfo) -> BaseModel:
        name = info.data.get("name")
        if name is None:
            raise ValueError("the name of the flow is not known")
        model = arguments_of(name)
        try:
            if isinstance(value, dict):  # perhaps of an earlier release
                value = present(name, value)

            return value if isinstance(value, model) else model.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{where}: {first['msg']}") from None


class ImageConfig(Strict):
    """What an image model was fitted to.

    Attributes:
        shape: Channels, height, width.
        levels: Grey levels of a channel.
        name: Of the images.
    """

    shape: tuple[Width, Width, Width]
    levels: Annotated[int, Field(ge=2, le=256, strict=True)]
    name: str = ""


def arguments_of(name: str) -> type[BaseModel]:
    """The model that arguments of a flow must satisfy, from its constructor's type hints."""
    return _arguments_of(FAMILIES[name])


@cache
def _arguments_of(kind: type) -> type[BaseModel]:
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    fields: dict[str, Any] = {
        key: (_bounded(key, hints[key]), ... if p.default is p.empty else as_json(p.default))
        for key, p in inspect.signature(kind).parameters.items()
    }

    return create_model(f"{kind.__name__}Arguments", __base__=Strict, **fields)


def _bounded(name: str, hint: Any) -> Any:
    """A type hint with limits, so that no argument from a file can ask for the impossible."""
    if hint in PLAIN:
        return Few if hint is int and name in FEW else PLAIN[hint]
    if isinstance(hint, type) and is_dataclass(hint):
        return _arguments_of(hint)
    if get_origin(hint) is Sequence and get_args(hint) == (int,):
        least = 0 if name in NONE_TOO else 1
        return Annotated[list[Width], Field(min_length=least, max_length=32)]
    if get_origin(hint) in (Union, UnionType):
        return reduce(or_, (_bounded(name, part) for part in get_args(hint)))
    if get_origin(hint) is Literal or hint is NoneType:
        return hint
    if hint is nn.Module:
        return NoneType  # of the user's own code: no folder holds one
    raise TypeError(f"{name}: flows with arguments of type {hint} cannot be saved.")


def flow_config(flow: Flow) -> FlowConfig:
    """Say which flow it is, with the arguments it was made with.

    Raises:
        ValueError: if it is none that can be saved.

    Example:
        >>> from quarflow.flows import PlanarFlow
        >>> flow_config(PlanarFlow(2, transforms=3)).name
        'PlanarFlow'
    """
    name = type(flow).__name__
    for key, value in flow.arguments.items():
        if isinstance(value, nn.Module):
            raise ValueError(
                f"A flow with an {key} of your own cannot be saved in a folder: it could not be "
                "loaded without your code. Save its state_dict(), or fit to embedded contexts."
            )
    if type(flow) is not FAMILIES.get(name):
        raise ValueError(
            f"A {name} cannot be saved; the flows that can are {', '.join(FAMILIES)}."
        )

    return FlowConfig.model_validate({"name": name, "arguments": flow.arguments})


def build_flow(config: FlowConfig) -> Flow:
    """The flow that a configuration describes, with weights yet to be loaded.

    Raises:
        ValueError: if its arguments do not suit each other.
    """
    constructor: Callable[..., Flow] = FAMILIES[config.name]
    with torch.random.fork_rng(devices=[]):
        return constructor(**config.arguments.model_dump())


def least_numbers(config: FlowConfig) -> int:
    """How many numbers the weights hold, found without memory for them.

    Raises:
        ValueError: if its arguments do not suit each other, or ask for more than can be.

    Example:
        >>> from quarflow.flows import PlanarFlow
        >>> least_numbers(flow_config(PlanarFlow(2, transforms=3)))
        32
    """
    try:
        with torch.device("meta"):
            state = build_flow(config).state_dict()
    except RuntimeError:  # sizes of which not even the product can be told
        raise ValueError("its weights are larger than any memory.") from None

    return sum(tensor.numel() for tensor in state.values())
