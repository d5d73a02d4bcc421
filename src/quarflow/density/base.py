r"""What densities of all kinds of data answer to: tables, images, and whatever comes next."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from numpy.typing import NDArray

from quarflow.data.pipeline import Behind
from quarflow.data.table_writer import TableWriter
from quarflow.report.words import duration

__all__ = [
    "RUN",
    "Density",
    "Place",
    "Samples",
    "Say",
    "Scores",
    "Section",
    "certified",
    "quiet",
    "trained",
]

Place = str | os.PathLike[str]
Say = Callable[[str], object]
RUN = ("device", "verbose", "checkpoint", "resume")  # arguments that are not of the model


@dataclass(frozen=True)
class Section:
    """Some facts about a model, under a title.

    Attributes:
        title: Of the section.
        rows: A name and what is known by it, or the cells of a table.
        headings: Of the table; empty for names and facts.
    """

    title: str
    rows: Sequence[tuple[str, ...]]
    headings: tuple[str, ...] = ()


@runtime_checkable
class Density(Protocol):
    """A density that is fitted to data of one kind, and used, shown and saved.

    Data are given as arrays and the like, or as files by ``read`` and ``score_file``, which takes
    tables larger than memory. What a kind of data has no use for is no argument of its methods,
    so a caller can tell from their signatures.

    Attributes:
        of: What it is a density of, in the plural.
        draws_to: Endings of the files that samples can be written to.
        context_names: Names of what it is conditioned on, empty for nothing.
        settings_: Every choice that was made.
        metrics_: How well it did.
        history_: One dict per evaluation while training.
    """

    of: ClassVar[str]
    draws_to: ClassVar[tuple[str, ...]]
    settings_: dict[str, Any]
    metrics_: dict[str, Any]
    history_: list[dict[str, Any]]

    @property
    def context_names(self) -> list[str]:
        """Names of what it is conditioned on."""

    @classmethod
    def setting_names(cls) -> list[str]:
        """Arguments that it is made with, but for those of a run."""

    @classmethod
    def former_setting_names(cls) -> set[str]:
        """What settings were called in the release before; taken with a warning."""

    def fit(self, X: Any) -> Self:
        """Fit it to data."""

    def score_samples(self, X: Any) -> NDArray[Any]:
        """Log-density of each, in nats."""

    def score(self, X: Any) -> float:
        """Sum of the log-densities."""

    def transform(self, X: Any) -> NDArray[Any]:
        """The noise that data are mapped to."""

    def sample(self, n_samples: int = 1, random_state: Any = None) -> NDArray[Any]:
        """New data."""

    def save(self, path: Place) -> None:
        """Write it as a folder."""

    def info(self) -> list[Section]:
        """What is known about it."""

    def summary(self) -> list[str]:
        """Sentences on what it was fitted to, and how well."""

    def report(
        self,
        path: Place,
        X: Any = None,
        *,
        title: str | None = None,
        seed: int = 0,
        say: Say = ...,
    ) -> Path:
        """Write a page that shows how well it fits."""

    def read(self, path: Place, *, say: Say = ...) -> dict[str, Any]:
        """What a file or folder holds, as arguments of `fit`; `say` is told about oddities."""

    def score_file(self, path: Place) -> Scores:
        """Score what a file or folder holds, piece by piece."""

    def draw(self, n_samples: int = ..., seed: int = 0) -> Samples:
        """New data that know how to write themselves."""


class Scores:
    """Named columns of scores, piece by piece, in the order of what is scored.

    Arguments:
        score: Gives the pieces, and puts sentences about all of them on a list at the end.

    Attributes:
        told: Those sentences.
    """

    def __init__(
        self, score: Callable[[list[str]], Generator[Mapping[str, Any], None, None]]
    ) -> None:
        self.told: list[str] = []
        self._pieces = score(self.told)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self._pieces

    def write(self, path: Place) -> None:
        """Write all as a table; the file appears whole or not at all."""
        # writing runs beside the scoring; a failure anywhere leaves no file
        with (
            TableWriter(path) as writer,
            Behind(writer.write) as out,
            closing(self._pieces) as pieces,
        ):
            for columns in pieces:
                out.put(columns)


class Samples(Protocol):
    """New data, which know how to write themselves."""

    def write(self, path: Place) -> str:
        """Write them by the ending of the name; tells in a sentence what that took."""


def quiet(told: str) -> None:
    """Say nothing."""


def trained(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How long it was trained, and why no longer."""
    steps, seconds = metrics.get("steps") or 0, metrics.get("seconds") or 0.0

    return [
        ("training", f"{steps:,} steps, {duration(seconds)}"),
        ("stopped", str(metrics.get("stopped") or "")),
    ]


def certified(flow: Any) -> Section:
    """The certified bounds of a flow's steps."""
    rows = [(str(s.step + 1), f"{s.sigma:.3f}", f"{s.bound:.4f}") for s in flow.certificate()]

    return Section("Certificate", rows, ("step", "sigma", "certified bound on abs(d)"))
