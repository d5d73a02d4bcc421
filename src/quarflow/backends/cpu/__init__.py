"""Kernels in C++ for processors, compiled where they run; without a compiler torch does it all."""

from quarflow.backends.cpu.bounds import product_bound, product_gradients
from quarflow.backends.cpu.build import status
from quarflow.backends.cpu.calls import takes
from quarflow.backends.cpu.chain import branch, chain_backward, chain_forward, solve
from quarflow.backends.cpu.packing import assemble, collect
from quarflow.backends.cpu.pixels import pixels_backward, pixels_forward

__all__ = [
    "assemble",
    "branch",
    "chain_backward",
    "chain_forward",
    "collect",
    "pixels_backward",
    "pixels_forward",
    "product_bound",
    "product_gradients",
    "solve",
    "status",
    "takes",
]
