"""How freed memory is kept, which decides how fast chunk after chunk is computed."""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["keep_freed_memory"]

LARGEST = (32 << 20) - (64 << 10)  # glibc learns from blocks up to 32 MiB, their header included


@cache
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB for the next ones of their size; once.

    It hands the hidden layers of a chunk (a few MiB) back to the system, and asks for the same
    memory, page by page and zeroed, for the next: half the time of scoring in a fresh process.
    Once it has seen a large block freed, it keeps what is smaller (the dynamic threshold of
    mallopt(3)). Other C libraries are not changed by it; at most 64 MiB stay unreturned.

    Example:
        >>> keep_freed_memory()
    """
    torch.empty(LARGEST, dtype=torch.uint8)
