"""What a run is a run of, as numbers and names: a resumed run must be of the very same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quarflow._version import __version__
from quarflow.seeds import seeded
from quarflow.training.rows import Rows, weights_of
from quarflow.training.settings import TrainingSettings

__all__ = ["column_digests", "differences", "digest", "identity_of"]

# Settings that do not change the result, so that they may change on resuming.
FREE = {"checkpoint_seconds"}
DIGEST = "sha256:"
BLOCK = 8192  # rows hashed at a time
MOST, LONGEST = 4, 80  # differences named, and letters of a value
ABSENT = object()


def digest(*arrays: NDArray[Any]) -> str:
    """Hash arrays by their types, shapes and the bits of every value, in order.

    Example:
        >>> a = np.array([[1.0, 2.0], [3.0, 4.0]])
        >>> digest(a) == digest(a.copy()), digest(a) == digest(a.T)
        (True, False)
    """
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return DIGEST + found.hexdigest()[:32]


def column_digests(values: NDArray[Any], names: Sequence[str]) -> dict[str, str]:
    """Hash each column of values (n, D) by the bits of its values, in the order of the rows.

    Raises:
        ValueError: If there is not one name for each column, each another.

    Example:
        >>> x = np.array([[1, 2], [3, 4]])
        >>> column_digests(x, "uv")["u"] == column_digests(x[:, ::-1], "vu")["u"]
        True
        >>> column_digests(x, "uv")["u"] == column_digests(x[::-1], "uv")["u"]
        False
    """
    if len(set(names)) < len(names) or len(names) != values.shape[1]:
        raise ValueError(f"{values.shape[1]} columns need as many different names, not {names}.")
    kind = f"{values.dtype.str}{values.shape[:1]}".encode()
    hashes = [hashlib.sha256(kind) for _ in names]
    for start in range(0, len(values), BLOCK):
        block = np.ascontiguousarray(values[start : start + BLOCK].T)
        for found, column in zip(hashes, block, strict=True):
            found.update(column.data)
    return {
        name: DIGEST + found.hexdigest()[:32] for name, found in zip(names, hashes, strict=True)
    }


def identity_of(
    flow: nn.Module,
    rows: Mapping[str, Rows],
    settings: TrainingSettings,
    given: Mapping[str, Any],
    place: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that decides what a run is and what it comes to, as JSON knows it.

    Arguments:
        flow: Its class, and its ``arguments`` if it has them, are looked at.
        rows: By the words to tell them by.
        settings: All but those that change nothing.
        given: What the caller knows to matter besides: preprocessing, say.
        place: Where it runs.
    """
    found = {
        "flow": {"flow": type(flow).__name__, **getattr(flow, "arguments", {})},
        "given": dict(given),
        "settings": {k: v for k, v in asdict(settings).items() if k not in FREE},
        "place": {"quarflow": __version__, **place},
        "rows": {name: _of_rows(some) for name, some in rows.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=_plain))
    return plain


def _of_rows(rows: Rows) -> dict[str, Any]:
    """How many, and digests: by the rows' own ``identity``, or of all batches with fixed noise."""
    own = getattr(rows, "identity", None)
    if own is not None:
        return {"count": len(rows), **own()}
    home = torch.device(getattr(rows, "device", "cpu"))
    parts: tuple[list[str], list[str]] = ([], [])
    for number, start in enumerate(range(0, len(rows), BLOCK)):
        index = torch.arange(start, min(start + BLOCK, len(rows)), device=home)
        batch = rows.batch(index, seeded(0, "identity", number, device=home))
        for part, tensor in zip(parts, batch, strict=True):
            if tensor is not None:
                part.append(digest(tensor.cpu().numpy()))
    values, context = (digest(np.array(part)) if part else None for part in parts)
    found = {"count": len(rows), "values": values, "context": context}
    weights = weights_of(rows)
    return found if weights is None else found | {"weights": digest(weights.cpu().numpy())}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return repr(value)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs, by name and the plainest first; None if nothing does.

    Example:
        >>> differences({"flow": {"sigma": 0.97}}, {"flow": {"sigma": 0.1}})
        'sigma was 0.97 and is 0.1'
        >>> differences({"rows": {"the rows": {"count": 1}}}, {"rows": {"the rows": {"count": 2}}})
        'count of the rows was 1 and is 2'
    """
    found = [
        one
        for group in {**then, **now}
        for one in _differences(then.get(group, {}), now.get(group, {}), ())
    ]
    lines = [line for _, line in sorted(found, key=lambda one: one[0])]
    more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return "; ".join(lines[:MOST] + more) or None


def _differences(
    then: Mapping[str, Any], now: Mapping[str, Any], where: tuple[str, ...]
) -> Iterator[tuple[int, str]]:
    """How deep each difference lies, and a sentence."""
    for name in {**then, **now}:
        a, b = then.get(name, ABSENT), now.get(name, ABSENT)
        called = " of ".join((name, *where))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, (name, *where))
        elif a is ABSENT:
            yield len(where), f"{called} is new"
        elif b is ABSENT:
            yield len(where), f"{called} is gone"
        elif a != b:
            hashed = str(a).startswith(DIGEST) and str(b).startswith(DIGEST)
            how = "has other values" if hashed else f"was {_short(a)} and is {_short(b)}"
            yield len(where), f"{called} {how}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
