"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from quarflow.backends.cpu.build import library, status

__all__ = ["cores", "machine", "memory_gibibytes"]


def memory_gibibytes() -> float:
    """Memory of the machine; 8 where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return 8.0


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))

    return os.cpu_count() or 1


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, memory, system, Python, kernels and how busy it is, as JSON knows them.

    Example:
        >>> sorted(machine("cpu"))
        ['cores', 'device', 'kernels', 'load', 'memory_gib', 'processor', 'python', 'system']
    """
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(memory_gibibytes(), 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": device,
        "kernels": "in use" if library() is not None else status(),
        # Of the last minute: what else was running when the measuring began.
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
    if device != "cpu":
        import torch

        found["device"] = torch.cuda.get_device_name()

    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()

    return platform.processor() or "unknown"
