"""Ctrl-C and SIGTERM as a wish to stop after the current step, passed on when that is done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """Context in which the first SIGINT or SIGTERM only sets ``received``.

    On leaving, the handlers that were there before are back and get the signal: by default
    SIGINT raises KeyboardInterrupt and SIGTERM ends the process, after what had to be kept was
    kept. A second signal does not wait: it goes to those handlers at once.

    A context inside another one shares its signal and leaves passing it on to the outermost.
    Handlers are installed in the main thread only. Signals that the program was started to
    ignore (``nohup``, a background job) stay ignored.

    Arguments:
        deliver: False leaves it to the caller to act on ``received`` after the context.

    Attributes:
        received: Name of the first signal, None if there was none.

    Example:
        >>> with StopSignals(deliver=False) as signals:
        ...     signal.raise_signal(signal.SIGINT)
        ...     signals.received
        'SIGINT'
        >>> before = signal.signal(signal.SIGTERM, lambda number, frame: print("passed on"))
        >>> with StopSignals():
        ...     signal.raise_signal(signal.SIGTERM)
        ...     print("this is done first")
        this is done first
        passed on
        >>> _ = signal.signal(signal.SIGTERM, before)
    """

    def __init__(self, deliver: bool = True) -> None:
        self.deliver = deliver
        self.received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            outer = getattr(previous, "__self__", None)
            if isinstance(outer, StopSignals):
                return outer  # which has installed itself, and outlives this one
            if previous is None or previous is signal.SIG_IGN:
                continue  # None: not installed from Python, could not be restored
            self._previous[number] = previous
            signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        number = None if self.received is None else signal.Signals[self.received]
        mine = number in self._previous
        self._restore()
        # an exception that ends the program anyway is not replaced by another one
        ending = kind is not None and not issubclass(kind, Exception)
        if number is not None and mine and self.deliver and not ending:
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
            return
        # the first one stays to be passed on in the end, should the process outlive this
        first = signal.Signals[self.received]
        previous = self._previous.copy()
        self._restore()
        self._previous = {first: previous[first]}
        signal.raise_signal(number)
