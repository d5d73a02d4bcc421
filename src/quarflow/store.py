r"""A model on disk: a folder of JSON and safetensors that loads without running any code.

``config.json`` holds what the model is, ``weights.safetensors`` its parameters,
``metrics.json`` how well it did, ``training.jsonl`` one line per evaluation while training.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quarflow._version import __version__
from quarflow.data.columns import Column
from quarflow.files import plain
from quarflow.flows import Flow
from quarflow.store_flows import (
    FlowConfig,
    ImageConfig,
    QuARArguments,
    Strict,
    build_flow,
    flow_config,
    least_numbers,
)

__all__ = [
    "CONFIG",
    "VERSION",
    "FlowConfig",
    "ImageConfig",
    "Model",
    "ModelConfig",
    "QuARArguments",
    "StoreError",
    "is_model",
    "load_flow",
    "load_model",
    "read_model",
    "save_flow",
    "save_model",
]

VERSION = 1  # of the format
CONFIG, WEIGHTS, METRICS, LOG = (
    "config.json",
    "weights.safetensors",
    "metrics.json",
    "training.jsonl",
)


class StoreError(ValueError):
    """A folder does not hold a model that can be loaded; the message says why."""


class ModelConfig(Strict):
    """All of a model but its weights.

    Attributes:
        version: Of this format; a loader refuses what it does not know.
        quarflow: Version of the library that wrote the model.
        flow: The flow; over standardised columns if there are columns.
        columns, context_columns: Fitted preprocessing of a table; empty for other models.
        images: What an image model was fitted to; None for other models.
        named: Whether the columns were given by name.
        parameters: Arguments of the estimator.
        settings: Every choice made when fitting.
    """

    format: Literal["quarflow model"] = "quarflow model"
    version: Literal[1] = 1
    quarflow: str = __version__
    flow: FlowConfig
    columns: list[Column] = Field(default_factory=list)
    context_columns: list[Column] | None = None
    images: ImageConfig | None = None
    named: bool = False
    parameters: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)


class Model(Strict):
    """What :func:`load_model` gives: configuration, the flow, metrics and training log."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    config: ModelConfig
    flow: Flow
    metrics: dict[str, Any]
    log: list[dict[str, Any]]


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a finished model (its configuration is there)."""
    return (Path(folder) / CONFIG).is_file()


def save_model(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    flow: Flow,
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
) -> None:
    """Write a model; the folder appears, or is replaced, as a whole.

    Raises:
        StoreError: if the weights are not finite, or the folder holds something else.
    """
    folder = Path(os.path.realpath(folder))  # a link to a folder stays one
    weights = {k: v.detach().cpu().contiguous() for k, v in flow.state_dict().items()}
    _check_finite(weights, "The weights to save")
    if folder.exists() and not _may_replace(folder):
        raise StoreError(f"{folder} exists and is not a model; choose another place.")
    folder.parent.mkdir(parents=True, exist_ok=True)

    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        os.chmod(new, 0o777 & ~_umask())
        save_file(weights, new / WEIGHTS)
        os.chmod(new / WEIGHTS, 0o666 & ~_umask())
        (new / METRICS).write_text(_dump(dict(metrics)), encoding="utf-8")
        lines = "".join(json.dumps(plain(line)) + "\n" for line in log)
        (new / LOG).write_text(lines, encoding="utf-8")
        (new / CONFIG).write_text(_dump(config.model_dump(mode="json")), encoding="utf-8")
        _swap(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def save_flow(
    flow: Flow,
    folder: str | os.PathLike[str],
    *,
    images: ImageConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    log: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a flow by itself, without the preprocessing of a table, as a folder.

    Arguments:
        flow: Any flow of this library.
        folder: Appears, or is replaced, as a whole.
        images: What it was fitted to, for an image model.
        settings, metrics, log: What is worth keeping about its training.

    Raises:
        ValueError: if the flow is of a kind that cannot be saved.
        StoreError: if the weights are not finite, or the folder holds something else.

    Example:
        >>> import quarflow
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> save_flow(quarflow.PlanarFlow(2, transforms=3), folder)
        >>> load_flow(folder)().sample((5,)).shape
        torch.Size([5, 2])
    """
    config = ModelConfig(
        flow=flow_config(flow), images=images, settings=plain(dict(settings or {}))
    )
    save_model(folder, config, flow, metrics or {}, log)


def load_flow(folder: str | os.PathLike[str]) -> Flow:
    """Read back a flow that :func:`save_flow` wrote; nothing in the folder is executed.

    Raises:
        StoreError: if the folder does not hold a whole, valid model, or that of a table, whose
            flow means nothing without its columns.
    """
    model = read_model(folder)
    if model.config.columns:
        raise StoreError(
            f"{folder} holds the model of a table; load it by quarflow.QuARDensity.load."
        )

    return model.flow


def load_model(folder: str | os.PathLike[str]) -> Model:
    """Read the model of a table back; see :func:`read_model`."""
    return read_model(folder, table=True)


