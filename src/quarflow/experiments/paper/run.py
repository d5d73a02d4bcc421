"""The frame of every recipe: its folder, its parts, its figures, its numbers and its table.

A recipe trains some models. Each is a *part* with a name: what it finds is kept in
``DIR/parts/NAME.json`` and not computed again when the same command is run again; what it needs to
go on after it was cut off lies in ``DIR/parts/NAME/``.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from quarflow import __version__
from quarflow.experiments.page import print_table
from quarflow.files import plain, whole, write_json

__all__ = [
    "FULL_STEPS",
    "RecipeError",
    "Run",
    "mean_and_error",
    "one_of",
    "read_json",
    "stop_if",
    "with_error",
]

FULL_STEPS = 20_000  # appendix A.1: "the models were trained for 20,000 updates"
START = "run.json"  # what marks a folder as a recipe's: its name and settings
WIDTH = 160  # of tables, where there is no terminal

Numbers = dict[str, Any]


class RecipeError(ValueError):
    """A recipe that cannot be carried out as asked; the message says what to do."""


class Run:
    r"""One recipe at work in one folder.

    Arguments:
        name: Of the recipe; it names the files.
        folder: New, empty, or that of an earlier run of this recipe with the same settings.
        settings: Everything that the numbers depend on, as JSON knows it.
        free: Settings that may differ from those of the earlier run, since they only say which
            parts there are (such as the number of seeds).
        quiet: Print nothing.

    Raises:
        RecipeError: if the folder holds something else, or a run with other settings.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> run = Run("figure0", folder, {"steps": 10}, quiet=True)
        >>> run.part("model", lambda folder: {"nats": 2.5})["nats"]
        2.5
        >>> run.part("model", lambda folder: {"nats": 9.9})["nats"]  # is kept
        2.5
        >>> run.finish({"nats": 2.5}).name
        'figure0.json'
    """

    def __init__(
        self,
        name: str,
        folder: str | Path,
        settings: Mapping[str, Any],
        free: Sequence[str] = (),
        quiet: bool = False,
    ) -> None:
        from rich.console import Console

        self.name, self.folder, self.quiet = name, Path(folder), quiet
        self.settings: Numbers = plain(settings)
        self.tables: list[Numbers] = []
        self.out = Console(quiet=quiet, highlight=False)
        if not self.out.is_terminal:
            self.out.width = WIDTH
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._open(free)

    def _open(self, free: Sequence[str]) -> None:
        """Take a new folder, or go on in one of this recipe and these settings."""
        start = self.folder / START
        if self.folder.exists() and not self.folder.is_dir():
            raise RecipeError(f"{self.folder} is a file; give the results a folder of their own.")
        if start.is_file():
            found = read_json(start)
            recipe, then, now = found.get("recipe"), found.get("settings", {}), self.settings
            changed = [f"recipe was {recipe!r}"] if recipe != self.name else []
            changed += [
                f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
                for key in {**then, **now}
                if key not in free and then.get(key) != now.get(key)
            ]
            if changed:
                raise RecipeError(
                    f"{self.folder} holds a run with other settings ({', '.join(changed)}). Give "
                    "another folder with -o, or the same settings to go on with that run."
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise RecipeError(
                f"{self.folder} is not empty and no earlier run of quarflow paper {self.name} "
                "wrote it; choose another folder with -o."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(start, {"recipe": self.name, "settings": self.settings})

    def part(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> Numbers:
        """What a part found: kept from an earlier run, or made now.

        Arguments:
            name: Of the part, fit for a file name.
            make: Called with the part's own folder, in which it may keep what it needs to go on
                (a training checkpoint) and what is wanted later (weights). Returns numbers as
                JSON knows them. If it was stopped before its end it must raise
                (KeyboardInterrupt for a signal), for what it returns counts as finished.
        """
        path, own = self.folder / "parts" / f"{name}.json", self.keep(name)
        if path.is_file():
            self.say(f"{name}: kept from an earlier run")
        else:
            own.mkdir(parents=True, exist_ok=True)
            begun = time.perf_counter()
            write_json(path, make(own))
            if own.is_dir() and not any(own.iterdir()):
                own.rmdir()
            self.say(f"{name}: done in {time.perf_counter() - begun:.0f} s")

        return read_json(path)

    def keep(self, name: str) -> Path:
        """The folder of a part."""
        return self.folder / "parts" / name

    def figure(self, figure: Any, name: str | None = None) -> Path:
        """Save a matplotlib figure as PNG and PDF; returns the PNG."""
        from quarflow.report.style import house_style, save_png

        path = self.folder / f"{name or self.name}.png"
        save_png(figure, path, dpi=160)
        with house_style(), whole(path.with_suffix(".pdf")) as unfinished:
            figure.savefig(unfinished, format="pdf", metadata={"CreationDate": None})
        self.say(f"wrote {path} and {path.with_suffix('.pdf').name}")

        return path

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table, and note it for the JSON; names in the first column, then numbers.

        Arguments:
            title: Above the table.
            columns: Titles.
            rows: Cells, row by row.
        """
        self.tables.append({"title": title, "columns": columns, "rows": rows})
        print_table(self.out, title, columns, rows)

    def finish(self, numbers: Mapping[str, Any]) -> Path:
        """Write the numbers, with all that is needed to make them again; returns the JSON."""
        path = self.folder / f"{self.name}.json"
        called = shlex.join(["quarflow", *sys.argv[1:]]) if _is_command() else None
        facts = {
            "recipe": self.name,
            "command": called,
            "settings": self.settings,
            "numbers": numbers,
            "tables": self.tables,
            "versions": {
                "quarflow": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        }
        write_json(path, facts)
        self.say(f"wrote {path}")

        return path

    def say(self, line: str) -> None:
        """Print a line on standard error."""
        self.console.print(line, markup=False)


def _is_command() -> bool:
    return Path(sys.argv[0]).stem in ("quarflow", "__main__")


def stop_if(interrupted: bool, reason: str) -> None:
    """End the recipe where a signal ended a training, the way that signal does.

    Raises:
        KeyboardInterrupt: for SIGINT.
        SystemExit: with 143, for SIGTERM.
    """
    if interrupted and "SIGTERM" in reason:
        raise SystemExit(128 + signal.SIGTERM)
    if interrupted:
        raise KeyboardInterrupt


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error; None for the error of a single value.

    Example:
        >>> mean_and_error([1.0, 3.0])
        (2.0, 1.0)
        >>> mean_and_error([1.0])
        (1.0, None)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None

    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def with_error(value: float, error: float | None, digits: int, sign: str = "") -> str:
    """A number and its standard error, as tables show them.

    Arguments:
        value: The number.
        error: Its standard error, None or 0 for none.
        digits: After the point.
        sign: ``"+"`` shows the sign of a positive number too.

    Example:
        >>> with_error(1.25, 0.031, 2), with_error(1.25, None, 1, sign="+")
        ('1.25 ± 0.03', '+1.2')
    """
    return f"{value:{sign}.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")


def one_of(name: str, values: Iterable[object], choices: Iterable[object]) -> None:
    """Refuse what is no choice.

    Arguments:
        name: Of the argument.
        values: What was asked for.
        choices: What there is.

    Raises:
        RecipeError: naming it.
    """
    known = list(choices)
    for value in values:
        if value not in known:
            wanted = ", ".join(map(str, known))
            raise RecipeError(f"{name} must be one of {wanted}, not {value!r}.")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RecipeError: if it is none, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RecipeError(
            f"{path} is damaged or cannot be read; delete it and run the command again."
        ) from None
