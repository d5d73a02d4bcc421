"""The learning rate over a run, and what to do when the validation stops improving."""

from __future__ import annotations

import math
from typing import Literal

from quarflow.training.settings import TrainingSettings
from quarflow.training.state import Counters

__all__ = ["Plateau", "cosine", "ema_decay", "progress", "warmup"]


def warmup(step: int, steps: int) -> float:
    """A factor that rises linearly from 1 / steps at step 0 to 1.

    Example:
        >>> [warmup(step, 4) for step in (0, 1, 3, 9)]
        [0.25, 0.5, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / steps) if steps else 1.0


def cosine(done: float) -> float:
    """A factor that falls from 1 to 0 along half a cosine while ``done`` goes from 0 to 1.

    Example:
        >>> [round(cosine(done), 3) for done in (0, 0.5, 1, 2)]
        [1.0, 0.5, 0.0, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


def progress(step: int, total_steps: int, seconds: float, minutes: float | None) -> float:
    """The used fraction of whichever budget is used most: steps or time.

    Arguments:
        step, total_steps: Taken, and at most.
        seconds: Used so far.
        minutes: Time budget; None for none.

    Example:
        >>> progress(10, 100, 30.0, 1.0)
        0.5
    """
    done = step / total_steps
    return max(done, seconds / (60 * minutes)) if minutes else done


def ema_decay(step: int, decay: float) -> float:
    """The decay at a step: at first over the last tenth of the steps, to forget the start.

    Example:
        >>> ema_decay(0, 0.999), ema_decay(10**6, 0.999)
        (0.1, 0.999)
    """
    return min(decay, (1 + step) / (10 + step))


class Plateau:
    """Counts evaluations without improvement, and says when to cut the rate or stop.

    Arguments:
        settings: For ``patience``, ``cuts``, ``cut_factor`` and ``min_improvement``.
        counters: Where the counts are kept, so that a checkpoint has them: ``reference`` (the nats
            that the next evaluations have to beat), ``stale`` and ``cuts``.

    Example:
        >>> plateau = Plateau(TrainingSettings(patience=2, cuts=1), Counters())
        >>> [plateau.update(nats) for nats in (5.0, 4.0, 4.1, 4.2, 4.1, 4.1)]
        ['go on', 'go on', 'go on', 'cut', 'go on', 'stop']
        >>> plateau.factor
        0.3
    """

    def __init__(self, settings: TrainingSettings, counters: Counters) -> None:
        self.settings, self.counters = settings, counters

    @property
    def factor(self) -> float:
        """What the cuts so far multiply the learning rate by."""
        return self.settings.cut_factor**self.counters.cuts

    def update(self, nats: float) -> Literal["go on", "cut", "stop"]:
        """The verdict once the next evaluation is taken into account."""
        settings, at = self.settings, self.counters
        if at.reference is None or nats < at.reference - settings.min_improvement:
            at.reference, at.stale = nats, 0
            return "go on"
        at.stale += 1
        if not settings.patience or at.stale < settings.patience:
            return "go on"
        if at.cuts >= settings.cuts:
            return "stop"
        at.cuts += 1
        at.stale = 0
        return "cut"