def read_model(folder: str | os.PathLike[str], table: bool = False) -> Model:
    """Read a model back, checking everything and executing nothing.

    Arguments:
        folder: Where it is.
        table: Refuse what is not the model of a table.

    Raises:
        StoreError: if a file is missing or damaged, the version is unknown, or the weights do
            not fit the configuration.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"There is no model at {folder}: no such folder.")
    config = _read_config(folder)
    if table and not config.columns:
        kind = "an image model" if config.images else f"a {config.flow.name} without columns"
        raise StoreError(
            f"{folder} is inconsistent with a table: it holds {kind}; "
            "load it by quarflow.load_flow."
        )
    _check_parts(config, folder / CONFIG)
    try:
        least = least_numbers(config.flow)
        weights = _read_weights(folder / WEIGHTS, least)
        flow = build_flow(config.flow)
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(f"{folder / CONFIG} describes no valid flow: {error}") from None
    _check_fit(weights, flow.state_dict(), folder / WEIGHTS)
    flow.load_state_dict(weights)
    _check_finite(flow.state_dict(), str(folder / WEIGHTS))  # also in the precision of the flow
    metrics = _read_json(folder / METRICS)
    if not isinstance(metrics, dict):
        raise StoreError(f"{folder / METRICS} is damaged: it should hold a JSON object.")

    return Model(config=config, flow=flow.eval(), metrics=metrics, log=_read_log(folder / LOG))


def _check_parts(config: ModelConfig, path: Path) -> None:
    """Refuse a flow that does not suit the columns or images it is said to be for."""
    arguments = config.flow.arguments
    if config.images is not None:
        shape = getattr(arguments, "shape", None)
        levels = getattr(arguments, "levels", None)
        if (
            shape is None
            or tuple(shape) != config.images.shape
            or levels != config.images.levels
            or config.columns
        ):
            raise StoreError(f"{path} is inconsistent: the flow is not one for its images.")
    if not config.columns:
        if config.context_columns:
            raise StoreError(f"{path} is inconsistent: it has context columns and no others.")
        return
    if not isinstance(arguments, QuARArguments):
        raise StoreError(f"{path} is inconsistent: a {config.flow.name} has no columns.")
    names = [c.name for c in config.columns]
    context = [c.name for c in config.context_columns or []]
    if (arguments.features, arguments.context) != (len(names), len(context)):
        raise StoreError(
            f"{path} is inconsistent: a flow of {arguments.features} features and "
            f"{arguments.context} context variables, but {len(names)} and {len(context)} columns."
        )
    if len(set(names)) < len(names) or len(set(context)) < len(context):
        raise StoreError(f"{path} is inconsistent: two columns share a name.")


def _read_config(folder: Path) -> ModelConfig:
    path = folder / CONFIG
    data = _read_json(path)
    if not isinstance(data, dict) or data.get("format") != "quarflow model":
        raise StoreError(f"{path} is not the configuration of a quarflow model.")
    if data.get("version") != VERSION:
        raise StoreError(
            f"{path} has format version {data.get('version')!r}, and this quarflow "
            f"({__version__}) reads version {VERSION}; use the quarflow that wrote it "
            f"({data.get('quarflow')!r})."
        )
    try:
        return ModelConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path} is damaged at {where!r}: {first['msg']}.") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(
            f"{path.parent} holds no complete model: {path.name} is missing."
        ) from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged, it is not valid JSON: {error}.") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from None


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError, OSError) as error:
        raise StoreError(f"{path} is damaged: {error}.") from None
    if not all(isinstance(line, dict) for line in lines):
        raise StoreError(f"{path} is damaged: each line should hold a JSON object.")

    return lines


def _read_weights(path: Path, least: int) -> dict[str, Tensor]:
    if not path.is_file():
        raise StoreError(f"{path.parent} holds no complete model: {path.name} is missing.")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            size = sum(torch.Size(file.get_slice(k).get_shape()).numel() for k in names)
            if size < least:
                raise StoreError(
                    f"{path} does not fit the configuration: it holds {size:,} numbers, and the "
                    f"flow needs at least {least:,}."
                )
            weights = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path} is damaged: {error}.") from None
    _check_finite(weights, str(path))

    return weights


def _check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StoreError(f"{where}: {name!r} is not finite (NaN or infinity).")


def _check_fit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    for name in wanted:
        if name not in weights:
            raise StoreError(f"{path} does not fit the configuration: {name!r} is missing.")
    for name, tensor in weights.items():
        if name not in wanted:
            raise StoreError(f"{path} does not fit the configuration: {name!r} is unknown.")
        if tensor.shape != wanted[name].shape:
            raise StoreError(
                f"{path} does not fit the configuration: {name!r} has shape "
                f"{tuple(tensor.shape)}, not {tuple(wanted[name].shape)}."
            )
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise StoreError(f"{path}: {name!r} has the wrong type, {tensor.dtype}.")


def _may_replace(folder: Path) -> bool:
    # A model, or the folder of a run that has only a checkpoint so far, or an empty one.
    return folder.is_dir() and (
        is_model(folder) or {p.name for p in folder.iterdir()} <= {"checkpoint"}
    )


def _swap(new: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(new, folder)
        return
    old = folder.with_name(f"{new.name}.old")
    try:
        os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:  # Ctrl-C between the two included
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)

    return mask


def _dump(data: Mapping[str, Any]) -> str:
    return json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n"
