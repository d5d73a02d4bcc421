"""Seeds: every random choice of a run follows from (seed, kind, numbers)."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["mix", "seeded"]


def mix(seed: int, kind: str, *numbers: int) -> int:
    """A hash of 63 bits: neighbouring seeds and steps give unrelated streams.

    Example:
        >>> mix(0, "noise", 1) != mix(1, "noise", 0)
        True
    """
    text = "/".join([str(seed), kind, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seeded(
    seed: int, kind: str, *numbers: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator that depends on nothing but the arguments."""
    return torch.Generator(device=device).manual_seed(mix(seed, kind, *numbers))
