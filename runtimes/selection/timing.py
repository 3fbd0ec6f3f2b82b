"""Timing of candidates side by side, so that a disturbance hits them all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from edgecodec.arrays import Float32Array

_T = TypeVar("_T")

MAX_WARM_UP = 4
STABLE = 0.9
"""A warm-up run is the last when it takes more than this share of the one before."""

HOPELESS = 3.0
"""A candidate this many times slower than the best after warm-up is not run again."""

MAX_ROUNDS = 15


@dataclass
class Timing:
    """What was measured of one candidate.

    Attributes:
        samples: seconds of each timed run.
        warm_up: seconds of each run before those.
        failure: what it raised; it is not run again then.
    """

    samples: list[float] = field(default_factory=list)
    warm_up: list[float] = field(default_factory=list)
    failure: Exception | None = None

    @property
    def median_s(self) -> float | None:
        """Median of the timed runs, else the best warm-up run, else None."""
        if self.failure is not None:
            return None
        if self.samples:
            return statistics.median(self.samples)
        return min(self.warm_up, default=None)

    @property
    def high_s(self) -> float | None:
        """Upper end of the median's interval; the slowest run where there are too few for one."""
        if self.failure is not None:
            return None
        if self.interval is not None:
            return self.interval[1]
        return max(self.samples) if self.samples else self.median_s

    @property
    def interval(self) -> tuple[float, float] | None:
        """Confidence interval of the median, by order statistics, of about 95 %.

        None below six runs, which cannot give one.
        """
        ordered, count = sorted(self.samples), len(self.samples)
        if count < 6:
            return None
        rank = int((count - 1.96 * math.sqrt(count)) / 2)
        return ordered[rank], ordered[-1 - rank]


def repeated(value: Float32Array, height: int, width: int) -> Float32Array:
    """Repeat (1, h, w, C) to a size, as a workload."""
    times = (1, -(-height // value.shape[1]), -(-width // value.shape[2]), 1)
    return np.ascontiguousarray(np.tile(value, times)[:, :height, :width])


def time_side_by_side(
    candidates: Sequence[Callable[[], object]],
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Warm up each candidate, then run them in turns until the fastest is clear.

    It is clear when no other's interval of the median reaches into its own; those that are out
    are not run again. Otherwise the budget, or a number of rounds, ends it. Every candidate runs
    at least once, and is timed at least once after that, unless it is hopeless or its first run
    took the whole budget: on a machine so busy it must end all the same.

    Args:
        candidates: functions to time.
        budget_s: seconds for all of it.
        clock: source of seconds.
    """
    timings = [Timing() for _ in candidates]
    start = clock()
    share = 0.5 * budget_s / max(1, len(candidates))
    for run, timing in zip(candidates, timings, strict=True):
        _warm_up(run, timing, share, clock)
    best = min((t.median_s for t in timings if t.median_s is not None), default=0.0)
    limit = min(HOPELESS * best, budget_s)
    racing = [
        (run, timing)
        for run, timing in zip(candidates, timings, strict=True)
        if timing.failure is None and min(timing.warm_up) <= limit
    ]
    for turn in range(MAX_ROUNDS):
        if turn and clock() - start >= budget_s:
            break
        for run, timing in _rotated(racing, turn):
            _sample(run, timing, timing.samples, clock)
        racing = _still_racing(racing)
        if len(timings) > 1 and len(racing) == 1 and racing[0][1].interval is not None:
            break
    return timings


def _still_racing(
    racing: list[tuple[Callable[[], object], Timing]],
) -> list[tuple[Callable[[], object], Timing]]:
    """Drop those that failed, and those surely slower than another."""
    racing = [item for item in racing if item[1].failure is None]
    highs = [timing.interval[1] for _, timing in racing if timing.interval is not None]
    bound = min(highs, default=math.inf)
    return [item for item in racing if item[1].interval is None or item[1].interval[0] <= bound]


def _warm_up(
    run: Callable[[], object], timing: Timing, share: float, clock: Callable[[], float]
) -> None:
    begun = clock()
    for _ in range(MAX_WARM_UP):
        _sample(run, timing, timing.warm_up, clock)
        taken = timing.warm_up
        if timing.failure is not None or clock() - begun >= share:
            return
        if len(taken) > 1 and taken[-1] > STABLE * taken[-2]:
            return


def _sample(
    run: Callable[[], object], timing: Timing, into: list[float], clock: Callable[[], float]
) -> None:
    begun = clock()
    try:
        run()
    except Exception as exc:  # the caller reports it with the candidate's name
        timing.failure = exc
        return
    into.append(clock() - begun)


def _rotated(items: list[_T], turn: int) -> list[_T]:
    first = turn % len(items) if items else 0
    return items[first:] + items[:first]
