"""The comparison: every model fitted, then measured in turn, case after case."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quarflow.experiments.machine import machine
from quarflow.experiments.speed.contestants import Contestant
from quarflow.experiments.speed.plan import REFERENCE, Plan
from quarflow.experiments.speed.processes import Failed, TimeUp, WorkerProcess
from quarflow.experiments.speed.starts import OUR_STARTS, start_seconds
from quarflow.files import write_json

__all__ = ["compare"]


def compare(
    contestants: Sequence[Contestant],
    plan: Plan,
    *,
    module: str = "quarflow.experiments.speed.contestants",
    path: str | None = None,
    starts: dict[str, str] | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure, and give everything that was found as JSON knows it.

    Arguments:
        contestants: Which models; the one called "QuAR" must be among them.
        module, path: Where a worker finds them.
        starts: Further pieces of code whose time in a fresh process is measured, by name.
        output: File for the figures so far, rewritten after every case.
        say: Told of progress, line by line.

    Raises:
        ValueError: if "QuAR" is missing or the device is not there.
    """
    if REFERENCE not in [c.name for c in contestants]:
        raise ValueError(f"The models must include {REFERENCE!r}, which the others are held to.")
    if plan.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"device is {plan.device!r}, but torch finds no CUDA here.")
    folder = Path(tempfile.mkdtemp(prefix="quarflow-bench-"))
    run = _Run(plan, folder, output, say)
    try:
        run.open(contestants, module, path)
        run.go(starts or {})
    finally:
        run.close()
        shutil.rmtree(folder, ignore_errors=True)

    return run.found


