"""Putting a new folder in the place of an old one, in one move or so that it can be finished."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

__all__ = ["exchange", "recover"]

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
OLD = ".old"  # ends the name of an old folder while the new one takes its place
# What tells that the two cannot be exchanged here, rather than that something is wrong.
UNABLE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


def exchange(new: Path, folder: Path) -> None:
    """Put ``new``, which lies beside it, in the place of ``folder``; what was there is deleted.

    On Linux the two change places in one move of the file system. Where there is no such move,
    there are two, and ``recover`` finishes what was cut off between them.

    Arguments:
        new: A folder beside ``folder``, named ``.{folder.name}.*``.
        folder: A folder, or nothing yet.

    Raises:
        OSError: If that cannot be done; ``folder`` is as it was.
    """
    _sync(new)
    if not folder.exists():
        os.rename(new, folder)
    elif _swap(new, folder):
        shutil.rmtree(new, ignore_errors=True)
    else:
        _two_moves(new, folder)
    _sync_entry(folder.parent)


def recover(folder: str | os.PathLike[str]) -> bool:
    """Finish an exchange that was cut off between its two moves; tell whether there was one.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> for name in (".model.1.tmp", ".model.1.tmp.old"):
        ...     (place / name).mkdir()
        >>> recover(place / "model"), [path.name for path in place.iterdir()]
        (True, ['model'])
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() or not folder.parent.is_dir():
        return False
    start = f".{folder.name}."
    for old in sorted(folder.parent.iterdir()):
        if old.name.startswith(start) and old.name.endswith(OLD) and old.is_dir():
            new = old.with_name(old.name.removesuffix(OLD))
            try:  # the new one was whole before the old one moved away
                os.rename(new if new.is_dir() else old, folder)
            except FileNotFoundError:  # another process is doing this
                return folder.exists()
            shutil.rmtree(old, ignore_errors=True)
            return True
    return False


def _swap(new: Path, folder: Path) -> bool:
    """Exchange two folders in one move; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # an old C library
        return False
    a, b = os.fsencode(new), os.fsencode(folder)
    if rename(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNABLE:
        return False
    raise OSError(code, os.strerror(code), os.fspath(folder))


def _two_moves(new: Path, folder: Path) -> None:
    old = new.with_name(new.name + OLD)
    try:
        os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:  # Ctrl-C between the two included
        if folder.exists() and not new.exists():
            return  # a reader found the place empty, and finished this
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bring all files in a folder to the disk, so that no rename gets there before them."""
    for where, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(where, name), "rb+") as file:
                os.fsync(file.fileno())
        _sync_entry(Path(where))


def _sync_entry(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
