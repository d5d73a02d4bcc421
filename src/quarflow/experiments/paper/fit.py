"""Training on fresh draws of a toy density, as the synthetic experiments do it.

:func:`quarflow.training.train` fits rows and keeps the weights that are best on others. Here the
data never end, so there is nothing to overfit and nothing to select by: what counts is how far
the flow has come after a number of updates, or after so many seconds of training.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quarflow.experiments.paper.run import RecipeError, Run, plain
from quarflow.report.style import write_whole
from quarflow.training.rows import mix, seeded
from quarflow.training.schedule import cosine, ema_decay, warmup
from quarflow.training.state import Average

__all__ = ["Fit", "fit", "load_weights", "milestones", "settle"]

CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.pt"
CHECKPOINT_SECONDS = 15.0
NUMBERS = ("how", "step", "seconds", "cpu_seconds", "curve")  # of a checkpoint

Draw = Callable[[int, torch.Generator], Tensor]
Measure = Callable[[Any], dict[str, float]]


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
        folder: For the checkpoint, until :func:`settle`, and in the end the weights.
        run: Shows the progress.
        label: Under which name.

    Returns:
        The curve: step, seconds of training up to there (measuring and saving not counted) by the
        clock and of the processor, and what ``measure`` gave.

    Raises:
        RecipeError: if the loss is not finite, or the checkpoint is of other settings.
    """
    checkpoint = folder / CHECKPOINT
    with torch.random.fork_rng(devices=[]):
        flow.train()
        flow.initialize(draw(4096, seeded(how.seed, "initialize")))  # type: ignore[operator]
        kinds = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}
        optimizer = kinds[how.optimizer](flow.parameters(), how.learning_rate)
        average = Average(flow)
        state = _State(flow, average.module, optimizer, how)
        if checkpoint.is_file():
            state.load(checkpoint)
            run.say(f"{label}: going on at update {state.step:,}")
        looks, saved = set(milestones(how.steps, how.looks)), time.perf_counter()
        with run.progress(label, how.steps, state.step) as advance:
            while state.step < how.steps:
                begun, cpu = time.perf_counter(), time.process_time()
                loss = _update(flow, draw, optimizer, how, state.step)
                average.update(ema_decay(state.step, how.ema))
                state.step += 1
                state.seconds += time.perf_counter() - begun
                state.cpu_seconds += time.process_time() - cpu
                if not math.isfinite(loss):
                    raise RecipeError(
                        f"{label}: the loss of update {state.step} is not finite; the learning "
                        f"rate of {how.learning_rate:g} is too high for it."
                    )
                if state.step in looks:
                    state.note(plain(measure(average.module)))
                last = state.step == how.steps  # what is measured afterwards may be cut off too
                if last or time.perf_counter() - saved > CHECKPOINT_SECONDS:
                    state.save(checkpoint)
                    saved = time.perf_counter()
                advance(state.step, f"{loss:.3f} nats")
    flow.load_state_dict(average.module.state_dict())
    flow.eval()
    _save(flow.state_dict(), folder / WEIGHTS)

    return state.curve


def settle(folder: Path) -> None:
    """Remove the checkpoint, once everything is measured; the weights stay."""
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _update(
    flow: nn.Module, draw: Draw, optimizer: torch.optim.Optimizer, how: Fit, step: int
) -> float:
    """One update; returns the loss in nats."""
    rate = how.learning_rate * warmup(step, how.warmup) * cosine(step / how.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    # Every update's random numbers follow from its number: going on changes nothing.
    x = draw(how.batch_size, seeded(how.seed, "draw", step))
    torch.manual_seed(mix(how.seed, "step", step))
    loss = -flow().log_prob(x).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(flow.parameters(), how.clip)
    optimizer.step()

    return loss.item()


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


class _State:
    """Everything that changes while training."""

    def __init__(
        self, flow: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, how: Fit
    ) -> None:
        self.holders: dict[str, Any] = {"flow": flow, "average": average, "optimizer": optimizer}
        self.how, self.step = asdict(how), 0
        self.seconds = self.cpu_seconds = 0.0
        self.curve: list[dict[str, float]] = []

    def note(self, found: dict[str, float]) -> None:
        """Add a point to the curve."""
        names = ("step", "seconds", "cpu_seconds")
        self.curve.append({name: getattr(self, name) for name in names} | found)

    def save(self, path: Path) -> None:
        held = {name: holder.state_dict() for name, holder in self.holders.items()}
        numbers = {k: getattr(self, k) for k in NUMBERS}
        _save(held | numbers, path)

    def load(self, path: Path) -> None:
        try:
            found = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError):
            raise RecipeError(f"The checkpoint {path} is damaged; delete it.") from None
        if found["how"] != self.how:
            raise RecipeError(f"The checkpoint {path} is of other settings; delete it.")
        for name, holder in self.holders.items():
            holder.load_state_dict(found[name])
        for name in NUMBERS:
            setattr(self, name, found[name])


def _save(value: object, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_whole(path, buffer.getvalue())
