"""What samples of time may be said to show: percentiles, and intervals that respect drift.

Samples of one run are not independent: a machine that is busy, warm or slow stays so for a while.
Intervals here resample whole blocks of neighbours, so that what lasts for less than a block does
not make them too narrow (moving-block bootstrap, Kunsch 1989).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEWEST_FOR_P99 = 100
"""With fewer samples the 99th percentile would be the largest of them under another name."""

DRAWS = 2000
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Samples in a few numbers.

    Attributes:
        n: how many.
        min_s: the least.
        mean_s: arithmetic mean.
        p50_s: median.
        p90_s: 90th percentile.
        p99_s: 99th percentile; None with fewer than FEWEST_FOR_P99 samples.
    """

    n: int
    min_s: float
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float | None


@dataclass(frozen=True)
class Interval:
    """An estimate and where it may lie."""

    low: float
    value: float
    high: float


def summarise(samples: Sequence[float]) -> Summary:
    """Return percentiles, with linear interpolation between samples.

    Args:
        samples: seconds, at least one.
    """
    values = np.asarray(samples, np.float64)
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return Summary(
        n=len(values),
        min_s=float(values.min()),
        mean_s=float(values.mean()),
        p50_s=p50,
        p90_s=p90,
        p99_s=p99 if len(values) >= FEWEST_FOR_P99 else None,
    )


def block_length(count: int) -> int:
    """Return the length of blocks for a series: ten of them, of at least one sample."""
    return max(1, math.ceil(count / 10))


def resampled_medians(
    samples: Sequence[float] | Float64Array, draws: int, generator: np.random.Generator
) -> Float64Array:
    """Return medians of series put together from random blocks of neighbouring samples.

    Blocks wrap around the end, so that every sample is as likely as any other.

    Args:
        samples: in the order in which they were taken.
        draws: how many series.
        generator: of random numbers.

    Returns:
        (draws,) float64.
    """
    values = np.asarray(samples, np.float64)
    count, length = len(values), block_length(len(values))
    starts = generator.integers(0, count, (draws, math.ceil(count / length), 1))
    places = (starts + np.arange(length)).reshape(draws, -1)[:, :count] % count
    return np.asarray(np.median(values[places], axis=1), np.float64)


def median_interval(samples: Sequence[float]) -> Interval:
    """Return the median with its 95 % confidence interval by moving-block bootstrap.

    Equal samples give equal results.

    Args:
        samples: in the order in which they were taken, at least one.
    """
    medians = resampled_medians(samples, DRAWS, np.random.default_rng(0))
    low, high = np.quantile(medians, (0.025, 0.975)).tolist()
    return Interval(low, float(np.median(np.asarray(samples, np.float64))), high)
