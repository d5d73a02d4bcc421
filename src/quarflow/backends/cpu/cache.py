"""Where compiled kernels are kept: only what is whole and the user's own is ever loaded.

Loading a library runs it, and reading one that was cut off ends the process. So beside each one
stands what it must be, its size and its checksum, and what differs is made anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["find_or_make", "folder"]

SCRATCH = ".scratch-"  # in the name of a folder that a file is made in


def find_or_make(name: str, make: Callable[[Path], None]) -> Path:
    """The file of this name in the cache; one process makes it, and others wait for it.

    Arguments:
        name: Of the file; it must tell apart whatever its content depends on.
        make: Writes it to the path it is given, in a folder of its own that is removed later.

    Raises:
        PermissionError: if the folder or a file in it is not safe to load from.
    """
    from filelock import FileLock  # which torch needs too

    path = folder() / name
    if _whole(path):
        return path
    with FileLock(_lock(path)):
        _remove_remains(path)
        if not _whole(path):
            # A new name each time: a compiler may have outlived a process that was killed.
            scratch = Path(tempfile.mkdtemp(prefix=name + SCRATCH, dir=path.parent))
            try:
                made = scratch / name
                make(made)
                _keep(made, path)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    return path


def folder() -> Path:
    """Where files are kept, absolute.

    It is ``native/`` in what ``QUARFLOW_CACHE`` names, else in ``quarflow/`` of
    ``XDG_CACHE_HOME``, which counts only if it is absolute, as its specification asks, else of
    ``~/.cache``; one in the folder for temporary files if that cannot be written to.

    Reference:
        XDG Base Directory Specification, https://specifications.freedesktop.org/basedir-spec/

    Raises:
        PermissionError: if others could write there.
    """
    asked = os.environ.get("QUARFLOW_CACHE")
    if asked:
        return _private(Path(asked).absolute() / "native")
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
        caches = caches if caches.is_absolute() else Path.home() / ".cache"
        return _private(caches.absolute() / "quarflow/native")
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return _private(Path(tempfile.gettempdir()) / f"quarflow-native-{os.getuid()}")


def _private(folder: Path) -> Path:
    """The folder, made if need be, if nobody else may write to it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_of_others(folder.stat(), folder)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to")

    return folder


def _refuse_of_others(found: os.stat_result, path: Path) -> None:
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(
            f"{path} must belong to you and be writable by nobody else, since what lies there "
            f"is executed"
        )


def _lock(path: Path) -> str:
    return f"{path}.lock"


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _read(path: Path) -> bytes | None:
    """The content of one's own plain file; None if there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _refuse_of_others(found, path)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(f"{path} is not a plain file: remove it")

        return file.read()


def _described(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()} {len(content)}\n".encode()


def _whole(path: Path) -> bool:
    """Whether the file is there, as it was when it was made."""
    expected, content = _read(_checksum(path)), _read(path)

    return expected is not None and content is not None and expected == _described(content)


def _keep(made: Path, path: Path) -> None:
    """Move a file to its place, so that after a crash it is there as a whole or made anew."""
    made.chmod(0o700)
    checksum = made.with_name("checksum")
    checksum.write_bytes(_described(made.read_bytes()))
    checksum.chmod(0o600)
    for file in (made, checksum):
        _sync(file)
    checksum.replace(_checksum(path))
    made.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_remains(path: Path) -> None:
    """Remove what processes that were killed while they made a file have left.

    The lock of the file at the path is held, so nobody who is alive makes that one; of others
    their locks tell.
    """
    from filelock import FileLock, Timeout

    for scratch in path.parent.glob(f"*{SCRATCH}*"):
        made = path.with_name(scratch.name.rsplit(SCRATCH, 1)[0])
        if made == path:
            shutil.rmtree(scratch, ignore_errors=True)
            continue
        try:
            with FileLock(_lock(made), timeout=0):
                shutil.rmtree(scratch, ignore_errors=True)
        except Timeout:
            continue
