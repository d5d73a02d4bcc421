"""Peak memory of a piece of code, and a limit for a process."""

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

    On CUDA what torch allocated; on Linux the resident memory, whose high-water mark is reset
    before; elsewhere nothing can be told, and `bytes` stays None.

    >>> with Peak() as peak:
    ...     block = bytearray(b"x") * (64 << 20)
    >>> peak.bytes is None or (60 << 20) < peak.bytes < (160 << 20)
    True
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.bytes: int | None = None
        self._before: int | None = None

    def __enter__(self) -> Self:
        gc.collect()
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            free_unused()
            try:
                CLEAR.write_text("5")  # resets VmHWM
                self._before = _status("VmRSS")
            except OSError:
                self._before = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is None:
            return
        if self.device != "cpu":
            import torch

            self.bytes = torch.cuda.max_memory_allocated() - self._before
        else:
            self.bytes = max(_status("VmHWM") - self._before, 0)


def _status(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} has no {name}")


def free_unused() -> None:
    """Give freed memory back to the system, where the C library can."""
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
