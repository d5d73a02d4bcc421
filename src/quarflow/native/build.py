"""Compiling the kernels, once for each machine and version, and loading them."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from quarflow.allocator import keep_freed_memory

__all__ = ["library", "status"]

SOURCES = Path(__file__).parent / "kernels"
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp"),
    *("-ffp-contract=fast", "-fno-math-errno"),  # no more of -ffast-math: NaN must stay NaN
)
PATIENCE = 300  # seconds for the compiler
OFF = ("0", "no", "off", "false")

log = logging.getLogger(__name__)


class _Build(NamedTuple):
    library: ctypes.CDLL | None
    status: str


def library() -> ctypes.CDLL | None:
    """The kernels, compiled if need be; None where they cannot be had, see :func:`status`."""
    return _build().library


def status() -> str:
    """Whether the kernels are in use, and why not, in a few words.

    Example:
        >>> isinstance(status(), str)
        True
    """
    return _build().status


@cache
def _build() -> _Build:
    """Compile, unless that was done, and load.

    The compiled library lies in ``native/`` of the cache folder (``QUARFLOW_CACHE``, else
    ``XDG_CACHE_HOME/quarflow``, else ``~/.cache/quarflow``, else one in the folder for temporary
    files), under a name that tells sources, flags, compiler and processor apart.
    ``QUARFLOW_NATIVE=0`` turns the kernels off.
    """
    if os.environ.get("QUARFLOW_NATIVE", "1").strip().lower() in OFF:
        return _Build(None, "not used: QUARFLOW_NATIVE turns them off")
    if sys.platform != "linux":
        return _Build(None, f"not used: not tried on {sys.platform} yet")
    compiler = _compiler()
    if compiler is None:
        return _Build(None, "not used: no C++ compiler (g++ or c++; or set CXX)")
    try:
        # torch's threads are those of an OpenMP library that it has loaded for everybody: by
        # not linking another one the kernels share them, instead of fighting with them.
        import torch  # noqa: F401

        # What the kernels' results lie in is as large as a layer, and freed after each step.
        keep_freed_memory()
        path = _compiled(compiler)
        kernels = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # no home: RuntimeError
        detail = str(getattr(error, "stderr", None) or error)
        log.warning("The kernels could not be compiled; torch is used instead. %s", detail)
        return _Build(None, f"not used: {detail.strip().splitlines()[-1][:200]}")

    return _Build(kernels, f"compiled by {Path(compiler).name}, {path}")


def _compiler() -> str | None:
    # GCC: torch brings its OpenMP, of which clang knows nothing.
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    found = (shutil.which(name) for name in names)

    return next((path for path in found if path), None)


def _compiled(compiler: str) -> Path:
    """Where the compiled library is; it is made by one process, and others wait for it."""
    from filelock import FileLock  # which torch needs too

    folder = _cache_folder()
    path = folder / f"kernels-{_key(compiler)}.so"
    if path.exists():
        return path
    with FileLock(f"{path}.lock"):
        if not path.exists():
            log.info("Compiling the kernels with %s, once: %s", compiler, path)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                objects = []
                for source in sorted(SOURCES.glob("*.cpp")):
                    objects.append(f"{scratch}/{source.stem}.o")
                    _run(compiler, *FLAGS, "-c", str(source), "-o", objects[-1])
                made = Path(scratch) / "kernels.so"
                # Without -fopenmp: its functions are those that torch has loaded.
                _run(compiler, "-shared", *objects, "-o", str(made))
                made.replace(path)

    return path


def _cache_folder() -> Path:
    """Where compiled kernels are kept: as asked for, else in the user's cache, else in /tmp."""
    asked = os.environ.get("QUARFLOW_CACHE")
    if asked:
        return _private(Path(asked) / "native")
    try:
        caches = os.environ.get("XDG_CACHE_HOME")
        return _private((Path(caches) if caches else Path.home() / ".cache") / "quarflow/native")
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return _private(Path(tempfile.gettempdir()) / f"quarflow-native-{os.getuid()}")


def _private(folder: Path) -> Path:
    """The folder, made if need be, if nobody else may write to it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(
            f"{folder} must belong to you and be writable by nobody else, since what lies there "
            f"is executed"
        )
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to")

    return folder


def _key(compiler: str) -> str:
    """Of everything that the result depends on."""
    parts = [" ".join(FLAGS).encode(), _run(compiler, "--version").encode()]
    parts += [p.read_bytes() for p in sorted(SOURCES.iterdir()) if p.suffix in (".h", ".cpp")]
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
        kinds = ("flags", "Features", "model name", "model", "CPU part")
        parts += [line.encode() for line in lines if line.split("\t")[0].strip() in kinds][:8]

    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _run(*command: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=PATIENCE
    ).stdout
