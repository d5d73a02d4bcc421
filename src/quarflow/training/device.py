"""Hugging Face Accelerate for one run, leaving its process-wide state as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["accelerator_on", "choose_device", "is_main_process", "own_random"]

# How torchrun and MPI tell a process which it is, and how many there are; as Accelerate reads it.
LAUNCHERS = (
    ("WORLD_SIZE", "RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
)


def choose_device(device: str) -> str:
    """Turn "auto" into "cuda" or "cpu".

    Raises:
        ValueError: If the device is none of "auto", "cpu", "cuda", or there is no CUDA device.

    Example:
        >>> choose_device("cpu")
        'cpu'
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}.")
    if device == "auto":
        wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        return "cuda" if torch.cuda.is_available() and not wants_cpu else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but PyTorch finds no CUDA device; use device='auto'.")
    return device


def is_main_process() -> bool:
    """Whether this process is the first of those that were launched together, or alone.

    By the launcher's variables, so that it can be known before anything is set up.

    Example:
        >>> is_main_process()
        True
    """
    for size, rank in LAUNCHERS:
        if int(os.environ.get(size, 1)) > 1:
            return int(os.environ.get(rank, 0)) == 0
    return True


@contextmanager
def own_random(device: str) -> Iterator[None]:
    """Keep the seeding of each step (for flows with random estimators) from the caller."""
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def accelerator_on(device: str, precision: str = "float32") -> Iterator[Any]:
    """An ``accelerate.Accelerator`` on "cpu" or "cuda", alone or under ``accelerate launch``.

    Accelerate keeps its choice of device for the life of the process, and refuses another one.
    So its state is set aside here, and put back afterwards: a run on the CPU can follow one on
    CUDA, and a caller who uses Accelerate too finds everything as it was.

    Example:
        >>> with accelerator_on("cpu") as accelerator:
        ...     accelerator.device.type
        'cpu'
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [s._shared_state for s in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield Accelerator(
            cpu=device == "cpu", mixed_precision="bf16" if precision == "bf16" else "no"
        )
    finally:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)
