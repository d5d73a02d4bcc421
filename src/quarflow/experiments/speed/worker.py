"""The process of one library: takes a command at a time, as lines of JSON, and answers.

    python -m quarflow.experiments.speed.worker MODULE THREADS DEVICE FOLDER GIBIBYTES

MODULE has the contestants in a tuple CONTESTANTS or OURS. What libraries print goes to standard
error, so that the answers stay alone on standard output.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from quarflow.experiments.memory import free_unused, limit_memory
from quarflow.experiments.speed.contestants import default_width
from quarflow.experiments.speed.limit import matrix_rate
from quarflow.experiments.speed.matching import existing_weights, match_width
from quarflow.experiments.speed.subject import Subject

__all__ = ["Worker", "main"]


class Worker:
    """Carries out commands.

    Arguments:
        module: Where the contestants are.
        device: "cpu" or "cuda".
        folder: For fitted weights.
    """

    def __init__(self, module: str, device: str, folder: Path) -> None:
        found = import_module(module)
        contestants = getattr(found, "CONTESTANTS", None) or found.OURS
        self.contestants = {c.name: c for c in contestants}
        self.device, self.folder = device, folder
        self.subjects: dict[str, Subject] = {}

    def do(self, command: dict[str, Any]) -> Any:
        """The answer to one command: its method's name is in ``do``, the rest are arguments."""
        arguments = dict(command)
        return getattr(self, f"do_{arguments.pop('do')}")(**arguments)

    def do_hello(self) -> dict[str, str]:
        """Versions."""
        told = {"torch": str(torch.__version__)}
        for library in {c.library for c in self.contestants.values()}:
            try:
                told[library] = version(library)
            except PackageNotFoundError:
                continue

        return told

    def do_match(self, model: str, features: int, target: int | None) -> dict[str, int]:
        """Width and number of weights; without a target, of the width that models have anyway."""
        contestant = self.contestants[model]
        if target is None or contestant.width is not None:
            width = (contestant.width or default_width)(features)
            return {
                "width": width,
                "weights": existing_weights(contestant.build(features, width)),
            }
        width, weights = match_width(lambda w: contestant.build(features, w), target)

        return {"width": width, "weights": weights}

    def do_fit(
        self, model: str, features: int, width: int, steps: int, seconds: float
    ) -> dict[str, Any]:
        """Make the model, and fit it unless that was done before."""
        subject = Subject(self.contestants[model], features, width, self.device, self.folder)
        told = subject.fit(steps, seconds)
        self.subjects[model] = subject

        return told

    def do_time(self, model: str, quantity: str, batch: int, calls: int) -> float:
        """Seconds per call."""
        return self.subjects[model].time(quantity, batch, calls)

    def do_peak(self, model: str, batch: int) -> int | None:
        """Bytes."""
        return self.subjects[model].peak(batch)

    def do_rate(self, seconds: float) -> float:
        """Operations per second of a matrix product."""
        return matrix_rate(seconds, self.device)

    def do_forget(self) -> None:
        """Let go of all models."""
        for subject in self.subjects.values():
            subject.close()
        self.subjects.clear()
        free_unused()


def main(arguments: list[str]) -> None:
    """Answer until there are no more commands."""
    module, threads, device, folder, gibibytes = arguments
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    torch.set_num_threads(int(threads))
    if device == "cpu":
        limit_memory(float(gibibytes))
    worker = Worker(module, device, Path(folder))
    for line in sys.stdin:
        answer: dict[str, Any]
        try:
            answer = {"answer": worker.do(json.loads(line))}
        except (MemoryError, RuntimeError) as error:
            short = "allocate memory" in str(error) or "out of memory" in str(error)
            memory = short or isinstance(error, MemoryError)
            answer = {"error": "out of memory" if memory else _told(error)}
        except Exception as error:  # whatever a library throws is a result, not our end
            answer = {"error": _told(error)}
        if "error" in answer:
            free_unused()
        answers.write(json.dumps(answer) + "\n")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]


if __name__ == "__main__":
    main(sys.argv[1:])
