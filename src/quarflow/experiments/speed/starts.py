"""How long it takes until a fresh Python is ready: imports and the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from quarflow.experiments.timing import in_turn

__all__ = ["OUR_STARTS", "start_seconds"]

OUR_STARTS = {
    "python alone": "pass",
    "import torch": "import torch",
    "import quarflow": "import quarflow",
    "from quarflow import QuAR": "from quarflow import QuAR",
    "from quarflow import QuARDensity": "from quarflow import QuARDensity",
    "quarflow --help": (
        "import sys; sys.argv = ['quarflow', '--help']; from quarflow.cli import main; main()"
    ),
}


def start_seconds(code: Mapping[str, str], rounds: int) -> dict[str, list[float]]:
    """Seconds that a fresh process takes for each piece of code, in turn, round after round.

    Raises:
        RuntimeError: if one of them fails.

    Example:
        >>> found = start_seconds({"nothing": "pass"}, rounds=2)
        >>> len(found["nothing"]), found["nothing"][0] > 0
        (2, True)
    """
    works = {name: partial(_run, [sys.executable, "-c", line]) for name, line in code.items()}

    return in_turn(works, rounds, warm_up=0)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{' '.join(command[1:])} failed: {last}")
