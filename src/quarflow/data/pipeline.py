"""Reading and writing beside the work in the middle: one thread each, few pieces under way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["Ahead", "Behind"]

Item = TypeVar("Item")
DEPTH = 2  # pieces that wait: one to take at once, one to come
WAIT = 0.1  # seconds between looks at whether the other side has given up


class Ahead(Generic[Item]):
    """Iterate over pieces that a thread fetches before they are asked for.

    Order is kept, and an error comes where its piece would have come. Leaving the block stops
    the thread, after the piece it is at.

    Arguments:
        pieces: Runs in the thread.
        depth: Pieces that wait at most.

    Example:
        >>> with Ahead(iter(range(4))) as numbers:
        ...     list(numbers)
        [0, 1, 2, 3]
    """

    def __init__(self, pieces: Iterator[Item], depth: int = DEPTH) -> None:
        self._pieces = pieces
        self._ready: queue.Queue[tuple[Item | None, BaseException | None, bool]]
        self._ready = queue.Queue(depth)
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._fetch, name="read ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[Item]:
        while True:
            piece, error, more = self._ready.get()
            if error is not None:
                raise error
            if not more:
                return
            yield piece  # type: ignore[misc]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._given_up.set()
        self._thread.join()

    def _fetch(self) -> None:
        try:
            for piece in self._pieces:
                if not self._offer((piece, None, True)):
                    return
            self._offer((None, None, False))
        except BaseException as error:  # raised again where the piece is taken
            self._offer((None, error, False))

    def _offer(self, item: tuple[Item | None, BaseException | None, bool]) -> bool:
        """Put it where it is taken from; False if nobody will take it."""
        while not self._given_up.is_set():
            try:
                self._ready.put(item, timeout=WAIT)
                return True
            except queue.Full:
                continue

        return False


class Behind(Generic[Item]):
    """Hand pieces to a thread that deals with them one after the other.

    What goes wrong there is raised at the next ``put``, or at the end of the block; the block ends
    when all is done. If the block itself fails, what waits is dropped.

    Arguments:
        deal: Called with each piece, in the thread.
        depth: Pieces that wait at most.

    Example:
        >>> found = []
        >>> with Behind(found.append) as out:
        ...     for number in range(4):
        ...         out.put(number)
        >>> found
        [0, 1, 2, 3]
    """

    def __init__(self, deal: Callable[[Item], object], depth: int = DEPTH) -> None:
        self._deal = deal
        self._waiting: queue.Queue[tuple[Item | None, bool]] = queue.Queue(depth)
        self._given_up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write behind", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def put(self, piece: Item) -> None:
        """Hand over a piece; waits while too many are under way."""
        self._offer((piece, True))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._offer((None, False))
                self._thread.join()
        finally:  # an interrupt while waiting, too, must not leave the thread writing
            self._given_up.set()
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _offer(self, item: tuple[Item | None, bool]) -> None:
        while self._error is None:
            try:
                self._waiting.put(item, timeout=WAIT)
                return
            except queue.Full:
                continue
        raise self._error

    def _run(self) -> None:
        while not self._given_up.is_set():
            try:
                piece, more = self._waiting.get(timeout=WAIT)
            except queue.Empty:
                continue
            if not more:
                return
            try:
                self._deal(piece)  # type: ignore[arg-type]
            except BaseException as error:
                self._error = error
                return