@dataclass
class _Case:
    """A quantity of a model at one size: what was measured, and how."""

    model: str
    quantity: str
    features: int
    batch: int
    calls: int = 1
    rounds: int = 0
    values: list[Any] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The case in words."""
        batch = f", batch {self.batch:,}" if self.batch else ""

        return f"{self.quantity}, D = {self.features}{batch}"

    def told(self) -> dict[str, Any]:
        """The case as JSON knows it."""
        names = ("model", "quantity", "features", "batch")

        return {name: getattr(self, name) for name in names}

    def no_harder_than(self, other: _Case) -> bool:
        """Whether the other one takes at least as long."""
        same = self.model == other.model and self.quantity == other.quantity

        return same and self.features <= other.features and self.batch <= other.batch


class _Run:
    def __init__(
        self, plan: Plan, folder: Path, output: Path | None, say: Callable[[str], None]
    ) -> None:
        self.plan, self.folder, self.output, self.say = plan, folder, output, say
        self.begun = time.perf_counter()
        self.workers: dict[str, WorkerProcess] = {}
        self.models: dict[str, WorkerProcess] = {}  # by the contestant's name
        self.contestants: dict[str, Contestant] = {}
        self.slow: list[_Case] = []  # that took too long
        self.found: dict[str, Any] = {
            "command": " ".join(["python", *_relative(sys.argv)]),
            "machine": machine(plan.device),
            "settings": asdict(plan),
            "versions": {},
            "left_out": [],
            "starts": {},
            "models": [],
            "cases": [],
            "seconds": 0.0,
        }

    # Processes

    def open(self, contestants: Sequence[Contestant], module: str, path: str | None) -> None:
        """Start one process per library; say which library is not there."""
        plan = self.plan
        for contestant in contestants:
            library = contestant.library
            if find_spec(library) is None:
                self.leave_out(f"{contestant.name}: {library} is not installed")
                continue
            if library not in self.workers:
                self.workers[library] = WorkerProcess(
                    module, plan.threads, plan.device, self.folder, plan.gibibytes, path
                )
            self.models[contestant.name] = self.workers[library]
            self.contestants[contestant.name] = contestant
        for library, worker in self.workers.items():
            self.say(f"Starting the process of {library}")
            self.found["versions"].update(worker.ask(120.0, do="hello"))

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.stop()

    # Progress and results

    def leave_out(self, told: str) -> None:
        """Note, and say, what is not measured and why."""
        self.say(f"Left out: {told}.")
        self.found["left_out"].append(told)

    def save(self) -> None:
        """Write the figures so far, atomically."""
        self.found["seconds"] = round(time.perf_counter() - self.begun, 1)
        if self.output is not None:
            write_json(self.output, self.found)

    def late(self) -> bool:
        """Whether the time for everything is used up."""
        budget = self.plan.budget
        return budget is not None and time.perf_counter() - self.begun > budget

    # The comparison

    def go(self, starts: dict[str, str]) -> None:
        """Size after size, then imports."""
        plan = self.plan
        self.save()
        for features in plan.features:
            if self.late():
                self.leave_out(f"D = {features}: the time for the whole run was up")
                continue
            fitted = self.fit(features)
            for quantity in plan.quantities:
                for batch in plan.batches if quantity != "load" else (0,):
                    self.compare(fitted, quantity, features, batch)
            for worker in self.workers.values():
                worker.forget()
        if plan.start_rounds and self.late():
            self.leave_out("imports: the time for the whole run was up")
        elif plan.start_rounds:
            self.say("Imports, in fresh processes")
            self.found["starts"] = start_seconds({**OUR_STARTS, **starts}, plan.start_rounds)
        self.save()

    def fit(self, features: int) -> list[str]:
        """Match the widths and fit every model; those that could be."""
        plan, target, fitted = self.plan, None, []
        order = sorted(self.models, key=lambda name: name != REFERENCE)
        for name in order:
            if self.late() and name != REFERENCE:
                self.leave_out(f"{name}, D = {features}: the time for the whole run was up")
                continue
            ask = self.models[name].ask
            self.say(f"D = {features}: fitting {name}")
            try:
                size = ask(300.0, do="match", model=name, features=features, target=target)
                told = ask(
                    2 * plan.fit_seconds + plan.limit + 60,
                    do="fit",
                    model=name,
                    features=features,
                    width=size["width"],
                    steps=plan.fit_steps,
                    seconds=plan.fit_seconds,
                )
            except Failed as error:
                self.leave_out(f"{name}, D = {features}, fitting: {error}")
                if name == REFERENCE:
                    return []
                continue
            if name == REFERENCE:
                target = size["weights"]
            fitted.append(name)
            self.found["models"].append({"model": name, "features": features, **size, "fit": told})
        self.save()

        return fitted

    def compare(self, fitted: Sequence[str], quantity: str, features: int, batch: int) -> None:
        """One quantity at one size, all models in turn."""
        cases = [
            _Case(name, quantity, features, batch) for name in fitted if self.has(name, quantity)
        ]
        if not cases:
            return
        if self.late():
            self.leave_out(f"{cases[0].where}: the time for the whole run was up")
            return
        self.say(f"{cases[0].where}: {', '.join(case.model for case in cases)}")
        measured = [case for case in cases if self.calibrate(case)]
        rates: list[float] = []
        for round_ in range(self.plan.rounds):
            if quantity in ("train", "log_prob") and measured:
                rates.append(self.models[REFERENCE].ask(60.0, do="rate", seconds=0.05))
            for case in measured:
                if round_ < case.rounds:
                    case.values += self.measure(case, case.calls, 3 * self.plan.limit)
        for case in measured:
            if case.values:
                found = {**case.told(), "calls": case.calls, "values": case.values}
                if rates and case.model.startswith(REFERENCE):
                    found["rates"] = rates
                self.found["cases"].append(found)
        self.save()

    def has(self, name: str, quantity: str) -> bool:
        """Whether a model has this quantity."""
        known = ("train", "log_prob", "sample", "memory", "load")
        return quantity in known or quantity in self.contestants[name].more

    def calibrate(self, case: _Case) -> bool:
        """Warm up; how many calls make a measurement, and how many of them fit. False: none."""
        for other in self.slow:
            if other.no_harder_than(case):
                at = f"D = {other.features}, batch {other.batch:,}"
                self.leave_out(f"{case.model}, {case.where}: it took too long at {at} already")
                return False
        plan = self.plan
        first = self.measure(case, 1, plan.limit)
        if case.quantity == "memory":
            case.rounds = min(plan.rounds, 3)
        elif first and first[0] > plan.limit / 2:
            case.values = first
        elif first:
            second = self.measure(case, 1, plan.limit)
            if not second:
                return False
            fastest = min(first[0], second[0])
            case.calls = min(max(round(plan.seconds / fastest), 1), 10_000)
            case.rounds = min(plan.rounds, max(1, int(plan.limit / (fastest * case.calls))))

        return bool(first)

    def measure(self, case: _Case, calls: int, limit: float) -> list[Any]:
        """One measurement; none, said aloud, where it takes too long or goes wrong."""
        ask = partial(self.models[case.model].ask, limit, model=case.model, batch=case.batch)
        try:
            if case.quantity == "memory":
                return [ask(do="peak")]
            return [ask(do="time", quantity=case.quantity, calls=calls)]
        except Failed as error:
            self.leave_out(f"{case.model}, {case.where}: {error}")
            if isinstance(error, TimeUp):
                self.slow.append(case)
                over = {"values": [], "over": self.plan.limit}
                self.found["cases"].append(case.told() | over)

        return []


def _relative(arguments: Sequence[str]) -> list[str]:
    # As one would type it from the source tree, without this machine's folders.
    return [Path(arguments[0]).name if "/" in arguments[0] else arguments[0], *arguments[1:]]
