"""What makes int8 exact: odd divisors in the branches, bounded odd sums in the trunk."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgecodec.arrays import Float64Array
from edgecodec.converters.int8.weights import (
    LARGEST,
    MAX_BIAS,
    MAX_DIVISOR,
    int8_weights,
    whole_weights,
)
from edgecodec.errors import ConversionError

DIVISORS = (1, 3, 5, 7, 63, 127, 255, 257, 1021, 1023, 1025, 2045, MAX_DIVISOR)


def drawn(seed: int, outputs: int = 12, inputs: int = 8, kernel: int = 1) -> Float64Array:
    rng = np.random.default_rng(seed)
    size = (outputs, inputs, kernel, kernel)
    return rng.normal(size=size) * rng.lognormal(sigma=2, size=(outputs, 1, 1, 1))


def codes(seed: int, channels: int = 8) -> Float64Array:
    rng = np.random.default_rng(seed)
    return np.rint(rng.normal(size=(channels, 500)) * 40).clip(-128, 127)


@pytest.mark.parametrize("divisor", DIVISORS)
def test_no_sum_is_halfway_and_float32_rounds_each_rightly(divisor: int) -> None:
    sums = np.arange(-256 * divisor, 256 * divisor + 1)
    assert (2 * sums % (2 * divisor) != divisor).all()  # sum / divisor is never n + 1/2
    exact = (2 * sums + divisor) // (2 * divisor)
    factor = np.float32(1.0 / divisor)
    product = sums.astype(np.float32) * factor
    assert product.dtype == np.float32
    assert np.array_equal(np.rint(product), exact)
    # The scale as a runtime keeps it, of the weights, times that of the input, a power of two.
    for scale in (1.0, 4.0, 8.0):
        kept = np.float32(factor / np.float32(scale)) * np.float32(scale)
        assert np.array_equal(np.rint(sums.astype(np.float32) * kept), exact)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kernel", [1, 3])
def test_exact_scales_are_one_over_odd_numbers(seed: int, kernel: int) -> None:
    weight, units = drawn(seed, kernel=kernel), np.geomspace(1e-3, 10, 12)
    found = int8_weights(weight, np.zeros(12), units, codes(seed), exact=True, stage="s")
    divisor = np.rint(1 / found.scale.astype(np.float64))
    assert np.array_equal(found.scale, (1 / divisor).astype(np.float32))
    assert (divisor % 2 == 1).all()
    assert divisor.max() <= MAX_DIVISOR
    assert np.abs(found.weight.astype(int)).max() <= LARGEST[True] == 63
    assert np.abs(found.bias).max() < MAX_BIAS
    doublings = np.log2(found.units / units)
    assert np.array_equal(doublings, np.rint(doublings))
    assert doublings.min() == 0
    assert doublings.max() > 0  # the finest units are too fine for some of these weights
    real = found.weight * (found.units * found.scale)[:, None, None, None]
    assert np.abs(real - weight).max() < 0.1 * np.abs(weight).max()


def test_free_scales_use_eight_bits() -> None:
    weight = drawn(1, kernel=3)
    found = int8_weights(weight, np.ones(12), np.full(12, 0.1), codes(1), exact=False, stage="s")
    assert (np.abs(found.weight.astype(int)).max((1, 2, 3)) >= 126).any()
    real = found.weight * (found.units * found.scale)[:, None, None, None]
    largest = np.abs(weight).max((1, 2, 3), keepdims=True)
    kept = largest[:, 0, 0, 0] / found.units > 1e-4
    assert (np.abs(real - weight) <= 0.51 * largest / 127)[kept].all()


def test_mean_error_goes_into_the_bias() -> None:
    weight, bias = drawn(3), np.linspace(-3, 3, 12)
    inputs = codes(3) + 60.0
    found = int8_weights(weight, bias, np.full(12, 1.0), inputs, exact=True, stage="s")
    real = found.units * found.scale
    sums = found.weight[:, :, 0, 0] @ inputs + found.bias[:, None]
    wanted = weight[:, :, 0, 0] @ inputs + bias[:, None]
    mean = (sums * real[:, None] - wanted).mean(1)
    assert (np.abs(mean) <= 0.5001 * real).all()


@pytest.mark.parametrize("exact", [True, False])
def test_units_are_doubled_where_a_bias_is_large(exact: bool) -> None:
    """As that of a channel which a ReLU leaves at zero, so that its units say nothing."""
    bias = np.full(12, 3.0)
    bias[4] = -1e9
    found = int8_weights(drawn(0), bias, np.full(12, 0.5), codes(0), exact=exact, stage="s")
    real = found.units * found.scale
    assert np.abs(found.bias).max() < (MAX_BIAS if exact else 1 << 30)
    assert found.bias[4] * real[4] == pytest.approx(-1e9, rel=1e-3)
    if exact:
        assert found.units[4] > 1e5


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_whole_sums_are_exact_and_odd(groups: int, halves: bool) -> None:
    rng = np.random.default_rng(groups)
    weight, bias = drawn(5, inputs=8 // groups), 100 * rng.normal(size=12)
    bound = np.geomspace(10, 2000, 8).round() + 0.5 * halves
    inputs = rng.normal(size=(8, 300)) * bound[:, None] / 4
    found = whole_weights(weight, bias, bound, inputs, 3000.0, halves=halves, stage="s")
    step, rows = found.step, found.weight[:, :, 0, 0].astype(np.float64)
    assert np.array_equal(np.exp2(np.rint(np.log2(step))), step)
    assert (step <= 1 / 16).all()
    # Rows spread over all the inputs, zeros where the group has none.
    wide = np.zeros((12, 8))
    per = 8 // groups
    for i in range(12):
        start = i // (12 // groups) * per
        wide[i, start : start + per] = rows[i]
    worst = np.abs(wide) @ bound + np.abs(found.bias)
    assert np.allclose(worst, found.bound)
    assert ((worst + 3000) / step < 2**24).all()  # whatever order they are added in
    for x in (bound, -bound, rng.integers(-10, 10, 8) + 0.5 * halves):
        sums = (wide @ x + found.bias) / step
        assert (sums % 2 == 1).all()
        parts = wide * x
        for order in (range(8), reversed(range(8))):
            total = found.bias.copy()
            for i in order:
                total = total + parts[:, i].astype(np.float32)
            assert np.array_equal(total.astype(np.float64), sums * step)
    assert np.abs(wide[:, :per] - weight[:, :, 0, 0])[: 12 // groups].max() < 0.3
    mean = np.abs(bias - found.bias) / step
    assert mean.max() <= 1.0


def test_whole_weights_are_finer_the_smaller_the_inputs() -> None:
    weight, bias, inputs = drawn(6), np.zeros(12), codes(6)
    steps = [
        whole_weights(weight, bias, np.full(8, bound), inputs, 0.0, stage="s").step
        for bound in (20.5, 200.5, 2000.5)
    ]
    for fine, coarse in itertools.pairwise(steps):
        assert (fine < coarse).all()


def test_outputs_of_a_square_have_one_step() -> None:
    """A pixel shuffle makes one channel of them, which is as large as any and as fine as any."""
    weight, bound = drawn(8), np.full(8, 2000.5)
    alone = whole_weights(weight, np.zeros(12), bound, codes(8), 4000.0, stage="s")
    tied = whole_weights(weight, np.zeros(12), bound, codes(8), 4000.0, square=4, stage="s")
    assert len(np.unique(alone.step[:4])) > 1
    squares = tied.step.reshape(3, 4)
    assert (squares == squares[:, :1]).all()
    assert np.array_equal(squares.max(1), alone.step.reshape(3, 4).max(1))
    assert ((tied.bound.reshape(3, 4).max(1) + 4000) / squares[:, 0] < 2**24).all()
    rows = tied.weight[:, :, 0, 0] @ np.full(8, 0.5) + tied.bias
    assert (rows / tied.step % 2 == 1).all()


def test_whole_weights_that_do_not_fit_are_refused() -> None:
    weight, bound = 1e6 * drawn(7), np.full(8, 2048.5)
    with pytest.raises(ConversionError, match="do not fit float32"):
        whole_weights(weight, np.zeros(12), bound, codes(7), 0.0, stage="s")
