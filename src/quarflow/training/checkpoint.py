"""A checkpoint: one safetensors file, tensors and numbers together, replaced in one move."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quarflow.training.identity import differences
from quarflow.training.lock import LOCK
from quarflow.training.state import Counters

__all__ = ["CheckpointError", "clear", "has_checkpoint", "read", "remove_checkpoint", "write"]

FILE = "training.safetensors"
PARTIAL = "training.safetensors.partial"
VERSION = 2
KEY = "quarflow"
AGAIN = "or start again without resume"


class CheckpointError(ValueError):
    """A checkpoint that cannot be taken up; the message says why and what to do."""


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether a complete checkpoint lies in the folder."""
    return (Path(folder) / FILE).is_file()


def clear(folder: Path) -> None:
    """Delete the checkpoint and what an interrupted write left."""
    for name in (FILE, PARTIAL):
        (folder / name).unlink(missing_ok=True)


def remove_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Delete all that runs left in the folder; the folder too if then empty."""
    folder = Path(folder)
    clear(folder)
    (folder / LOCK).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write(
    folder: Path, tensors: Mapping[str, Tensor], counters: Counters, identity: Mapping[str, Any]
) -> None:
    """Write so that at any moment either the old or the new checkpoint is there, whole.

    Numbers travel as JSON in the safetensors header: one file, one rename, never a pickle.

    Arguments:
        folder: Made if it is not there.
        tensors, counters: The state of the run.
        identity: What it is a checkpoint of, see ``identity_of``.

    Raises:
        OSError: If it cannot be written; the old one is kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = folder / PARTIAL
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    head = json.dumps({"identity": dict(identity), "counters": asdict(counters)})
    metadata = {"version": VERSION, "head": head, "digest": _digest(head, held)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(held, partial, metadata={KEY: json.dumps(metadata)})
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, folder / FILE)
    except SafetensorError as error:  # what it makes of an error of the file system
        _discard(partial)
        raise OSError(str(error)) from error
    except OSError:
        _discard(partial)
        raise
    if os.name == "posix":  # the rename itself has to reach the disk too
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # what is in the way stays; the error that led here tells more
        return


def _digest(head: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash numbers and tensors together, to notice a single flipped bit."""
    found = hashlib.sha256(head.encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read(
    folder: Path, like: Mapping[str, Tensor], identity: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Counters]:
    """Read and check a checkpoint.

    Arguments:
        folder: Where it lies.
        like: Tensors that must be there, with their shapes and types. ``best/...`` (with the
            shapes of ``ema/...``) and ``good/...`` (with those of all the rest) may be there too.
        identity: What it must be a checkpoint of, see ``identity_of``.

    Raises:
        CheckpointError: If it is damaged, or of other settings, data, or another flow.
    """
    from pydantic import TypeAdapter, ValidationError
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    damaged = f"The checkpoint {path} is damaged: delete it, {AGAIN}."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[KEY])
            version = metadata["version"]
            if version != VERSION or isinstance(version, bool):
                raise CheckpointError(
                    f"The checkpoint {path} has version {version!r}, this quarflow reads version "
                    f"{VERSION}: resume with the quarflow that wrote it, {AGAIN}."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["digest"] != _digest(metadata["head"], tensors):
            raise CheckpointError(damaged)
        head = json.loads(metadata["head"])
        # from JSON text: there strict types still let an object stand for a dataclass
        text = json.dumps(head["counters"])
        counters = TypeAdapter(Counters).validate_json(text, strict=True)
        differing = differences(head["identity"], identity)
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
    if differing:
        raise CheckpointError(
            f"The checkpoint {path} is of another fit: {differing}. "
            f"Resume with the same arguments and the same data, {AGAIN}."
        )
    _same_tensors(path, tensors, like)
    if (
        counters.step < 0
        or counters.cuts < 0
        or (counters.best is not None and "best" not in {name.split("/")[0] for name in tensors})
    ):
        raise CheckpointError(damaged)
    return tensors, counters


def _same_tensors(path: Path, found: dict[str, Tensor], like: Mapping[str, Tensor]) -> None:
    expected = dict(like)
    if any(name.startswith("best/") for name in found):
        expected |= {"best/" + n[4:]: t for n, t in like.items() if n.startswith("ema/")}
    if any(name.startswith("good/") for name in found):
        expected |= {"good/" + n: t for n, t in like.items()}
    for name in {**expected, **found}:
        trouble = _mismatch(name, found.get(name), expected.get(name))
        if trouble:
            raise CheckpointError(
                f"The checkpoint {path} is of another flow: it {trouble}. "
                f"Resume with the same flow, {AGAIN}."
            )
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"The checkpoint {path} is damaged, {name!r} is not finite: delete it, {AGAIN}."
            )


def _mismatch(name: str, found: Tensor | None, expected: Tensor | None) -> str | None:
    """What the checkpoint "it" has that the flow has not, or the other way round."""
    if found is None:
        return f"has no {name!r}"
    if expected is None:
        return f"has {name!r}, which this flow has not"
    if found.shape != expected.shape:
        now, then = tuple(expected.shape), tuple(found.shape)
        return f"has {name!r} of shape {then}, this flow of {now}"
    if found.dtype != expected.dtype:
        return f"has {name!r} as {found.dtype}, this flow as {expected.dtype}"
    return None
