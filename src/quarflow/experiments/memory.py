"""The meter of memory: the peak of a piece of code; and a limit for a process."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Peak", "free_unused", "limit_memory"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """The most memory that a block held beyond what was held before it.

    On CUDA what torch allocated; elsewhere the resident memory, whose high-water mark is reset
    before, as only Linux can.

    Arguments:
        device: "cpu" or "cuda".
        fresh: Whether the process is a fresh one, that never held more than now: then the mark
            tells as much where it cannot be reset. Otherwise ``bytes`` stays None there.

    Attributes:
        before, bytes: Held before, and the most beyond it.

    Example:
        >>> with Peak() as peak:
        ...     block = bytearray(b"x") * (64 << 20)
        >>> peak.bytes is None or (60 << 20) < peak.bytes < (160 << 20)
        True
    """

    def __init__(self, device: str = "cpu", fresh: bool = False) -> None:
        self.device, self.fresh = device, fresh
        self.before: int | None = None
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        gc.collect()
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        free_unused()
        try:
            CLEAR.write_text("5")  # resets VmHWM
            self.before = _status("VmRSS")
        except OSError:
            self.before = _most_resident() if self.fresh else None

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.before is None:
            return
        if self.device != "cpu":
            import torch

            most = torch.cuda.max_memory_allocated()
        else:
            most = _most_resident()
        self.bytes = max(most - self.before, 0)


def _most_resident() -> int:
    """Bytes this process held at most, since the mark was reset."""
    if STATUS.exists():  # of this program alone, not of the one that started it
        return _status("VmHWM")
    import resource  # not on Windows, which has no such figure

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    return peak if sys.platform == "darwin" else peak * 1024


def _status(name: str) -> int:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} has no {name}")


def free_unused() -> None:
    """Hand freed memory back to the system, where the C library can."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def limit_memory(gibibytes: float) -> None:
    """Let this process fail, rather than the machine, where it asks for more (Linux)."""
    if sys.platform.startswith("linux"):
        import resource

        size = int(gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
