r"""The flows that may be in a model folder: one registry of names, constructors and arguments.

What comes from a file is checked before anything is built: arguments by type and range, and the
numbers that the flow will hold by building it without memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

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

import quarflow.flows as flows
from quarflow.flows import Flow
from quarflow.nn.branch import units_per_dimension

__all__ = [
    "FLOWS",
    "FlowConfig",
    "ImageConfig",
    "QuARArguments",
    "Settings",
    "Strict",
    "build_flow",
    "flow_config",
    "least_numbers",
]

FlowName = Literal[
    "QuAR",
    "ImageQuAR",
    "ImageResidualFlow",
    "ResidualFlow",
    "Autoregressive",
    "PlanarFlow",
    "RadialFlow",
    "SylvesterFlow",
]
FLOWS: tuple[str, ...] = get_args(FlowName)

Width = Annotated[int, Field(ge=1, le=65_536, strict=True)]
Whole = Annotated[int, Field(ge=0, le=65_536, strict=True)]
Few = Annotated[int, Field(ge=1, le=1024, strict=True)]
FEW = ("transforms", "blocks", "scales", "train_terms", "eval_terms")  # loops run over them


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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class QuARArguments(Strict):
    """Arguments of :class:`quarflow.QuAR`, as they may come from a file."""

    features: Width
    context: Whole
    transforms: Few
    hidden_features: Annotated[list[Width], Field(min_length=1, max_length=32)]
    norm: Literal["dimension", "operator"]
    order: Literal["alternate", "fixed"]
    activation: Literal["elu", "lipswish", "sin", "tanh"]
    sigma: Annotated[float, Field(gt=0, lt=1, strict=True)]
    mix: Literal["none", "lu"]
    base: Literal["normal", "student-t"]
    trick: Annotated[bool, Field(strict=True)]
    start: Literal["none", "gaussian"] = "none"  # models of earlier versions have none

    def least_numbers(self) -> int:
        """A lower bound on how many numbers the weights hold, without building the flow."""
        D = self.features
        units = [1, *(units_per_dimension(h, D) for h in self.hidden_features), 1]
        blocks = D * (D + 1) // 2
        numbers = sum(blocks * a * b + D * b * (1 + self.context) for a, b in pairwise(units))
        mix = D * D if self.mix == "lu" and D > 1 else 0

        start = D * (D + 2 + self.context) if self.start == "gaussian" else 0

        return self.transforms * (numbers + mix) + start


class FlowConfig(Strict):
    """Which flow, with which arguments."""

    name: FlowName
    arguments: SerializeAsAny[BaseModel]

    @field_validator("arguments", mode="before")
    @classmethod
    def _checked(cls, value: Any, info: ValidationInfo) -> BaseModel:
        name = info.data.get("name")
        if name is None:
            raise ValueError("the name of the flow is not known")
        model = arguments_of(name)
        try:
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


@cache
def arguments_of(name: str) -> type[BaseModel]:
    """The model that arguments of a flow must satisfy, from its constructor's type hints."""
    if name == "QuAR":
        return QuARArguments
    constructor = getattr(flows, name)
    hints = get_type_hints(constructor.__init__)
    fields: dict[str, Any] = {
        key: (_bounded(key, hints[key]), ... if p.default is p.empty else p.default)
        for key, p in inspect.signature(constructor).parameters.items()
    }

    return create_model(f"{name}Arguments", __base__=Strict, **fields)


def _bounded(name: str, hint: Any) -> Any:
    """A type hint with limits, so that no argument from a file can ask for the impossible."""
    if hint is int:
        return Few if name in FEW else Whole
    if hint is bool:
        return Annotated[bool, Field(strict=True)]
    if hint is str:
        return Annotated[str, Field(max_length=64)]
    if get_origin(hint) is Sequence or get_origin(hint) is get_origin(tuple[int, ...]):
        return Annotated[list[Width], Field(min_length=1, max_length=32)]
    if hint == (int | None):
        return Whole | None

    return hint


def flow_config(flow: Flow) -> FlowConfig:
    """Say which flow it is, with the arguments it was made with.

    Raises:
        ValueError: if it is none that can be saved.

    Example:
        >>> flow_config(flows.PlanarFlow(2, transforms=3)).name
        'PlanarFlow'
    """
    name = type(flow).__name__
    if name not in FLOWS or type(flow) is not getattr(flows, name):
        raise ValueError(f"A {name} cannot be saved; the flows that can are {', '.join(FLOWS)}.")

    return FlowConfig.model_validate({"name": name, "arguments": flow.arguments})


def build_flow(config: FlowConfig) -> Flow:
    """The flow that a configuration describes, with weights yet to be loaded.

    Raises:
        ValueError: if its arguments do not suit each other.
    """
    constructor: Callable[..., Flow] = getattr(flows, config.name)
    with torch.random.fork_rng(devices=[]):
        return constructor(**config.arguments.model_dump())


def least_numbers(config: FlowConfig) -> int:
    """How many numbers the weights hold at least, found without memory for them.

    Raises:
        ValueError: if its arguments do not suit each other.

    Example:
        >>> least_numbers(flow_config(flows.PlanarFlow(2, transforms=3)))
        32
    """
    if isinstance(config.arguments, QuARArguments):
        return config.arguments.least_numbers()
    with torch.device("meta"):
        state = build_flow(config).state_dict()

    return sum(tensor.numel() for tensor in state.values())
