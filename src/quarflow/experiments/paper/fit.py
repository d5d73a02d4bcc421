"""Training on fresh draws of a toy density, as the synthetic experiments do it.

The data never end, so there is nothing to overfit and nothing to select by: what counts is how
far the flow has come after a number of updates, or after so many seconds of training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quarflow.experiments.paper.forecast import Progress
from quarflow.experiments.paper.run import Numbers, RecipeError, Run, stop_if
from quarflow.experiments.speed.matching import existing_weights
from quarflow.files import plain, whole, write_json
from quarflow.training import Event, TrainingSettings, has_checkpoint, remove_checkpoint, train

__all__ = ["Draws", "Fit", "fit", "fitted", "load_weights", "milestones"]

CHECKPOINT, MARKS, WEIGHTS = "checkpoint", "curve.json", "weights.pt"
EVALUATIONS = 40  # after which a checkpoint may be written
CHECKPOINT_SECONDS = 15.0

Draw = Callable[[int, torch.Generator], Tensor]
Measure = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Fit:
    """How a flow is trained on fresh draws.

    Arguments:
        steps: Updates.
        learning_rate: After the warm-up; then half a cosine down to 0.
        optimizer: ``adam``, or ``adamax`` as the paper takes for autoregressive flows.
        batch_size: New points per update.
        warmup: Updates in which the rate rises linearly.
        ema: Decay of the averaged weights, which are the ones measured and kept.
        clip: Largest global norm of the gradient.
        looks: How often the flow is measured on the way, about.
        seed: Of the draws and of what the flow itself draws.
    """

    steps: int
    learning_rate: float
    optimizer: Literal["adam", "adamax"] = "adam"
    batch_size: int = 512
    warmup: int = 100
    ema: float = 0.999
    clip: float = 10.0
    looks: int = 30
    seed: int = 0

    def settings(self) -> TrainingSettings:
        """For the trainer: an epoch is one update, and the last weights are kept."""
        return TrainingSettings(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            max_epochs=self.steps,
            warmup_steps=self.warmup,
            patience=0,
            ema=self.ema,
            clip=self.clip,
            seed=self.seed,
            keep="last",
            evaluate_every=max(self.steps // EVALUATIONS, 1),
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )


class Draws:
    """Rows of a toy density that are new each time they are asked for.

    Arguments:
        draw: Gives n points from a generator, shape (n, D).
        count: How many rows there are to be.
    """

    def __init__(self, draw: Draw, count: int) -> None:
        self.draw, self.count = draw, count

    def __len__(self) -> int:
        return self.count

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        """As many new points as there are indices, shape (n, D)."""
        return self.draw(len(index), generator), None


class _Course(Draws):
    """The rows of a training with its clock, which runs while a step does, and its curve."""

    def __init__(self, draw: Draw, how: Fit, measure: Measure, path: Path) -> None:
        super().__init__(draw, how.batch_size)
        self.measure, self.path = measure, path
        self.looks = set(milestones(how.steps, how.looks))
        self.marks: list[dict[str, float]] = []
        self.clock, self.begun = [0.0, 0.0], [0.0, 0.0]
        if path.is_file():
            self.marks = json.loads(path.read_text(encoding="utf-8"))

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        """Start the clock."""
        self.begun = [time.perf_counter(), time.process_time()]

        return super().batch(index, generator)

    def watch(self, step: int, average: nn.Module) -> None:
        """Stop the clock, and measure the averaged flow if it is time to."""
        now = [time.perf_counter(), time.process_time()]
        self.clock = [a + b - c for a, b, c in zip(self.clock, now, self.begun, strict=True)]
        if step in self.looks:
            self.mark(step, plain(self.measure(average)))

    def listen(self, event: Event) -> None:
        """Note the clock with each checkpoint; going on, forget what came after it."""
        if event.kind == "checkpoint":
            self.mark(event.step, {})
        elif event.kind == "start":
            self.marks = [mark for mark in self.marks if mark["step"] <= event.step]
            if self.marks:
                self.clock = [self.marks[-1][name] for name in ("seconds", "cpu_seconds")]

    def mark(self, step: int, found: dict[str, float]) -> None:
        seconds, cpu_seconds = self.clock
        clock = {"step": step, "seconds": seconds, "cpu_seconds": cpu_seconds}
        self.marks.append(clock | found)
        write_json(self.path, self.marks)

    @property
    def curve(self) -> list[dict[str, float]]:
        """The marks at which the flow was measured."""
        return [mark for mark in self.marks if len(mark) > 3]


def milestones(steps: int, looks: int) -> list[int]:
    """After which updates to measure: ever further apart, and the last.

    Example:
        >>> milestones(1000, 8)
        [25, 42, 72, 121, 206, 349, 590, 1000]
    """
    first = min(25, steps)
    ratio = (steps / first) ** (1 / max(looks - 1, 1))

    return sorted({round(first * ratio**i) for i in range(looks)} | {steps})


def fit(
    flow: nn.Module, draw: Draw, how: Fit, measure: Measure, folder: Path, run: Run, label: str
) -> list[dict[str, float]]:
    """Train a flow, or go on; afterwards it holds the averaged weights, as does the folder.

    Arguments:
        flow: With ``flow().log_prob(x)`` and ``flow.initialize(x)``.
        draw: Gives n points from a generator, shape (n, features).
        how: The settings.
        measure: What to note of the averaged flow on the way.
        folder: For the checkpoint and, in the end, the weights.
        run: Shows the progress.
        label: Under which name.

    Returns:
        The curve: step, seconds of training up to there (measuring and saving not counted) by the
        clock and of the processor, and what ``measure`` gave.

    Raises:
        TrainingError: if the loss is not finite.
        CheckpointError: if the checkpoint is damaged or of other settings.
    """
    checkpoint = folder / CHECKPOINT
    course = _Course(draw, how, measure, folder / MARKS)
    with Progress(run, label, f"{how.steps:,} updates") as progress:

        def listen(event: Event) -> None:
            course.listen(event)
            progress(event)

        result = train(
            flow,
            course,
            Draws(draw, how.batch_size),
            how.settings(),
            device="cpu",
            checkpoint=checkpoint,
            resume=has_checkpoint(checkpoint),
            on_event=listen,
            watch=course.watch,
        )
    stop_if(result.interrupted, result.stopped)
    flow.eval()
    with whole(folder / WEIGHTS) as unfinished:
        torch.save(flow.state_dict(), unfinished)

    return course.curve


def fitted(
    make: Callable[[], nn.Module],
    draw: Draw,
    how: Fit,
    measure: Measure,
    last: Measure,
    folder: Path,
    run: Run,
    label: str,
) -> Numbers:
    """Train a new flow: the numbers of a part, in whose folder its weights stay.

    Arguments:
        make: Gives the flow; its weights follow from the seed.
        last: What to measure in the end.
        draw, how, measure, folder, run, label: See :func:`fit`.
    """
    torch.manual_seed(how.seed)
    flow = make()
    curve = fit(flow, draw, how, measure, folder, run, f"{label}, seed {how.seed}")
    found = last(flow)
    remove_checkpoint(folder / CHECKPOINT)
    (folder / MARKS).unlink(missing_ok=True)
    names = ("seed", "steps", "learning_rate", "optimizer", "batch_size")

    return {
        "parameters": existing_weights(flow),
        **{name: getattr(how, name) for name in names},
        **found,
        "seconds": curve[-1]["seconds"],
        "curve": curve,
    }


def load_weights(flow: nn.Module, folder: Path) -> None:
    """Put the weights that :func:`fit` kept into a flow.

    Raises:
        RecipeError: if there are none, or of another flow.
    """
    path = folder / WEIGHTS
    try:
        flow.load_state_dict(torch.load(path, weights_only=True))
    except (OSError, RuntimeError):
        raise RecipeError(
            f"{path} holds no weights that fit; delete {folder}.json and run the command again."
        ) from None
    flow.eval()
