"""Statistics against other implementations of the same definitions, and against known truths."""

from __future__ import annotations

import math
import statistics

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecodec.device_tests.measuring.sampling import (
    FEWEST_FOR_P99,
    block_length,
    median_interval,
    resampled_medians,
    summarise,
)

seconds = st.floats(1e-6, 1e3)


@given(st.lists(seconds, min_size=1, max_size=200))
def test_summary_agrees_with_definitions(samples: list[float]) -> None:
    found = summarise(samples)
    assert found.n == len(samples)
    assert found.min_s == min(samples)
    assert found.mean_s == pytest.approx(math.fsum(samples) / len(samples))
    assert found.p50_s == pytest.approx(statistics.median(samples))
    assert found.min_s <= found.p50_s <= found.p90_s <= max(samples)
    assert (found.p99_s is not None) == (len(samples) >= FEWEST_FOR_P99)
    if len(samples) > 1:
        cuts = statistics.quantiles(samples, n=100, method="inclusive")
        assert found.p90_s == pytest.approx(cuts[89])
        if found.p99_s is not None:
            assert found.p99_s == pytest.approx(cuts[98])
            assert found.p99_s == pytest.approx(float(np.percentile(samples, 99)))


def drifting(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Samples whose neighbours are alike, as those of a busy machine."""
    noise = rng.normal(0, 1, count)
    for place in range(1, count):
        noise[place] += 0.9 * noise[place - 1]
    return np.asarray(10 + noise)


def test_interval_covers_the_truth_although_neighbours_are_alike() -> None:
    rng = np.random.default_rng(1)
    covered = naive = 0
    for _ in range(60):
        values = drifting(rng, 200)
        interval = median_interval(values.tolist())
        covered += interval.low <= 10 <= interval.high
        medians = np.median(rng.choice(values, (300, 200)), axis=1)
        low, high = np.quantile(medians, (0.025, 0.975))
        naive += bool(low <= 10 <= high)
    assert covered >= 45  # 57 are promised; ten blocks are few
    assert naive <= 36  # what resampling single samples would have covered


def test_interval_shrinks_with_samples_and_holds_the_median() -> None:
    rng = np.random.default_rng(2)
    few, many = (median_interval(rng.normal(10, 1, n).tolist()) for n in (40, 2000))
    assert few.low <= few.value <= few.high
    assert many.high - many.low < 0.3 * (few.high - few.low)
    assert many.low <= 10 <= many.high


def test_equal_arguments_give_equal_intervals() -> None:
    samples = np.random.default_rng(3).random(50).tolist()
    assert median_interval(samples) == median_interval(samples)
    one, two = (resampled_medians(samples, 9, np.random.default_rng(n)) for n in (0, 1))
    assert (one != two).any()
    assert median_interval([2.0]).low == median_interval([2.0]).high == 2.0


def test_blocks_keep_neighbours_together() -> None:
    assert [block_length(n) for n in (1, 9, 10, 11, 100, 1000)] == [1, 1, 1, 2, 10, 100]
    # Two halves at two levels: every block lies within one, or straddles the step or the end.
    samples = [1.0] * 50 + [2.0] * 50
    medians = resampled_medians(samples, 500, np.random.default_rng(0))
    assert medians.shape == (500,)
    assert set(medians) <= {1.0, 1.5, 2.0}
    assert 0.2 < float((medians == 1.0).mean()) < 0.8
