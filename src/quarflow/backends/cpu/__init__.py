"""Kernels in C++ for processors, compiled where they run; without a compiler torch does it all."""

from quarflow.backends.cpu.build import status

__all__ = ["status"]
