"""Hugging Face Accelerate for one run, leaving its process-wide state as it was."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

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

    The group of processes is the exception: where there is none yet, Accelerate makes one, which
    serves every later run and ends with the process. (A second one would meet at the addresses
    of the first.) A group that the caller made is used, and left to the caller.

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
    had_group = has_group()
    if distributed.is_available():
        # Its defaults would keep the group of the moment it is first imported, which DDP does.
        import torch.distributed.nn  # noqa: F401
    try:
        accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision="bf16" if precision == "bf16" else "no"
        )
        if not had_group and has_group():
            atexit.register(end_group, [distributed.group.WORLD])
        yield accelerator
    finally:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)


def has_group() -> bool:
    """Whether this process belongs to a group that can communicate."""
    return distributed.is_available() and distributed.is_initialized()


def end_group(ours: list[Any]) -> None:
    """Leave a group while Python is whole, unless somebody ended it or put another in its place.

    A thread of the group may still have to let go of the last tensor it sent. If it gets to that
    only when Python is half gone, the process aborts, though all its work was done. The threads
    are waited for once nothing holds the group any more.

    Arguments:
        ours: The group alone, in a list that is empty afterwards.
    """
    if has_group() and distributed.group.WORLD is ours[0]:
        ours.clear()
        trouble = getattr(sys, "last_value", None)  # has been shown; it holds what it went through
        while trouble is not None:
            traceback.clear_frames(trouble.__traceback__)
            trouble = trouble.__cause__ or trouble.__context__
        gc.collect()  # what trained with it
        distributed.destroy_process_group()
