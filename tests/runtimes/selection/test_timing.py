from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgecodec.runtimes.selection.timing import MAX_ROUNDS, Timing, time_side_by_side


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float) -> Callable[[], None]:
        """Return a function that takes each of `seconds` in turn, then the last for ever."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_warm_up_is_not_counted() -> None:
    clock = Clock()
    (timing,) = time_side_by_side([clock.taking(0.5, 0.01)], 1.0, clock)
    assert timing.median_s == pytest.approx(0.01)
    assert timing.warm_up[0] == pytest.approx(0.5)


def test_all_are_timed_once_after_the_budget_is_spent() -> None:
    clock = Clock()
    timings = time_side_by_side([clock.taking(0.3), clock.taking(0.4)], 0.5, clock)
    assert [len(timing.samples) for timing in timings] == [1, 1]
    assert clock.now == pytest.approx(1.4)


def test_first_run_counts_when_it_takes_the_whole_budget() -> None:
    clock = Clock()
    timings = time_side_by_side([clock.taking(2.0), clock.taking(3.0)], 0.1, clock)
    assert [timing.median_s for timing in timings] == [2.0, 3.0]
    assert clock.now == pytest.approx(5.0)


def test_fast_candidates_are_not_run_for_ever() -> None:
    clock = Clock()
    (timing,) = time_side_by_side([clock.taking(0.0001)], 10.0, clock)
    assert len(timing.samples) == MAX_ROUNDS


def test_hopeless_candidate_is_not_run_again() -> None:
    clock = Clock()
    fast, slow = time_side_by_side([clock.taking(0.01), clock.taking(0.2)], 1.0, clock)
    assert fast.samples
    assert not slow.samples
    assert slow.median_s == pytest.approx(0.2)


def test_candidate_that_raises_is_left_out() -> None:
    clock = Clock()

    def broken() -> None:
        raise RuntimeError("no")

    failed, good = time_side_by_side([broken, clock.taking(0.01)], 0.1, clock)
    assert failed.median_s is None
    assert str(failed.failure) == "no"
    assert good.median_s == pytest.approx(0.01)


def test_a_clear_ranking_ends_the_timing() -> None:
    clock = Clock()
    fast, slow = time_side_by_side([clock.taking(0.010), clock.taking(0.012)], 10.0, clock)
    assert len(fast.samples) == len(slow.samples) == 6  # the fewest that give an interval
    even, other = time_side_by_side([clock.taking(0.01), clock.taking(0.01)], 10.0, clock)
    assert len(even.samples) == len(other.samples) == MAX_ROUNDS


def test_what_is_surely_slower_is_not_run_again() -> None:
    clock = Clock()
    slow, one, two = time_side_by_side(
        [clock.taking(0.02), clock.taking(0.01), clock.taking(0.01)], 10.0, clock
    )
    assert [len(t.samples) for t in (slow, one, two)] == [6, MAX_ROUNDS, MAX_ROUNDS]


def test_interval_covers_the_median_of_what_is_sampled() -> None:
    rng = np.random.default_rng(0)
    for count in (6, 10, 15):
        inside = 0
        for samples in rng.exponential(1.0, (2000, count)):
            low, high = Timing(samples=list(samples)).interval or (0.0, 0.0)
            inside += low <= np.log(2) <= high
        assert 0.93 < inside / 2000 < 0.995
