r"""Reading the files of a model folder, which may have been damaged or made to do harm.

Each file must be a plain one, of a size that such a file can have, and hold values of the right
kind; what does not is refused by a sentence that names the file and the entry.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = [
    "StoreError",
    "check_finite",
    "check_size",
    "read_json",
    "read_log",
    "read_metrics",
    "read_weights",
]

METRICS_BYTES, LOG_BYTES = 16 << 20, 64 << 20  # thousands of times what a fit writes
TENSORS_BYTES = 16 << 20
FLOATS = {"F16", "BF16", "F32", "F64"}
WHOLE = {"BOOL", "U8", "I8", "I16", "I32", "I64"}

Count = Annotated[int, Field(ge=0, le=2**63, strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class StoreError(ValueError):
    """A folder does not hold a model that can be loaded; the message says why."""


class _Metrics(BaseModel):
    """What is known of ``metrics.json``; a flow saved by itself may hold more, or none of it."""

    model_config = ConfigDict(extra="allow")

    rows: Count | None = None
    train_rows: Count | None = None
    valid_rows: Count | None = None
    images: Count | None = None
    columns: Count | None = None
    context: Count | None = None
    parameters: Count | dict[str, Count] | None = None
    steps: Count | None = None
    epochs: Number | None = None
    seconds: Number | None = None
    valid_nats: Number | None = None
    valid_bits_per_dim: Number | None = None
    stopped: Annotated[str, Field(max_length=10_000)] | None = None
    interrupted: Annotated[bool, Field(strict=True)] | None = None
    recoveries: list[str] | Count | None = None


class _Line(BaseModel):
    """What is known of a line of ``training.jsonl``."""

    model_config = ConfigDict(extra="allow")

    epoch: Number | None = None
    step: Count | None = None
    seconds: Number | None = None
    train_nats: Number | None = None
    valid_nats: Number | None = None
    learning_rate: Number | None = None


def read_text(path: Path, most: int) -> str:
    """The text of a plain file of at most so many bytes.

    Raises:
        StoreError: if there is none, or it is a pipe, a device, a folder, too large, or no text.
    """
    try:
        # not blocking: opening a pipe would wait for a writer
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            _check_plain(path, status, most)
            data = file.read(status.st_size)
    except FileNotFoundError:
        raise StoreError(
            f"{path.parent} holds no complete model: {path.name} is missing."
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise StoreError(f"{path} is damaged, it is not valid JSON: it is no UTF-8.") from None


def _check_plain(path: Path, status: os.stat_result, most: int | None = None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is not a plain file, as those of a model are.")
    if most is not None and status.st_size > most:
        raise StoreError(
            f"{path} is damaged: it has {status.st_size:,} bytes, and {most:,} are the most that "
            "such a file can have."
        )


def read_json(path: Path, most: int) -> Any:
    """What a JSON file of at most so many bytes holds.

    Raises:
        StoreError: see :func:`read_text`; or if it is no JSON.
    """
    return _parse(read_text(path, most), path)


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text, parse_constant=lambda _: None)  # NaN: no JSON, but often written
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged, it is not valid JSON: {error}.") from None


def read_metrics(path: Path) -> dict[str, Any]:
    """The figures of a model, those known being of the right kind.

    Raises:
        StoreError: naming the entry that is not.
    """
    metrics = read_json(path, METRICS_BYTES)
    if not isinstance(metrics, dict):
        raise StoreError(f"{path} is damaged: it should hold a JSON object.")
    _check(_Metrics, metrics, str(path))

    return metrics


def read_log(path: Path) -> list[dict[str, Any]]:
    """One dict for each evaluation while training; none if there is no such file.

    Raises:
        StoreError: naming the line that is damaged.
    """
    if not os.path.lexists(path):
        return []
    lines = []
    for number, text in enumerate(read_text(path, LOG_BYTES).splitlines(), start=1):
        line = _parse(text, path)
        if not isinstance(line, dict):
            raise StoreError(f"{path} is damaged: line {number} should hold a JSON object.")
        _check(_Line, line, f"{path}, line {number},")
        lines.append(line)

    return lines


def _check(model: type[BaseModel], data: Mapping[str, Any], where: str) -> None:
    try:
        model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{where} is damaged at {entry!r}: {first['msg']}.") from None


def check_size(path: Path, least: int) -> None:
    """Refuse weights of fewer numbers than the flow needs, or far more, before it is built.

    Raises:
        StoreError: if there are too few or many, or the file is missing or damaged.
    """
    # A number takes 8 bytes at most, and `least` is not far below what the flow holds.
    with _opened(path, 64 * least + (16 << 20)) as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    size = sum(torch.Size(shape).numel() for shape in shapes)
    if size < least:
        raise StoreError(
            f"{path} does not fit the configuration: it holds {size:,} numbers, and the "
            f"flow needs at least {least:,}."
        )


def read_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, which must be those wanted by name, shape and kind.

    Names, shapes and kinds are compared before anything is read.

    Raises:
        StoreError: naming the tensor that does not fit.
    """
    with _opened(path) as file:
        names = list(file.keys())
        for name in wanted:
            if name not in names:
                raise StoreError(f"{path} does not fit the configuration: {name!r} is missing.")
        for name in names:
            part = file.get_slice(name)
            _check_fit(name, part.get_shape(), part.get_dtype(), wanted.get(name), path)
        weights = {name: file.get_tensor(name) for name in names}
    check_finite(weights, str(path))

    return weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The few tensors of a small file, by name; none if there is no such file.

    Raises:
        StoreError: if it is too large, damaged, or holds what is not finite.
    """
    if not os.path.lexists(path):
        return {}
    with _opened(path, TENSORS_BYTES) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_finite(tensors, str(path))

    return tensors


class _opened:
    """A safetensors file for a `with` block; what goes wrong in it is a StoreError."""

    def __init__(self, path: Path, most: int | None = None) -> None:
        self.path, self.most = path, most

    def __enter__(self) -> Any:
        try:
            _check_plain(self.path, os.stat(self.path), self.most)
            self._file = safe_open(self.path, framework="pt")
        except FileNotFoundError:
            raise StoreError(
                f"{self.path.parent} holds no complete model: {self.path.name} is missing."
            ) from None
        except (SafetensorError, OSError) as error:
            raise StoreError(f"{self.path} is damaged: {error}.") from None

        return self._file.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._file.__exit__(kind, error, trace)
        if isinstance(error, SafetensorError | OSError):
            raise StoreError(f"{self.path} is damaged: {error}.") from None


def _check_fit(name: str, shape: list[int], kind: str, wanted: Tensor | None, path: Path) -> None:
    if wanted is None:
        raise StoreError(f"{path} does not fit the configuration: {name!r} is unknown.")
    if tuple(shape) != tuple(wanted.shape):
        raise StoreError(
            f"{path} does not fit the configuration: {name!r} has shape {tuple(shape)}, not "
            f"{tuple(wanted.shape)}."
        )
    if kind not in (FLOATS if wanted.is_floating_point() else WHOLE):
        raise StoreError(f"{path}: {name!r} has the wrong type, {kind}.")


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse NaN and infinity, by the name of the tensor.

    Raises:
        StoreError: naming the first that holds one.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StoreError(f"{where}: {name!r} is not finite (NaN or infinity).")
