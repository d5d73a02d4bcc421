"""How far a training is, and after its first updates how long all of it will take."""

from __future__ import annotations

from typing import Any

from quarflow.training import Event

__all__ = ["WORTH", "Progress", "forecast", "span"]

LINES = 10  # of progress, where there is no terminal for a bar
SURE = 1.0  # seconds of updates that a rate is told from; one update that takes ten times as long
WORTH = 60.0  # seconds; of shorter trainings nothing is foretold


def number(x: float) -> str:
    """Two digits, or the whole number.

    Example:
        >>> number(3.24), number(156.2)
        ('3.2', '156')
    """
    return f"{x:.2g}" if x < 10 else f"{x:.0f}"


def span(seconds: float) -> str:
    """A time, roughly.

    Example:
        >>> [span(s) for s in (12.3, 500, 20_000, 280_000, 9e7)]
        ['12 s', '8.3 minutes', '5.6 hours', '3.2 days', '2.9 years']
    """
    for unit, size in (("years", 31_557_600), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{number(seconds / size)} {unit}"

    return f"{seconds:.0f} s"


def forecast(whole: str, updates: float, rate: float, minutes: float | None) -> str:
    """One sentence: what all of it takes, and what a time budget lets of it.

    Arguments:
        whole: All of it, in words.
        updates: All of it, in updates.
        rate: Seconds of an update.
        minutes: The time budget, if there is one.

    Example:
        >>> forecast("300 epochs", 276_000, 1.0, 120)
        '300 epochs take about 3.2 days at this rate (1 s an update); --minutes 120 will stop it.'
        >>> forecast("1,000 updates", 1000, 0.25, None)
        '1,000 updates take about 4.2 minutes at this rate (0.25 s an update).'
    """
    sentence = (
        f"{whole} take about {span(rate * updates)} at this rate ({number(rate)} s an update)"
    )
    stopped = minutes is not None and 60 * minutes < rate * updates

    return sentence + (f"; --minutes {minutes:g} will stop it." if stopped else ".")


class Progress:
    """Context that shows a training: pass it as ``on_event``.

    A bar on a terminal, some lines elsewhere, and the sentence of :func:`forecast` once.

    Arguments:
        run: Prints.
        label: Under which name.
        whole: What all of it is, in words.
        part: Which part of the training's budget of updates that is.
        minutes: Its time budget, if it has one.
    """

    def __init__(
        self, run: Any, label: str, whole: str, part: float = 1.0, minutes: float | None = None
    ) -> None:
        self.run, self.label, self.whole = run, label, whole
        self.part, self.minutes = part, minutes
        self.shown = 0
        self.first: Event | None = None  # that the rate is told from
        self.foretold = False
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.run.console.is_terminal and not self.run.quiet:
            from rich.progress import Progress as Bar

            columns: list[Any] = [*Bar.get_default_columns()[:3], "{task.fields[note]}"]
            self._bar = Bar(*columns, console=self.run.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=1.0, note="")

        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if event.message and event.kind != "end":
            self.run.say(f"{self.label}: {event.message}")
        if event.kind == "end" and not event.step:
            self.run.say(f"{self.label}: there was no time for a single update.")
        if event.step and not self.foretold:
            self._foretell(event)
        nats, left = event.nats, event.seconds_left
        notes = ["" if nats is None else f"{nats:.3f} nats"]
        notes += ["" if left is None else f"{span(left)} left"]
        note = ", ".join(filter(None, notes))
        if self._bar is not None:
            self._bar.update(self._task, completed=event.progress, note=note)
        elif int(LINES * event.progress) > self.shown:
            self.shown = int(LINES * event.progress)
            self.run.say(f"{self.label}: update {event.step:,}  {note}")

    def _foretell(self, event: Event) -> None:
        """Say how long it will take, as soon as the rate is known."""
        first = self.first
        if first is None:  # it takes longer than the others; if it took ages, so will they
            self.first = event
            steps, seconds = event.step, event.seconds
            if seconds < 10 * SURE or steps > 2:
                return
        else:
            steps, seconds = event.step - first.step, event.seconds - first.seconds
            if not steps or seconds < SURE:
                return
        self.foretold = True
        updates, rate = self.part * event.total_steps, seconds / steps
        if updates * rate >= WORTH:
            self.run.say(f"{self.label}: {forecast(self.whole, updates, rate, self.minutes)}")
