"""Kernels in C++ for processors, compiled where they run; without a compiler torch does it all."""

from quarflow.native.build import status

__all__ = ["status"]
