r"""A model on disk: a folder of JSON and safetensors that loads without running any code.

``config.json`` holds what the model is, ``weights.safetensors`` its parameters,
``metrics.json`` how well it did, ``training.jsonl`` one line per evaluation while training, and
``held_out.safetensors``, which older models do not have, scores of rows that were held out.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quarflow._version import __version__
from quarflow.data.columns import Column
from quarflow.files import plain
from quarflow.flows import Flow
from quarflow.store.exchange import exchange, recover
from quarflow.store.read import (
    StoreError,
    check_finite,
    check_size,
    read_json,
    read_log,
    read_metrics,
    read_tensors,
    read_weights,
)
from quarflow.store.schema import (
    FlowConfig,
    ImageConfig,
    Settings,
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
    "StoreError",
    "flow_config",
    "holds_images",
    "is_model",
    "load_flow",
    "load_model",
    "read_model",
    "save_flow",
    "save_model",
]

VERSION = 1  # of the format
CONFIG_BYTES = 128 << 20  # at most: 60,000 columns with all that may be known of them
CONFIG, WEIGHTS, METRICS, LOG, HELD_OUT = (
    "config.json",
    "weights.safetensors",
    "metrics.json",
    "training.jsonl",
    "held_out.safetensors",
)


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
    named: Annotated[bool, Field(strict=True)] = False
    parameters: Settings = Field(default_factory=dict)
    settings: Settings = Field(default_factory=dict)


class Model(Strict):
    """What :func:`load_model` gives: configuration, the flow, metrics and training log.

    And what is kept of rows that were held out, by name; nothing in older models.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    config: ModelConfig
    flow: Flow
    metrics: dict[str, Any]
    log: list[dict[str, Any]]
    held_out: dict[str, Tensor] = Field(default_factory=dict)


def holds_images(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it holds an image model; loading it checks the rest."""
    try:
        config = read_json(Path(folder) / CONFIG, CONFIG_BYTES)
    except StoreError:
        return False

    return isinstance(config, dict) and bool(config.get("images"))


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a finished model (its configuration is there)."""
    return (Path(folder) / CONFIG).is_file()


def save_model(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    flow: Flow,
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    held_out: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model; the folder appears, or is replaced, as a whole.

    Arguments:
        folder: Where.
        config, flow, metrics, log: What the model is; see :class:`Model`.
        held_out: What to keep of rows that were held out, None for nothing.

    Raises:
        StoreError: if the weights are not finite, or the folder holds something else.
        OSError: if it cannot be written, to a full disk say; what was there is kept.
    """
    folder = Path(os.path.realpath(folder))  # a link to a folder stays one
    weights = {k: v.detach().cpu().contiguous() for k, v in flow.state_dict().items()}
    check_finite(weights, "The weights to save")
    recover(folder)
    if folder.exists() and not _may_replace(folder):
        raise StoreError(f"{folder} exists and is not a model; choose another place.")
    folder.parent.mkdir(parents=True, exist_ok=True)

    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        os.chmod(new, 0o777 & ~_umask())
        save_file(weights, new / WEIGHTS)
        os.chmod(new / WEIGHTS, 0o666 & ~_umask())
        if held_out:
            save_file({k: v.contiguous() for k, v in held_out.items()}, new / HELD_OUT)
            os.chmod(new / HELD_OUT, 0o666 & ~_umask())
        (new / METRICS).write_text(_dump(dict(metrics)), encoding="utf-8")
        lines = "".join(json.dumps(plain(line)) + "\n" for line in log)
        (new / LOG).write_text(lines, encoding="utf-8")
        (new / CONFIG).write_text(_dump(config.model_dump(mode="json")), encoding="utf-8")
        exchange(new, folder)
    except SafetensorError as error:  # what it makes of an error of the file system
        raise OSError(None, str(error), str(folder)) from error
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
    recover(folder)
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
    metrics, log = read_metrics(folder / METRICS), read_log(folder / LOG)
    held_out = read_tensors(folder / HELD_OUT)
    try:
        check_size(folder / WEIGHTS, least_numbers(config.flow))
        flow = build_flow(config.flow)
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(f"{folder / CONFIG} describes no valid flow: {error}") from None
    flow.load_state_dict(read_weights(folder / WEIGHTS, flow.state_dict()))
    check_finite(flow.state_dict(), str(folder / WEIGHTS))  # also in the precision of the flow

    return Model(config=config, flow=flow.eval(), metrics=metrics, log=log, held_out=held_out)


def _check_parts(config: ModelConfig, path: Path) -> None:
    """Refuse a flow that does not suit the columns or images it is said to be for."""
    arguments: Any = config.flow.arguments
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
    if config.flow.name != "QuAR":
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
    data = read_json(path, CONFIG_BYTES)
    if not isinstance(data, dict) or data.get("format") != "quarflow model":
        raise StoreError(f"{path} is not the configuration of a quarflow model.")
    if type(data.get("version")) is not int or data["version"] != VERSION:  # True == 1
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


def _may_replace(folder: Path) -> bool:
    # A model, or the folder of a run that has only a checkpoint so far, or an empty one.
    return folder.is_dir() and (
        is_model(folder) or {p.name for p in folder.iterdir()} <= {"checkpoint"}
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)

    return mask


def _dump(data: Mapping[str, Any]) -> str:
    return json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n"
