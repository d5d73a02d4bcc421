"""The training loop: maximum likelihood, averaged weights, early stopping, resumable."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import nn

from quarflow.training.checkpoint import has_checkpoint, read, remove_checkpoint, write
from quarflow.training.device import accelerator_on, choose_device
from quarflow.training.events import Event, Kind, Listener
from quarflow.training.interrupt import StopSignals
from quarflow.training.learner import Learner
from quarflow.training.rows import Plan, Rows, Sampler, fingerprint
from quarflow.training.schedule import Plateau, cosine, ema_decay, progress, warmup
from quarflow.training.settings import TrainingError, TrainingResult, TrainingSettings
from quarflow.training.state import Counters

__all__ = ["train"]

RECOVERIES = 3  # steps back before giving up
EVENT_SECONDS = 0.2  # between "step" events
LOSS = "the loss or its gradient was not finite"
Watch = Callable[[int, nn.Module], None]
News = list[tuple[Kind, str, dict[str, Any] | None]]


def train(
    flow: nn.Module,
    train_rows: Rows,
    valid_rows: Rows,
    settings: TrainingSettings | None = None,
    *,
    device: str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_event: Listener | None = None,
    watch: Watch | None = None,
) -> TrainingResult:
    """Fit a flow by maximum likelihood; afterwards it holds the best averaged weights.

    Arguments:
        flow: Module with `flow(c).log_prob(x)`, and perhaps `initialize(x, c)`, which is called
            once with a first batch. It stays on the device it was trained on.
        train_rows, valid_rows: The rows to fit and the rows to choose the best weights by.
        settings: See `TrainingSettings`.
        device: `"auto"` (CUDA if there is one), `"cpu"` or `"cuda"`.
        checkpoint: Folder for the checkpoint; None for none.
        resume: Go on from the checkpoint, if there is one, to the result of a run that was
            never interrupted. Without it an old checkpoint is deleted.
        on_event: Called with each `Event`, in the main process.
        watch: Called after each step with its number and the averaged flow, which it may measure
            but must leave as it is; its time does not count.

    The first Ctrl-C or SIGTERM stops after the current step and evaluates once more
    (`result.interrupted`); the checkpoint then holds the run as it was, to go on with.

    Raises:
        TrainingError: If the loss is not finite even after three steps back.
        CheckpointError: If the checkpoint is damaged or of another run.
        ValueError: If an argument is wrong.
    """
    settings = settings or TrainingSettings()
    device = choose_device(device)
    for name, rows in (("train_rows", train_rows), ("valid_rows", valid_rows)):
        if len(rows) == 0:
            raise ValueError(f"{name} is empty: give at least one row.")
    if resume and checkpoint is None:
        raise ValueError("resume needs checkpoint, the folder of the run to go on with.")
    folder = None if checkpoint is None else Path(checkpoint)
    mode = flow.training
    with accelerator_on(device, settings.precision) as accelerator, _own_random(device):
        run = _Run(flow, train_rows, valid_rows, settings, accelerator, folder, on_event)
        run.watch = watch
        with StopSignals() as signals:
            try:
                return run.go(resume, signals)
            finally:
                flow.train(mode)


@contextmanager
def _own_random(device: str) -> Iterator[None]:
    """Keep the seeding of each step (for flows with random estimators) from the caller."""
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


class _Run:
    """One call of `train`: the flow, its average, Adam, and where they are."""

    def __init__(
        self,
        flow: nn.Module,
        train_rows: Rows,
        valid_rows: Rows,
        settings: TrainingSettings,
        accelerator: Any,
        folder: Path | None,
        on_event: Listener | None,
    ) -> None:
        self.flow, self.valid_rows, self.settings = flow, valid_rows, settings
        self.accelerator, self.folder = accelerator, folder
        self.world: int = accelerator.num_processes
        self.on_event = on_event if accelerator.is_main_process else None
        self.plan = Plan.of(len(train_rows), settings)
        if self.plan.batch_size < self.world:
            raise ValueError(
                f"A batch of {self.plan.batch_size} rows cannot be shared by {self.world} "
                "processes: use fewer processes or a larger batch_size."
            )
        self.sampler = Sampler(
            train_rows, self.plan, settings.seed, accelerator.process_index, self.world
        )
        self.counters = Counters()
        self.plateau = Plateau(settings)
        # Looking at a value on CUDA waits for it: there the loss is checked now and then only.
        self.check_every = 1 if accelerator.device.type == "cpu" else 10
        self.data: dict[str, list[float]] = {}
        if folder is not None:
            self.data = {
                "training": fingerprint(train_rows),
                "validation": fingerprint(valid_rows),
            }
        self.write_seconds = self.rows_per_second = 0.0
        self.watch: Watch | None = None

    def go(self, resume: bool, signals: StopSignals) -> TrainingResult:
        """Prepare, train, and leave the best weights in the flow."""
        counters, folder = self.counters, self.folder
        resuming = resume and folder is not None and has_checkpoint(folder)
        self.learner = Learner(
            self.flow,
            self.settings,
            self.accelerator,
            first=None if resuming else self.sampler.first,
        )
        resumed_at = self.take_up() if resuming else None
        self.accelerator.wait_for_everyone()
        if folder is not None and not resuming and self.accelerator.is_main_process:
            remove_checkpoint(folder)  # or a later resume would take up an older run
        self.started = time.perf_counter() - counters.seconds
        self.last_write = self.last_event = time.perf_counter()
        self.last_event_step = counters.step
        interrupted = False
        if counters.stopped is None:
            told = "" if not resume else "No checkpoint to resume from: starting from step 0."
            self.tell("start", f"Resumed at step {resumed_at}." if resuming else told)
            interrupted = self.loop(signals)
        if not self.learner.best:
            raise TrainingError(
                "The validation nats were never finite: try a lower learning_rate, and look for "
                "extreme values in the data."
            )
        self.learner.keep_best()
        assert counters.stopped is not None
        assert counters.best is not None
        self.tell("end", counters.stopped)
        return TrainingResult(
            history=counters.history,
            best=counters.best,
            best_step=counters.best_step,
            stopped=counters.stopped,
            interrupted=interrupted,
            steps=counters.step,
            seconds=counters.seconds,
            steps_per_epoch=self.plan.steps_per_epoch,
            evaluate_every=self.plan.evaluate_every,
            device=str(self.accelerator.device),
            resumed_at=resumed_at,
            recoveries=counters.recoveries,
        )

    # -- one step

    def loop(self, signals: StopSignals) -> bool:
        """Train until `counters.stopped` has a reason; tell whether it was a signal."""
        counters = self.counters
        while True:
            self.step()
            wish = self.agree(signals)
            reason = self.used_up()
            scheduled = counters.step % self.plan.evaluate_every == 0
            if not (scheduled or wish or reason):
                if counters.step % self.check_every == 0 and not self.learner.healthy():
                    self.step_back(LOSS)
                elif self.on_event and time.perf_counter() - self.last_event > EVENT_SECONDS:
                    self.tell("step")
                continue
            if not self.learner.healthy():
                self.step_back(LOSS)
                if not (wish or reason):
                    continue
            if wish and not (scheduled or reason):
                self.save()  # before the evaluation that a run without the signal would not have
                news = self.evaluate(scheduled=False)
            else:
                news = self.evaluate(scheduled)
                counters.stopped = reason = reason or self.early
                if wish or reason or self.save_is_due():
                    self.save()
            for event in news:  # after the checkpoint: who stops here finds this evaluation in it
                self.tell(*event)
            if reason:
                return False
            if wish:
                counters.stopped = (
                    f"Interrupted by {wish} at step {counters.step}; the best weights are kept."
                )
                self.tell("interrupt", counters.stopped)
                return True

    def step(self) -> None:
        """Take the next step at its rate."""
        settings, counters = self.settings, self.counters
        rate = settings.learning_rate * warmup(counters.step, settings.warmup_steps)
        rate *= self.plateau.factor * counters.rate_factor
        if settings.schedule == "cosine":
            rate *= cosine(self.progress())
        decay = ema_decay(counters.step, settings.ema)
        self.learner.step(counters.step, self.sampler.batch(counters.step), rate, decay)
        counters.step += 1
        counters.learning_rate = rate
        if self.watch is not None:
            begun = time.perf_counter()
            self.watch(counters.step, self.learner.averaged.module)
            self.started += time.perf_counter() - begun
        counters.seconds = time.perf_counter() - self.started

    def progress(self) -> float:
        """Give the used fraction of the budget."""
        counters = self.counters
        return progress(
            counters.step, self.plan.total_steps, counters.seconds, self.settings.minutes
        )

    def used_up(self) -> str | None:
        """Give a sentence if the budget of epochs or minutes is used up."""
        settings, counters = self.settings, self.counters
        if counters.step >= self.plan.total_steps:
            return f"Reached max_epochs = {settings.max_epochs}."
        if settings.minutes is not None:
            budget = 60 * settings.minutes
            # the last evaluation has to fit in as well, unless it would take a tenth of it all
            reserve = min(counters.evaluation_seconds, 0.1 * budget)
            if counters.seconds + reserve >= budget:
                return f"Used up its time budget (minutes={settings.minutes:.3g})."
        return None

    def agree(self, signals: StopSignals | None = None) -> str | None:
        """Give the name of a signal that any process got; all go by the slowest one's clock."""
        received = signals.received if signals is not None else None
        if self.world == 1:
            return received
        counters = self.counters
        number = 0 if received is None else int(Signals[received])
        mine = [float(number), counters.seconds, counters.evaluation_seconds]
        sent = torch.tensor([mine], dtype=torch.float64, device=self.accelerator.device)
        largest = self.accelerator.gather(sent).amax(0).tolist()
        number, counters.seconds, counters.evaluation_seconds = largest
        return Signals(int(number)).name if number else None

    # -- evaluations, cuts and steps back

    def evaluate(self, scheduled: bool) -> News:
        """Score the average on the validation rows, and act on it; give the events to tell.

        Only scheduled evaluations count for early stopping, whose sentence is left in `early`.
        """
        counters, learner, rows = self.counters, self.learner, self.valid_rows
        self.early: str | None = None
        if learner.steps == 0 and counters.history:
            return []  # just stepped back: nothing new
        begun = time.perf_counter()
        nats, bad = learner.validate(rows, 4 * self.plan.batch_size)
        counters.evaluation_seconds = time.perf_counter() - begun
        counters.seconds = time.perf_counter() - self.started
        self.agree()
        if not math.isfinite(nats):
            told = f"{bad} of {len(rows)}" if bad else "all"
            self.step_back(f"the log-probability of {told} validation rows was not finite")
            return []
        record = {
            "epoch": counters.step / self.plan.steps_per_epoch,
            "step": counters.step,
            "seconds": counters.seconds,
            "train_nats": learner.mean(),
            "valid_nats": nats,
            "learning_rate": counters.learning_rate,
        }
        counters.history.append(record)
        news: News = [("evaluation", "", record)]
        last = self.settings.keep == "last"
        if counters.best is None or last or nats < counters.best:
            counters.best, counters.best_step = nats, counters.step
            learner.note_best()
        if scheduled:
            news += self.judge(nats)
        learner.forget()
        learner.note_good()
        counters.good_step = counters.step
        return news

    def judge(self, nats: float) -> News:
        """Cut the rate or stop early when the validation has not improved for long."""
        verdict = self.plateau.update(nats)
        reason = f"no improvement of the validation in {self.settings.patience} evaluations"
        if verdict == "stop":
            cuts = self.plateau.cuts
            after = "" if not cuts else f" after {cuts} cut{'s'[: cuts > 1]} of the learning rate"
            self.early = f"Stopped early: {reason}{after}."
        if verdict != "cut":
            return []
        self.learner.go_to_best()
        told = (
            f"There was {reason}: back to the best weights (of step {self.counters.best_step}) "
            f"at {self.plateau.factor:.2g} of the learning rate."
        )
        return [("cut", told, None)]

    def step_back(self, trouble: str) -> None:
        """Restore the last good state at half the rate; the steps that follow are new ones."""
        counters = self.counters
        if len(counters.recoveries) >= RECOVERIES:
            self.learner.keep_best()
            raise TrainingError(
                f"At step {counters.step} {trouble}, after {RECOVERIES} steps back at lower "
                "rates. Try a lower learning_rate or a lower clip, and look for extreme values in "
                "the data."
            )
        counters.rate_factor *= 0.5
        told = (
            f"At step {counters.step} {trouble}: back to the state of step {counters.good_step}, "
            "going on at half the learning rate."
        )
        counters.recoveries.append(told)
        self.learner.go_back()
        self.tell("recovery", told)

    # -- checkpoints and events

    def save_is_due(self) -> bool:
        """Tell whether it is time; writing shall not take more than a twentieth of it."""
        wish = self.settings.checkpoint_seconds
        wait = max(wish, 20 * self.write_seconds) if wish else 0.0
        return time.perf_counter() - self.last_write >= wait

    def save(self) -> None:
        """Write the checkpoint, from the main process."""
        if self.folder is None or not self.accelerator.is_main_process:
            return
        begun = time.perf_counter()
        counters, plateau, learner = self.counters, self.plateau, self.learner
        counters.reference, counters.stale = plateau.reference, plateau.stale
        counters.cuts = plateau.cuts
        counters.train_total, counters.train_steps = float(learner.total), learner.steps
        tensors = learner.saved(with_good=counters.step != counters.good_step)
        write(self.folder, tensors, counters, self.settings, self.data)
        self.last_write = time.perf_counter()
        self.write_seconds = self.last_write - begun
        self.tell("checkpoint")

    def take_up(self) -> int:
        """Restore everything from the checkpoint; give its step."""
        assert self.folder is not None
        learner, plateau = self.learner, self.plateau
        found, counters = read(self.folder, learner.tensors(), self.settings, self.data)
        learner.load(found)
        learner.total.fill_(counters.train_total)
        learner.steps = counters.train_steps
        plateau.reference, plateau.stale = counters.reference, counters.stale
        plateau.cuts = counters.cuts
        vars(self.counters).update(vars(counters))
        return counters.step

    def tell(self, kind: Kind, message: str = "", record: dict[str, Any] | None = None) -> None:
        """Tell the listener, if there is one."""
        if self.on_event is None:
            return
        counters, plan, now = self.counters, self.plan, time.perf_counter()
        done = min(self.progress(), 1.0)
        if kind in ("step", "evaluation"):
            rows = (counters.step - self.last_event_step) * plan.batch_size
            self.rows_per_second = rows / max(now - self.last_event, 1e-9)
            self.last_event, self.last_event_step = now, counters.step
        self.on_event(
            Event(
                kind=kind,
                message=message,
                epoch=max(counters.step - 1, 0) // plan.steps_per_epoch + 1,
                step=counters.step,
                total_steps=plan.total_steps,
                progress=done,
                seconds=counters.seconds,
                seconds_left=counters.seconds * (1 - done) / done if done > 0 else None,
                rows_per_second=self.rows_per_second,
                learning_rate=counters.learning_rate,
                nats=record["train_nats"] if record else self.learner.mean(),
                best=counters.best,
                record=record,
            )
        )
