"""One model in its process: fitted to data once, then measured as often as asked."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quarflow.experiments.memory import Peak
from quarflow.experiments.speed.contestants import Contestant
from quarflow.experiments.speed.rows import correlated_rows
from quarflow.experiments.step import Step
from quarflow.experiments.timing import seconds_per_call
from quarflow.files import whole

__all__ = ["Subject"]

LEARNING_RATE, CLIP, FIT_BATCH, ROWS = 1e-3, 5.0, 256, 20_000


class Subject:
    """A model under measurement.

    Arguments:
        contestant: What it is.
        features, width: Its size.
        device: "cpu" or "cuda".
        folder: Where the fitted weights are kept, for a process that has to be started again.
    """

    def __init__(
        self, contestant: Contestant, features: int, width: int, device: str, folder: Path
    ) -> None:
        self.contestant, self.features, self.width = contestant, features, width
        self.device = device
        name = "".join(c if c.isalnum() else "-" for c in contestant.name)
        self.weights = folder / f"{name}-{features}-{width}.pt"
        self.model: Any = self.build().to(device)
        self.bound: Any = None
        self.step = Step(
            self.model, LEARNING_RATE, contestant.loss, CLIP, compile=contestant.compiled
        )
        self.data = correlated_rows(ROWS, features).to(device)
        self.generator = torch.Generator().manual_seed(0)

    def build(self) -> nn.Module:
        """A fresh model, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.contestant.build(self.features, self.width)

    # Fitting

    def fit(self, steps: int, seconds: float) -> dict[str, Any]:
        """Take so many steps, fewer if the time is up; weights of an earlier fit are taken up.

        Gives steps, seconds and the mean nats of the last tenth of the steps.
        """
        if self.weights.exists():
            found = torch.load(self.weights, weights_only=True)
            self.model.load_state_dict(found["state"])
            self.step.hold()
            return dict(found["told"])
        if self.contestant.prepare is not None:
            with torch.no_grad():
                self.contestant.prepare(self.model, self.batch(4096))
        self.model.train()
        start, taken, nats = time.perf_counter(), 0, []
        while taken < steps and (taken == 0 or time.perf_counter() - start < seconds):
            nats.append(self.train(self.batch(FIT_BATCH)))
            taken += 1
        last = [float(n) for n in nats[-max(taken // 10, 1) :]]
        told = {
            "steps": taken,
            "seconds": time.perf_counter() - start,
            "nats": sum(last) / len(last),
        }
        if not math.isfinite(told["nats"]):
            raise ValueError(f"fitting went wrong: the loss is {told['nats']}")
        with whole(self.weights) as unfinished:
            torch.save({"state": self.model.state_dict(), "told": told}, unfinished)
        self.step.hold()  # from now on the fitted model stays as it is

        return told

    def batch(self, number: int) -> Tensor:
        """Rows (number, D), drawn with replacement."""
        index = torch.randint(len(self.data), (number,), generator=self.generator)

        return self.data[index.to(self.device)]

    def train(self, x: Tensor) -> Tensor:
        """A step, and what the library requires after it; gives the loss."""
        loss = self.step(x)
        if self.contestant.after_step is not None:
            self.contestant.after_step(self.model)

        return loss

    # Measuring

    def action(self, quantity: str, batch: int) -> Callable[[], Any]:
        """What is timed, set up but not run.

        Raises:
            ValueError: if the contestant has no such quantity.
        """
        contestant = self.contestant
        if quantity == "load":
            return self.load
        if quantity in ("train", "memory"):
            self.model.train()
            self.bound = None  # its weights are old after a step
            x = self.batch(batch)
            return lambda: self.train(x)
        if self.bound is None:
            self.model.eval()
            with torch.no_grad():
                self.bound = contestant.bind(self.model)
        bound = self.bound
        if quantity == "log_prob":
            x = self.batch(batch)
            return lambda: contestant.log_prob(bound, x)
        sample = contestant.sample if quantity == "sample" else contestant.more.get(quantity)
        if sample is None:
            raise ValueError(f"{contestant.name} has no {quantity}.")
        return lambda: sample(bound, batch)

    def load(self) -> nn.Module:
        """Make the model and read its weights."""
        model = self.contestant.build(self.features, self.width)
        model.load_state_dict(torch.load(self.weights, weights_only=True)["state"])

        return model

    def time(self, quantity: str, batch: int, calls: int) -> float:
        """Seconds per call, the mean of so many calls in a row."""
        act = self.action(quantity, batch)
        with torch.set_grad_enabled(quantity == "train"):
            return seconds_per_call(act, calls, self.wait)

    def peak(self, batch: int) -> int | None:
        """Most bytes that one training step holds beyond weights, gradients and Adam's state."""
        act = self.action("memory", batch)
        with Peak(self.device) as peak:
            act()
            self.wait()
        self.model.zero_grad()

        return peak.bytes

    def wait(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def close(self) -> None:
        """Let go of all tensors."""
        self.model = self.bound = self.step = None  # type: ignore[assignment]
        gc.collect()
