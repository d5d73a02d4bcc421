"""Progress on the terminal: a bar where there is one, a line per evaluation elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from quarflow.training.events import Event, Listener

__all__ = ["TrainingProgress", "describe"]

# Without a bar there are at most 20 lines, however long the run: 13 evaluations, evenly over
# it, 4 notices of what happened between, and its start, interruption and end.
SPACING, NOTICES = 1 / 12, 4


def describe(event: Event) -> str:
    """The numbers of an event in one line.

    Example:
        >>> describe(Event("step", "", 3, 250, 1000, 0.25, 12.0, 36.0, 5120.0, 1e-3, 4.5, 4.6))
        'epoch 3  train 4.500  best 4.600 nats  5,120 rows/s  0:36 left  rate 0.001'
    """
    parts = [f"epoch {event.epoch}"]
    if event.nats is not None:
        parts.append(f"train {event.nats:.3f}")
    if event.record is not None:
        parts.append(f"validation {event.record['valid_nats']:.3f}")
    if event.best is not None:
        parts.append(f"best {event.best:.3f}")
    if len(parts) > 1:
        parts[-1] += " nats"
    if event.rows_per_second:
        parts.append(f"{event.rows_per_second:,.0f} rows/s")
    if event.seconds_left is not None:
        parts.append(f"{clock(event.seconds_left)} left")
    parts.append(f"rate {event.learning_rate:.2g}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss.

    Example:
        >>> clock(59.6), clock(3725)
        ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TrainingProgress:
    """Context that shows training; pass it, or what it is called with, as ``on_event``.

    Arguments:
        verbose: False shows nothing, so that the caller needs no two cases.
        also: Another listener to pass each event on to.
        console: A ``rich.console.Console``; default: standard error.

    Example:
        >>> with TrainingProgress(verbose=False) as progress:
        ...     progress(Event("end", "Done.", 1, 1, 1, 1.0, 1.0, 0.0, 1.0, 0.0, None, None))
    """

    def __init__(
        self, verbose: bool = True, *, also: Listener | None = None, console: Any = None
    ) -> None:
        self.verbose, self.also, self._console = verbose, also, console
        self._bar: Any = None
        self._task: Any = None
        self._next = 0.0  # progress from which on an evaluation is shown
        self._notices = 0

    def __enter__(self) -> TrainingProgress:
        if not self.verbose:
            return self
        from rich.console import Console

        if self._console is None:
            self._console = Console(stderr=True)
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._bar = Progress(
                BarColumn(20),
                TaskProgressColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=1.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, message: str) -> None:
        """Show a sentence."""
        if self.verbose and self._console is not None:
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if self.verbose and self._console is not None:
            if self._bar is not None:
                self._bar.update(self._task, completed=event.progress, description=describe(event))
            for line in self._lines(event):
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        if self.also is not None:
            self.also(event)

    def _lines(self, event: Event) -> list[str]:
        """What to write of an event, beside the bar or instead of it."""
        lines = [event.message] if event.message else []
        if self._bar is not None:
            return lines
        if lines and event.kind not in ("start", "interrupt", "end"):
            self._notices += 1
            if self._notices >= NOTICES:
                last = self._notices == NOTICES
                lines = [f"{event.message} (Further notices are left out.)"] if last else []
        if event.kind == "evaluation" and event.progress >= self._next:
            self._next = event.progress + SPACING
            lines.append(describe(event))

        return lines
