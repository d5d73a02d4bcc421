"""Compiling the kernels, once for each machine and version, and loading them."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from quarflow.backends.cpu import cache as kept
from quarflow.backends.cpu.allocator import keep_freed_memory

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


@cache
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

    return _Build(kernels, f"compiled by {shlex.join(compiler)}, {path}")


def _compiler() -> list[str] | None:
    """The command, with its path and what CXX says after it, as in ``ccache g++ -m64``."""
    # GCC: torch brings its OpenMP, of which clang knows nothing.
    asked = shlex.split(os.environ.get("CXX", ""))
    for name, *arguments in [asked] if asked else [["g++"], ["c++"]]:
        path = shutil.which(name)
        if path:
            return [path, *arguments]

    return None


def _flags() -> list[str]:
    """Those of all, then what ``QUARFLOW_CXXFLAGS`` adds: sanitizers, another optimisation."""
    return [*FLAGS, *shlex.split(os.environ.get("QUARFLOW_CXXFLAGS", ""))]


def _compiled(compiler: Sequence[str]) -> Path:
    """Where the compiled library is; it is made by one process, and others wait for it."""
    return kept.find_or_make(f"kernels-{_key(compiler)}.so", lambda path: _make(compiler, path))


def _make(compiler: Sequence[str], path: Path) -> None:
    log.info("Compiling the kernels with %s, once: %s", shlex.join(compiler), path)
    flags, objects = _flags(), []
    for source in sorted(SOURCES.glob("*.cpp")):
        objects.append(str(path.with_name(f"{source.stem}.o")))
        _run(*compiler, *flags, "-c", str(source), "-o", objects[-1], scratch=path.parent)
    # Without -fopenmp: its functions are those that torch has loaded.
    linked = [flag for flag in flags if flag != "-fopenmp"]
    _run(*compiler, *linked, "-shared", *objects, "-o", str(path), scratch=path.parent)


def _key(compiler: Sequence[str]) -> str:
    """Of everything that the result depends on."""
    parts = [shlex.join([*compiler[1:], *_flags()]).encode()]
    parts += [_run(*compiler, "--version").encode()]
    parts += [p.read_bytes() for p in sorted(SOURCES.iterdir()) if p.suffix in (".h", ".cpp")]
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
        kinds = ("flags", "Features", "model name", "model", "CPU part")
        parts += [line.encode() for line in lines if line.split("\t")[0].strip() in kinds][:8]

    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _run(*command: str, scratch: Path | None = None) -> str:
    """What a command prints; its temporary files lie in the scratch folder too."""
    # What is loaded into this process, such as a sanitizer, is not meant for a compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    if scratch:
        environment["TMPDIR"] = str(scratch)

    return subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment,
    ).stdout
