"""The comparison: every model fitted, then measured in turn, case after case."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quarflow.experiments.machine import machine
from quarflow.experiments.speed.contestants import Contestant
from quarflow.experiments.speed.plan import REFERENCE, Plan
from quarflow.experiments.speed.processes import Failed, TimeUp, WorkerProcess
from quarflow.experiments.speed.starts import OUR_STARTS, start_seconds

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


class _Run:
    def __init__(
        self, plan: Plan, folder: Path, output: Path | None, say: Callable[[str], None]
    ) -> None:
        self.plan, self.folder, self.output, self.say = plan, folder, output, say
        self.begun = time.perf_counter()
        self.workers: dict[str, WorkerProcess] = {}
        self.models: dict[str, WorkerProcess] = {}  # by the contestant's name
        self.contestants: dict[str, Contestant] = {}
        self.slow: dict[tuple[str, str], list[tuple[int, int]]] = {}
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
        if self.output is None:
            return
        unfinished = self.output.with_name(f"{self.output.name}.tmp")
        unfinished.write_text(json.dumps(self.found, indent=1) + "\n")
        unfinished.replace(self.output)

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
                    self.case(fitted, quantity, features, batch)
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

    def case(self, fitted: Sequence[str], quantity: str, features: int, batch: int) -> None:
        """One quantity at one size, all models in turn."""
        names = [name for name in fitted if self.has(name, quantity)]
        where = f"{quantity}, D = {features}" + (f", batch {batch:,}" if batch else "")
        if not names:
            return
        if self.late():
            self.leave_out(f"{where}: the time for the whole run was up")
            return
        self.say(f"{where}: {', '.join(names)}")
        measured: dict[str, dict[str, Any]] = {}
        for name in names:
            earlier = self.too_slow(name, quantity, features, batch)
            if earlier is not None:
                at = f"D = {earlier[0]}, batch {earlier[1]:,}"
                self.leave_out(f"{name}, {where}: it took too long at {at} already")
                continue
            first = self.attempt(name, quantity, batch, self.calibrate, features, where)
            if first is not None:
                measured[name] = first
        rates: list[float] = []
        for round_ in range(self.plan.rounds):
            if quantity in ("train", "log_prob") and measured:
                rates.append(self.models[REFERENCE].ask(60.0, do="rate", seconds=0.05))
            for name, case in list(measured.items()):
                if round_ >= case["rounds"]:
                    continue
                value = self.attempt(
                    name,
                    quantity,
                    batch,
                    partial(self.once, calls=case["calls"]),
                    features,
                    where,
                )
                if value is not None:
                    case["values"].append(value)
        for name, case in measured.items():
            if not case["values"]:
                continue
            self.found["cases"].append(
                {
                    "model": name,
                    "quantity": quantity,
                    "features": features,
                    "batch": batch,
                    "calls": case["calls"],
                    "values": case["values"],
                    **({"rates": rates} if rates and name.startswith(REFERENCE) else {}),
                }
            )
        self.save()

    def has(self, name: str, quantity: str) -> bool:
        """Whether a model has this quantity."""
        known = ("train", "log_prob", "sample", "memory", "load")
        return quantity in known or quantity in self.contestants[name].more

    def attempt(
        self,
        name: str,
        quantity: str,
        batch: int,
        act: Callable[[str, str, int], Any],
        features: int,
        where: str,
    ) -> Any:
        """What `act` gives; None, said aloud, where it takes too long or goes wrong."""
        try:
            return act(name, quantity, batch)
        except TimeUp as error:
            self.slow.setdefault((name, quantity), []).append((features, batch))
            self.leave_out(f"{name}, {where}: {error}")
            self.found["cases"].append(
                {
                    "model": name,
                    "quantity": quantity,
                    "features": features,
                    "batch": batch,
                    "values": [],
                    "over": self.plan.limit,
                }
            )
        except Failed as error:
            self.leave_out(f"{name}, {where}: {error}")

        return None

    def too_slow(
        self, name: str, quantity: str, features: int, batch: int
    ) -> tuple[int, int] | None:
        """A case that is no harder than this one and took too long."""
        for known in self.slow.get((name, quantity), []):
            if known[0] <= features and known[1] <= batch:
                return known
        return None

    def calibrate(self, name: str, quantity: str, batch: int) -> dict[str, Any]:
        """Warm up; how many calls make a measurement, and how many measurements fit."""
        plan, ask = self.plan, self.models[name].ask
        if quantity == "memory":
            self.once(name, quantity, batch, 1)
            return {"calls": 1, "rounds": min(plan.rounds, 3), "values": []}
        command = {"do": "time", "model": name, "quantity": quantity, "batch": batch, "calls": 1}
        first = ask(plan.limit, **command)
        if first > plan.limit / 2:
            return {"calls": 1, "rounds": 0, "values": [first]}
        second = min(first, ask(plan.limit, **command))
        calls = min(max(round(plan.seconds / second), 1), 10_000)
        rounds = min(plan.rounds, max(1, int(plan.limit / (second * calls))))

        return {"calls": calls, "rounds": rounds, "values": []}

    def once(self, name: str, quantity: str, batch: int, calls: int) -> Any:
        """One measurement."""
        plan, ask = self.plan, self.models[name].ask
        if quantity == "memory":
            return ask(plan.limit, do="peak", model=name, batch=batch)

        return ask(
            3 * plan.limit, do="time", model=name, quantity=quantity, batch=batch, calls=calls
        )


def _relative(arguments: Sequence[str]) -> list[str]:
    # As one would type it from the source tree, without this machine's folders.
    return [Path(arguments[0]).name if "/" in arguments[0] else arguments[0], *arguments[1:]]
