"""The training loop: maximum likelihood, averaged weights, early stopping, resumable."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from quarflow.training.clock import Clock
from quarflow.training.device import accelerator_on, choose_device, own_random
from quarflow.training.events import Kind, Listener, Teller
from quarflow.training.identity import identity_of
from quarflow.training.interrupt import StopSignals
from quarflow.training.keeper import Keeper
from quarflow.training.learner import Learner
from quarflow.training.lock import locked
from quarflow.training.rows import Plan, Rows, Sampler
from quarflow.training.schedule import Plateau, cosine, ema_decay, warmup
from quarflow.training.settings import TrainingError, TrainingResult, TrainingSettings
from quarflow.training.state import Counters

__all__ = ["train"]

RECOVERIES = 3  # steps back before giving up
QUICK = 5.0  # seconds of an evaluation that a signal may be followed by
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
    identity: Mapping[str, Any] | None = None,
    on_event: Listener | None = None,
    begun: float | None = None,
    watch: Watch | None = None,
) -> TrainingResult:
    """Fit a flow by maximum likelihood; afterwards it holds the best averaged weights.

    Arguments:
        flow: Module with ``flow(c).log_prob(x)``, and perhaps ``initialize(x, c)``, which is
            called once with a first batch. It stays on the device it was trained on.
        train_rows, valid_rows: The rows to fit and the rows to choose the best weights by.
        settings: See ``TrainingSettings``.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"`` or ``"cuda"``.
        checkpoint: Folder for the checkpoint; None for none.
        resume: Go on from the checkpoint, if there is one, to the result of a run that was
            never interrupted. Without it an old checkpoint is deleted.
        identity: What decides the result besides flow, rows and settings: numbers, names, and
            nested mappings of them. A checkpoint of anything else is refused by name. A flow's
            class and its ``arguments``, all settings, and every value of the rows are always
            compared.
        on_event: Called with each ``Event``, in the main process.
        watch: Called after each step with its number and the averaged flow, which it may measure
            but must leave as it is; its time does not count.
        begun: When it all began, by ``time.perf_counter``, if that was before: ``minutes`` counts
            from then.

    The first Ctrl-C or SIGTERM stops after the current step; the checkpoint then holds the run
    as it was, to go on with, and the flow its best weights. For those it evaluates once more,
    unless there is a checkpoint, weights to keep were found before, and the last evaluation took
    more than 5 seconds. Then the signal goes where it would have gone: KeyboardInterrupt, the
    end of the process, or a handler of yours. Within a ``StopSignals`` context it waits for that
    context's end, and there is a result first, with ``interrupted``.

    Raises:
        TrainingError: If the loss is not finite even after three steps back.
        CheckpointError: If the checkpoint is damaged or of another run.
        LockedError: If another run is using the checkpoint's folder.
        ValueError: If an argument is wrong.
    """
    begun = time.perf_counter() if begun is None else begun
    settings = settings or TrainingSettings()
    device = choose_device(device)
    for name, rows in (("train_rows", train_rows), ("valid_rows", valid_rows)):
        if len(rows) == 0:
            raise ValueError(f"{name} is empty: give at least one row.")
    if resume and checkpoint is None:
        raise ValueError("resume needs checkpoint, the folder of the run to go on with.")
    folder = None if checkpoint is None else Path(checkpoint)
    mode = flow.training
    with (
        StopSignals() as signals,  # the first: passes a signal on when all else is done
        accelerator_on(device, settings.precision) as accelerator,
        own_random(device),
        locked(folder) if folder and accelerator.is_main_process else nullcontext(),
    ):
        run = _Run(flow, train_rows, valid_rows, settings, accelerator, on_event, begun)
        run.watch = watch
        if folder is not None:
            run.keep_in(folder, identity or {})
        try:
            return run.go(resume, signals)
        finally:
            flow.train(mode)


class _Run:
    """One call of ``train``: the flow, its average, Adam, and where they are."""

    def __init__(
        self,
        flow: nn.Module,
        train_rows: Rows,
        valid_rows: Rows,
        settings: TrainingSettings,
        accelerator: Any,
        on_event: Listener | None,
        begun: float,
    ) -> None:
        self.flow, self.valid_rows, self.settings = flow, valid_rows, settings
        self.train_rows = train_rows
        self.accelerator = accelerator
        self.keeper: Keeper | None = None
        self.world: int = accelerator.num_processes
        self.plan = Plan.of(len(train_rows), settings)
        main: bool = accelerator.is_main_process
        self.teller = Teller(on_event, self.plan) if on_event and main else None
        if self.plan.batch_size < self.world:
            raise ValueError(
                f"A batch of {self.plan.batch_size} rows cannot be shared by {self.world} "
                "processes: use fewer processes or a larger batch_size."
            )
        self.sampler = Sampler(
            train_rows, self.plan, settings.seed, accelerator.process_index, self.world
        )
        self.counters = Counters()
        self.clock = Clock(begun, settings, self.plan, self.counters, accelerator)
        self.plateau = Plateau(settings, self.counters)
        self.watch: Watch | None = None
        # Looking at a value on CUDA waits for it: there the loss is checked now and then only.
        self.check_every = 1 if accelerator.device.type == "cpu" else 10
        self.early: str | None = None
        self.cut_short = ""  # a remark about the last evaluation

    def keep_in(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Write checkpoints to the folder, and go on from none but this run's."""
        accelerator, settings = self.accelerator, self.settings
        rows = {"the training rows": self.train_rows, "the validation rows": self.valid_rows}
        place = {"device": accelerator.device.type, "processes": self.world}
        whole = identity_of(self.flow, rows, settings, identity, place)
        writes = accelerator.is_main_process
        self.keeper = Keeper(folder, whole, settings.checkpoint_seconds, writes)

    def go(self, resume: bool, signals: StopSignals) -> TrainingResult:
        """Prepare, train, and leave the best weights in the flow."""
        counters, keeper = self.counters, self.keeper
        resuming = resume and keeper is not None and keeper.found(self.accelerator)
        self.learner = Learner(
            self.flow,
            self.settings,
            self.accelerator,
            first=None if resuming else self.sampler.first,
        )
        resumed_at = None
        if keeper is not None and resuming:
            resumed_at = keeper.take_up(self.learner, counters)
        self.accelerator.wait_for_everyone()
        if keeper is not None and not resuming:
            keeper.clear()
        self.clock.resume()
        if self.teller is not None:
            self.teller.begin(counters.step)
        interrupted = False
        if counters.stopped is None:
            opening = "" if not resume else "No checkpoint to resume from: starting from step 0."
            self.tell("start", f"Resumed at step {resumed_at}." if resuming else opening)
            if self.settings.evaluate_start and not resuming:
                for event in self.evaluate(scheduled=True):
                    self.tell(*event)
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
        """Train until ``counters.stopped`` has a reason; whether that was a signal."""
        counters = self.counters
        while counters.stopped is None:
            self.step()
            wish, over = self.clock.agree(signals), self.clock.used_up()
            scheduled = counters.step % self.plan.evaluate_every == 0
            looks = scheduled or over or wish or counters.step % self.check_every == 0
            sound = not looks or self.sound()
            if over or (scheduled and sound):
                self.take_stock(scheduled, over, save=wish is not None)
            elif wish:
                self.look_once_more()
            elif sound and self.teller is not None and self.teller.due():
                self.tell("step")
            if wish and counters.stopped is None:
                counters.stopped = (
                    f"Interrupted by {wish} at step {counters.step}; the best weights are kept."
                )
                self.tell("interrupt", counters.stopped)
                return True
        return False

    def sound(self) -> bool:
        """Whether the losses were finite; if not, the run is back at its last good state."""
        if self.learner.healthy():
            return True
        self.step_back(LOSS)
        return False

    def take_stock(self, scheduled: bool, over: str | None, save: bool) -> None:
        """An evaluation that belongs to the run, by its schedule or at its end.

        Arguments:
            scheduled: Whether it counts for early stopping.
            over: A sentence, if the budget is used up.
            save: Whether a checkpoint is written even before it is due.
        """
        news = self.evaluate(scheduled)
        over = over or self.early or self.clock.used_up()
        if over:
            self.counters.stopped = over + self.cut_short
        if save or over or (self.keeper and self.keeper.due()):
            self.save()
        for event in news:  # after the checkpoint: who stops here finds this evaluation in it
            self.tell(*event)

    def look_once_more(self) -> None:
        """An evaluation that only a signal asks for: after the checkpoint, which is without it."""
        kept = self.save()
        quick = self.counters.evaluation_seconds <= QUICK
        if quick or not kept or self.counters.best is None:
            for event in self.evaluate(scheduled=False):
                self.tell(*event)

    def step(self) -> None:
        """Take the next step at its rate."""
        settings, counters = self.settings, self.counters
        rate = settings.learning_rate * warmup(counters.step, settings.warmup_steps)
        rate *= self.plateau.factor * counters.rate_factor
        if settings.schedule == "cosine":
            rate *= cosine(self.clock.progress())
        decay = ema_decay(counters.step, settings.ema)
        begun = time.perf_counter()
        late = self.clock.late if self.world == 1 else bool  # no process may leave a step alone
        batch = self.sampler.batch(counters.step)
        weights = self.sampler.weights(counters.step)
        if self.learner.step(counters.step, batch, rate, decay, late, weights):
            counters.step += 1
            counters.learning_rate = rate
            if self.watch is not None:
                looked = time.perf_counter()
                self.watch(counters.step, self.learner.averaged.module)
                looked = time.perf_counter() - looked
                self.clock.leave_out(looked)
                begun += looked
        self.clock.stepped(time.perf_counter() - begun)

    # -- evaluations, cuts and steps back

    def evaluate(self, scheduled: bool) -> News:
        """Score the average on the validation rows, and act on it; the events come back.

        Only scheduled evaluations count for early stopping, whose sentence is left in ``early``.
        """
        counters, learner, rows = self.counters, self.learner, self.valid_rows
        self.early, self.cut_short = None, ""
        if learner.steps == 0 and counters.history:
            return []  # just stepped back: nothing new
        begun = time.perf_counter()
        nats, bad, seen = learner.validate(rows, 4 * self.plan.batch_size, self.clock.late)
        self.clock.evaluated(time.perf_counter() - begun)
        if not math.isfinite(nats):
            if not counters.step:
                return []  # of a start that is no candidate; there is nothing to step back to
            which = f"{bad} of {len(rows)}" if bad else "all"
            self.step_back(f"the log-probability of {which} validation rows was not finite")
            return []
        if seen < len(rows):
            if counters.history:
                self.cut_short = " There was no time for the last evaluation."
                return []  # on other rows than those before: no number to compare
            self.cut_short = f" There was time to validate {seen:,} of {len(rows):,} rows only."
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
            cuts = self.counters.cuts
            after = "" if not cuts else f" after {cuts} cut{'s'[: cuts > 1]} of the learning rate"
            self.early = f"Stopped early: {reason}{after}."
        if verdict != "cut":
            return []
        self.learner.go_to_best()
        sentence = (
            f"There was {reason}: back to the best weights (of step {self.counters.best_step}) "
            f"at {self.plateau.factor:.2g} of the learning rate."
        )
        return [("cut", sentence, None)]

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
        sentence = (
            f"At step {counters.step} {trouble}: back to the state of step {counters.good_step}, "
            "going on at half the learning rate."
        )
        counters.recoveries.append(sentence)
        self.learner.go_back()
        self.tell("recovery", sentence)

    # -- checkpoints and events

    def save(self) -> bool:
        """Write the checkpoint, from the main process; whether it is there, for all processes."""
        keeper = self.keeper
        if keeper is None:
            return False
        if keeper.writes:
            trouble = keeper.save(self.learner, self.counters)
            if trouble:
                self.tell("unsaved", trouble)
            elif not keeper.failing:
                self.tell("checkpoint")
        (there,) = self.clock.most([float(keeper.kept == self.counters.step)])
        return bool(there)

    def tell(self, kind: Kind, message: str = "", record: dict[str, Any] | None = None) -> None:
        """Pass an event on to the listener, if there is one."""
        if self.teller is not None:
            nats = record["train_nats"] if record else self.learner.mean()
            self.teller.tell(
                kind, self.counters, min(self.clock.progress(), 1.0), nats, message, record
            )
