"""Compensation pays where inputs correlate and changes nothing where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from edgecodec.arrays import Float64Array
from edgecodec.converters.int8.weights import round_spreading, spread_of


def drawn(correlated: bool) -> tuple[Float64Array, Float64Array]:
    """Weights (20, 48) and inputs (48, 4000)."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(48, 4000))
    if correlated:
        x = 0.2 * x + rng.normal(size=(48, 4)) @ rng.normal(size=(4, 4000))
    return rng.uniform(-30, 30, (20, 48)), x


def error(weight: Float64Array, rounded: Float64Array, x: Float64Array) -> float:
    return float(np.mean(np.square((weight - rounded) @ x)))


def test_errors_cancel_where_inputs_correlate() -> None:
    weight, x = drawn(True)
    rounded = round_spreading(weight, spread_of(x @ x.T / x.shape[1]), 63)
    assert np.array_equal(rounded, np.rint(rounded))
    assert np.abs(rounded - weight).max() < 3
    assert error(weight, rounded, x) < 0.4 * error(weight, np.rint(weight), x)


def test_white_inputs_round_to_nearest() -> None:
    weight, _ = drawn(False)
    assert np.array_equal(round_spreading(weight, spread_of(np.eye(48)), 63), np.rint(weight))
    variances = np.diag(np.geomspace(1e-3, 1e3, 48))
    assert np.array_equal(round_spreading(weight, spread_of(variances), 63), np.rint(weight))


@pytest.mark.parametrize("largest", [7, 20])
def test_integers_stay_within_their_limit(largest: float) -> None:
    weight, x = drawn(True)
    rounded = round_spreading(weight, spread_of(x @ x.T / x.shape[1]), largest)
    assert np.abs(rounded).max() == largest


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weight, x = drawn(True)
    x[5] = 0.0
    rounded = round_spreading(weight, spread_of(x @ x.T / x.shape[1]), 63)
    assert np.array_equal(rounded[:, 5], np.rint(weight[:, 5]))
    nothing = round_spreading(weight, spread_of(np.zeros((48, 48))), 63)
    assert np.array_equal(nothing, np.rint(weight))
