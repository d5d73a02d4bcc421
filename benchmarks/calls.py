r"""Python files and Python calls that one training step, and one scoring, pass.

    python benchmarks/calls.py [--calls]

Counted are the functions of this library that ``sys.setprofile`` sees: for training all that
happens between one batch and the next, for scoring one ``score_samples`` after the first. Counts
do not depend on how busy a machine is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import quarflow
from quarflow import ImageDensity, QuARDensity
from quarflow.data.images import Images

ROOT = str(Path(quarflow.__file__).parent) + os.sep
BATCH = "Sampler.batch"  # where a step begins


class Passed:
    """Which functions of this library were called, as (file, name), and how often."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """For ``sys.setprofile``."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT):
            self.calls[code.co_filename[len(ROOT) :], code.co_qualname] += 1

    def __str__(self) -> str:
        files = {file for file, _ in self.calls}

        return f"{len(files):3} files {sum(self.calls.values()):5} calls"


def one_call(run: Callable[[], Any]) -> Passed:
    """What a call passes."""
    passed = Passed()
    sys.setprofile(passed.note)
    try:
        run()
    finally:
        sys.setprofile(None)

    return passed


def one_step(fit: Callable[[], Any]) -> Passed:
    """What passes between the last two batches of a short fit."""
    steps: list[Passed] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        starts = event == "call" and code.co_qualname == BATCH
        if starts and code.co_filename.startswith(ROOT):
            steps.append(Passed())
        if steps:
            steps[-1].note(frame, event, argument)

    sys.setprofile(note)
    try:
        fit()
    finally:
        sys.setprofile(None)

    return steps[-2]


def measured() -> dict[str, Passed]:
    """The counts, by what was done."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 3))
    density = QuARDensity(
        transforms=2, hidden_features=(16, 16), batch_size=256, max_epochs=1, random_state=0
    )
    found = {"training step, table": one_step(lambda: density.fit(X))}
    density.score_samples(X)
    found["score_samples"] = one_call(lambda: density.score_samples(X))
    found["sample"] = one_call(lambda: density.sample(100, random_state=0))

    pixels = rng.integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    images = Images(pixels, None, 256, "noise")
    settings = {"max_epochs": 1, "batch_size": 32, "random_state": 0, "device": "cpu"}
    density = ImageDensity(scales=2, transforms=2, hidden_channels=8, **settings)
    found["training step, images"] = one_step(lambda: density.fit(images))

    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", action="store_true", help="list the functions, too")
    listed = parser.parse_args().calls
    for name, passed in measured().items():
        print(f"{name:24} {passed}")
        for (file, function), count in sorted(passed.calls.items()) if listed else ():
            print(f"    {count:4} {file}: {function}")


if __name__ == "__main__":
    main()
