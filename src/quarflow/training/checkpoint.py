"""A checkpoint: one safetensors file, tensors and numbers together, replaced in one move."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quarflow.training.settings import TrainingSettings
from quarflow.training.state import Counters

__all__ = ["CheckpointError", "has_checkpoint", "read", "remove_checkpoint", "write"]

FILE = "training.safetensors"
PARTIAL = "training.safetensors.partial"
VERSION = 1
KEY = "quarflow"
# Settings that do not change the result, so that they may change on resuming.
FREE = {"checkpoint_seconds"}
AGAIN = "or start again without resume"


class CheckpointError(ValueError):
    """A checkpoint that cannot be taken up; the message says why and what to do."""


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a complete checkpoint lies in the folder."""
    return (Path(folder) / FILE).is_file()


def remove_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Delete the checkpoint and what an interrupted write left; the folder too if then empty."""
    folder = Path(folder)
    for name in (FILE, PARTIAL):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    counters: Counters,
    settings: TrainingSettings,
    data: Mapping[str, list[float]],
) -> None:
    """Write so that at any moment either the old or the new checkpoint is there, whole.

    Numbers travel as JSON in the safetensors header: one file, one rename, never a pickle.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "version": VERSION,
        "settings": asdict(settings),
        "data": dict(data),
        "counters": asdict(counters),
    }
    partial = folder / PARTIAL
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        partial,
        metadata={KEY: json.dumps(head)},
    )
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, folder / FILE)
    if os.name == "posix":  # the rename itself has to reach the disk too
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(
    folder: Path,
    like: Mapping[str, Tensor],
    settings: TrainingSettings,
    data: Mapping[str, list[float]],
) -> tuple[dict[str, Tensor], Counters]:
    """Read and check a checkpoint.

    Arguments:
        like: Tensors that must be there, with their shapes and types. `best/...` (with the
            shapes of `ema/...`) and `good/...` (with those of all the rest) may be there too.

    Raises:
        CheckpointError: If it is damaged, or of other settings, data, or another flow.
    """
    from pydantic import TypeAdapter, ValidationError
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    damaged = f"The checkpoint {path} is damaged: delete it, {AGAIN}."
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {})[KEY])
            version = head["version"]
            if version != VERSION:
                raise CheckpointError(
                    f"The checkpoint {path} has version {version!r}, this quarflow reads version "
                    f"{VERSION}: resume with the quarflow that wrote it, {AGAIN}."
                )
            # from JSON text: there strict types still let an object stand for a dataclass
            text = json.dumps(head["counters"])
            counters = TypeAdapter(Counters).validate_json(text, strict=True)
            _same_settings(path, head["settings"], settings)
            _same_data(path, head["data"], data)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except CheckpointError:
        raise
    except (
        SafetensorError,
        ValidationError,
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise CheckpointError(damaged) from error
    _same_tensors(path, tensors, like)
    if (
        counters.step < 0
        or counters.cuts < 0
        or (counters.best is not None and "best" not in {name.split("/")[0] for name in tensors})
    ):
        raise CheckpointError(damaged)
    return tensors, counters


def _same_settings(path: Path, found: dict[str, Any], wanted: TrainingSettings) -> None:
    mine = json.loads(json.dumps(asdict(wanted)))
    # what an older checkpoint does not know of was as it is by default
    found = {**json.loads(json.dumps(asdict(TrainingSettings()))), **found}
    names = [n for n in {**mine, **found} if n not in FREE and mine.get(n) != found.get(n)]
    if names:
        told = ", ".join(f"{n} was {found.get(n)!r} and is {mine.get(n)!r}" for n in names)
        raise CheckpointError(
            f"The checkpoint {path} was made with other settings: {told}. "
            f"Resume with the same settings, {AGAIN}."
        )


def _same_data(path: Path, found: dict[str, Any], wanted: Mapping[str, list[float]]) -> None:
    for name, numbers in wanted.items():
        other = found[name]
        if len(other) == len(numbers) and all(
            math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)
            for a, b in zip(other, numbers, strict=True)
        ):
            continue
        rows = f" ({other[0]:.0f} rows then, {numbers[0]:.0f} now)"
        raise CheckpointError(
            f"The checkpoint {path} was made with other {name} data"
            f"{rows if other[0] != numbers[0] else ''}. Resume with the same data, {AGAIN}."
        )


def _same_tensors(path: Path, found: dict[str, Tensor], like: Mapping[str, Tensor]) -> None:
    expected = dict(like)
    if any(name.startswith("best/") for name in found):
        expected |= {"best/" + n[4:]: t for n, t in like.items() if n.startswith("ema/")}
    if any(name.startswith("good/") for name in found):
        expected |= {"good/" + n: t for n, t in like.items()}
    for name in {**expected, **found}:
        told = None
        if name not in found:
            told = f"has no {name!r}"
        elif name not in expected:
            told = f"has {name!r}, which this flow has not"
        elif found[name].shape != expected[name].shape:
            now, then = tuple(expected[name].shape), tuple(found[name].shape)
            told = f"has {name!r} of shape {then}, this flow of {now}"
        elif found[name].dtype != expected[name].dtype:
            told = f"has {name!r} as {found[name].dtype}, this flow as {expected[name].dtype}"
        if told:
            raise CheckpointError(
                f"The checkpoint {path} is of another flow: it {told}. "
                f"Resume with the same flow, {AGAIN}."
            )
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"The checkpoint {path} is damaged, {name!r} is not finite: delete it, {AGAIN}."
            )
