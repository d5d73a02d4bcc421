"""The timer: calls one after another, and several things in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

__all__ = ["in_turn", "median_seconds", "processor_ratio", "seconds_per_call"]

Work = Callable[[], object]
Clock = Callable[[], float]


def seconds_per_call(
    work: Work, calls: int = 1, wait: Work | None = None, clock: Clock = time.perf_counter
) -> float:
    """Mean seconds of some calls in a row.

    Arguments:
        work: What is timed.
        calls: How often.
        wait: Waits for the device, before and after.
        clock: ``time.process_time`` for processor seconds.

    Example:
        >>> seconds_per_call(lambda: time.sleep(0.01), calls=2) >= 0.01
        True
    """
    if wait is not None:
        wait()
    begun = clock()
    for _ in range(calls):
        work()
    if wait is not None:
        wait()

    return (clock() - begun) / calls


def in_turn(
    works: Mapping[str, Work], repeats: int, warm_up: int = 1, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each repeat, A B C A B C ..., after rounds that are not counted.

    Arguments:
        works: What to time, by name.
        repeats: How often each is timed.
        warm_up: Rounds before that.
        clock: Seconds from any start.

    Example:
        >>> {name: len(seconds) for name, seconds in in_turn({"a": int, "b": int}, 3).items()}
        {'a': 3, 'b': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + warm_up):
        for name, work in works.items():
            taken = seconds_per_call(work, clock=clock)
            if repeat >= warm_up:
                seconds[name].append(taken)

    return seconds


def median_seconds(work: Work, repeats: int, clock: Clock = time.perf_counter) -> float:
    """Median time of one thing, after a call that is not counted.

    Arguments:
        work: What to time.
        repeats: How often.
        clock: Seconds from any start.
    """
    return median(in_turn({"": work}, repeats, clock=clock)[""])


def processor_ratio(above: Work, below: Work, rounds: int) -> float:
    """Median over rounds of the ratio of processor times, after one round that is not counted.

    Arguments:
        above, below: What takes turns.
        rounds: How often.

    Example:
        >>> processor_ratio(lambda: sum(range(50_000)), lambda: sum(range(1_000)), rounds=3) > 1
        True
    """
    seconds = in_turn({"above": above, "below": below}, rounds, clock=time.process_time)

    return median([a / b for a, b in zip(seconds["above"], seconds["below"], strict=True)])
