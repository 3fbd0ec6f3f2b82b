"""Tables with constant statistics: what they cost, and that coder and decoder take them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgecodec.errors import ConfigError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import Tables
from edgecodec.model.channel_tables import channel_tables, steps_between

SCALES = np.array([0.05, 1.0, 4.0, 30.0, 60.0])
MEANS = np.array([0.0, -3.0, 0.4, 100.0, -900.0])


def samples(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(MEANS, SCALES, (count, len(SCALES)))


@pytest.fixture(scope="module")
def tables() -> Tables:
    return channel_tables(samples(5000), steps_between(16.0, 1.0))


def test_steps_fall_by_the_same_ratio() -> None:
    steps = steps_between(8.0, 0.5)
    assert steps.shape == (100,)
    assert (steps[0], steps[-1]) == (8.0, 0.5)
    assert np.allclose(steps[1:] / steps[:-1], (1 / 16) ** (1 / 99))


@pytest.mark.parametrize("quality", [1, 40, 100])
def test_files_hold_the_latents_and_cost_what_a_gaussian_costs(
    tables: Tables, quality: int
) -> None:
    parsed = Tables.from_bytes(tables.to_bytes())
    y = samples(64 * 64, seed=2).reshape(64, 64, 5).astype(np.float32)
    z = np.zeros((32, 32, 1), np.float32)
    coder = LatentCoder(parsed.to_bytes())
    data = coder.compress(quality, y, z)
    z_hat, y_hat = coder.decode(quality, 32, 32, data)
    step = parsed.step_y[quality - 1].astype(np.float64) / 1024
    assert not z_hat.any()
    assert (np.abs(y_hat / 16 - y) <= step / 2 + 1 / 16).all()
    # Entropy of each rounded Gaussian; tables are of a heavier-tailed family and of 63 scales.
    least = sum(entropy(scale / s) for scale, s in zip(SCALES, step, strict=True))
    assert least * 64 * 64 < 8 * len(data) < 1.05 * least * 64 * 64 + 500


def entropy(sigma: float) -> float:
    """Bits of round(N(0, sigma))."""
    edges = (np.arange(-800, 801) + 0.5) / (sigma * math.sqrt(2))
    p = np.diff([0.5 * (1 + math.erf(e)) for e in edges])
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


def test_means_of_latents_are_what_is_decoded_of_nothing(tables: Tables) -> None:
    coder = LatentCoder(tables.to_bytes())
    z, s = np.zeros((1, 1, 1), np.int16), np.zeros((2, 2, 5), np.int16)
    mu, index = coder.predict(1, z, s)
    assert np.abs(mu / 16 - MEANS).max() < 4
    assert (np.diff(index.astype(int), axis=2)[..., 1:] > 0).all()
    assert index.min() >= 1


def test_steps_may_differ_by_channel() -> None:
    steps = np.multiply.outer(steps_between(4.0, 1.0), [1.0, 2.0, 3.0, 4.0, 5.0])
    made = channel_tables(samples(500), steps)
    assert np.array_equal(made.step_y[-1], [1024, 2048, 3072, 4096, 5120])


@pytest.mark.parametrize(
    ("y", "steps", "said"),
    [
        (np.zeros(5), steps_between(2, 1), "y must be"),
        (np.zeros((0, 5)), steps_between(2, 1), "y must be"),
        (np.full((9, 5), np.nan), steps_between(2, 1), "y must be finite"),
        (np.zeros((9, 5)), np.ones(99), "steps must be of shape"),
        (np.zeros((9, 5)), np.ones((100, 4)), r"steps must be of shape \(100,\) or \(100, 5\)"),
        (np.zeros((9, 5)), steps_between(2, 0.05), "steps must lie between 1/16 and 127"),
        (np.zeros((9, 5)), steps_between(200, 1), "steps must lie between"),
        (np.full((9, 5), 1100.0), steps_between(2, 1), "the mean of a channel lies beyond 1024"),
    ],
)
def test_numbers_that_cannot_be_are_refused(y: np.ndarray, steps: np.ndarray, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        channel_tables(y, steps)
