"""One fit at a time in a folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["LOCK", "LockedError", "locked"]

LOCK = "lock"


class LockedError(ValueError):
    """Another fit is writing to the folder; the message says which."""


@contextmanager
def locked(folder: str | os.PathLike[str], file: Path | None = None) -> Iterator[None]:
    """Keep other fits out of a folder, on this machine and where the file system can, on others.

    The lock is the operating system's: it goes with the process, however that ends.

    Arguments:
        folder: What to keep to oneself, named in the message.
        file: The lock itself; by default ``lock`` inside the folder, which is made for it. What is
            made for it and empty in the end is removed.

    Raises:
        LockedError: If another fit has it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with locked(folder), locked(folder):
        ...     pass
        Traceback (most recent call last):
        ...
        quarflow.training.lock.LockedError: Another fit is writing to ...
        >>> folder.exists()
        False
    """
    from filelock import FileLock, Timeout  # which torch needs too

    file = Path(folder) / LOCK if file is None else file
    made = [parent for parent in (file.parent, *file.parent.parents) if not parent.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    # thread_local=False: the lock may be released by a generator closed in another thread
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise LockedError(
            f"Another fit is writing to {os.fspath(folder)}: wait for it to end, stop it, "
            "or choose another folder."
        ) from None
    except NotImplementedError:
        warnings.warn(
            f"The file system of {file.parent} has no locks: nothing keeps two fits from writing "
            "there at the same time.",
            stacklevel=3,
        )
    try:
        yield
    finally:
        with suppress(OSError):  # removed while held, so that no one else's lock is removed
            if lock.is_locked:
                file.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # not empty: someone has come to need it
            for parent in made:
                parent.rmdir()
