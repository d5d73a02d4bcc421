"""What fits into --minutes: how many images validate, are tested and are drawn."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quarflow.data.images import Images
from quarflow.density.rows import FIRST
from quarflow.experiments.paper.forecast import span
from quarflow.experiments.paper.run import Run, read_json
from quarflow.files import write_json
from quarflow.flows import Flow

__all__ = ["SWEEPS", "Limit", "Plan", "plan_for", "seconds_per_image"]

# parts of the limit: of one evaluation, as of initialising the flow; of test and samples
VALIDATION, AFTERWARDS = 0.05, 0.2
PROBE = 4  # images that the time of one is measured with
SWEEPS = 40  # scores that a sample costs, about


class Limit:
    """The time of one model, all in all.

    Arguments:
        minutes: None for no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes, self.begun = minutes, time.perf_counter()
        self.earlier = 0.0  # seconds, in earlier runs

    def left(self) -> float:
        """Seconds that are left, perhaps none."""
        if self.minutes is None:
            return math.inf

        return max(60 * self.minutes - self.earlier - (time.perf_counter() - self.begun), 0.0)

    def used(self, seconds: float) -> None:
        """Take into account what a part took that was perhaps made in an earlier run."""
        self.earlier = max(seconds - (time.perf_counter() - self.begun), 0.0)

    def count(
        self, run: Run, what: str, wanted: int, seconds: float, part: float = 1.0, least: int = 0
    ) -> int:
        """How many of something there is time for; it is said if they are fewer than wanted.

        Arguments:
            run: Prints.
            what: Of what, in words.
            wanted: How many, at most.
            seconds: That one takes.
            part: Of what is left.
            least: How many there have to be in any case.
        """
        left = part * self.left()
        if wanted * seconds <= left:
            return wanted
        count = min(max(int(left / seconds), least), wanted)
        why = f"--minutes {self.minutes:g} are used up"
        if left:
            why = f"all would take about {span(wanted * seconds)} and --minutes "
            why += f"{self.minutes:g} leaves {span(left)}"
        run.say(f"{what}: {count:,} of {wanted:,}, since {why}")

        return count


@dataclass(frozen=True)
class Plan:
    """What a training is told of the limit.

    Attributes:
        minutes: For training, None for no limit.
        validation_fraction: Part of the images that is held out.
        first: Images that initialise the flow.
    """

    minutes: float | None = None
    validation_fraction: float = 0.1
    first: int = FIRST


@torch.no_grad()
def seconds_per_image(flow: Flow, images: Images) -> float:
    """Time to score an image: of some together, effective weights included."""
    home = next(flow.parameters()).device
    some = torch.from_numpy(images.images[:PROBE]).to(home) / images.levels
    flow.eval()
    flow().log_prob(some[:1])  # what is made once only
    begun = time.perf_counter()
    float(flow().log_prob(some).sum())

    return (time.perf_counter() - begun) / len(some)


def plan_for(run: Run, limit: Limit, flow: Flow, train: Images, scores: int, path: Path) -> Plan:
    """The plan of a training, the same one when it goes on.

    Arguments:
        run: Prints.
        limit: Of the model.
        flow: A new one, to be timed.
        train: The images, of which at most a tenth or 1,000 are held out.
        scores: Images, times draws, to be scored after the training.
        path: Where it is kept.
    """
    if limit.minutes is None:
        return Plan()
    if path.is_file():
        found: dict[str, Any] = read_json(path)
        return Plan(**found)
    each = seconds_per_image(flow, train)
    held_out = min(max(round(0.1 * len(train)), 1), 1000)
    held_out = limit.count(run, "validation images", held_out, each, VALIDATION, PROBE)
    first = limit.count(run, "images to initialise with", FIRST, each, VALIDATION, PROBE)
    afterwards = min(each * scores, AFTERWARDS * 60 * limit.minutes)
    seconds = limit.left() - afterwards - each * held_out
    plan = Plan(max(seconds, 1.0) / 60, held_out / len(train), first)
    write_json(path, asdict(plan))

    return plan
