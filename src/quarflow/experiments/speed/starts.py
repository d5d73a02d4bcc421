"""How long it takes until a fresh Python is ready: imports and the command line."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

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
    found: dict[str, list[float]] = {name: [] for name in code}
    for _ in range(rounds):
        for name, line in code.items():
            found[name].append(_run([sys.executable, "-c", line]))

    return found


def _run(command: Sequence[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{' '.join(command[1:])} failed: {last}")

    return seconds
