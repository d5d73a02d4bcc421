"""What is compared, in which cases, and how patiently."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quarflow.experiments.machine import cores, memory_gibibytes
from quarflow.experiments.speed.contestants import Contestant

__all__ = ["QUANTITIES", "QUICK", "REFERENCE", "Plan", "chosen"]

REFERENCE = "QuAR"  # sets the number of weights, and is what the others are divided by
QUANTITIES = ("train", "log_prob", "sample", "sample (default)", "memory", "load")


def _threads() -> int:
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() else cores()


@dataclass(frozen=True)
class Plan:
    """What is measured, and how patiently.

    Attributes:
        features, batches, quantities: The cases.
        rounds: How often each is measured, all models in turn; the median counts.
        seconds: How long one measurement lasts: fast calls are repeated.
        limit: Seconds that one case of one model may take in all.
        fit_steps, fit_seconds: How each model is fitted before it is measured.
        start_rounds: How often imports are measured; 0 for not at all.
        budget: Seconds for everything; cases that come too late are left out. None: no limit.
        threads, device: Where; OMP_NUM_THREADS, or all cores, unless given.
        gibibytes: Memory that one process may use.
    """

    features: tuple[int, ...] = (2, 8, 32, 128, 512)
    batches: tuple[int, ...] = (1, 256, 16_384)
    quantities: tuple[str, ...] = QUANTITIES
    rounds: int = 5
    seconds: float = 0.2
    limit: float = 60.0
    fit_steps: int = 300
    fit_seconds: float = 120.0
    start_rounds: int = 5
    budget: float | None = None
    threads: int = field(default_factory=_threads)
    device: str = "cpu"
    gibibytes: float = field(default_factory=lambda: round(0.7 * memory_gibibytes(), 1))


QUICK: dict[str, Any] = {
    "features": (8, 32),
    "batches": (256,),
    "quantities": ("train", "log_prob", "sample", "memory"),
    "seconds": 0.03,
    "limit": 6.0,
    "fit_steps": 100,
    "fit_seconds": 2.5,
    "start_rounds": 1,
    "budget": 95.0,  # what has begun is finished: two minutes in all
}


def chosen(
    contestants: Sequence[Contestant],
    names: Sequence[str] = (),
    *,
    compiled: bool = False,
    scaling: bool = True,
) -> list[Contestant]:
    """Those to compare: by name, or all but the compiled ones unless asked for.

    Arguments:
        contestants: All there are.
        names: Those asked for; none for the usual ones.
        compiled: Whether the compiled ones are among the usual ones.
        scaling: Whether those of a given width are among them, for how time grows with D.

    Raises:
        ValueError: if there is none of a name.

    Example:
        >>> from quarflow.experiments.speed.contestants import OURS
        >>> [c.name for c in chosen(OURS, scaling=False)]
        ['QuAR', 'ResidualFlow']
    """
    known = [c.name for c in contestants]
    for name in names:
        if name not in known:
            raise ValueError(f"There is no model {name!r}; there are {', '.join(known)}.")
    if names:
        return [c for c in contestants if c.name in {REFERENCE, *names}]

    return [
        c for c in contestants if (compiled or not c.compiled) and (scaling or c.width is None)
    ]
