"""Int8 tensors are predicted from the float ones they were made of, and nothing else changes."""

from __future__ import annotations

import io
import zlib

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.bundle.predictions import Prediction, Predictions
from edgecodec.converters.writers.predict_weights import predict_weights
from edgecodec.converters.writers.share_weights import _Pool


def layer(seed: int, shape: tuple[int, ...] = (48, 32, 3, 3)) -> npt.NDArray[np.float16]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float16)


def quantized(weights: npt.NDArray[np.float16], seed: int) -> npt.NDArray[np.int8]:
    """In units per output and input channel, one in ten numbers rounded the other way."""
    rng = np.random.default_rng(seed)
    columns = np.exp2(rng.integers(-3, 3, (weights.shape[1], 1, 1)).astype(np.float64))
    scaled = weights.astype(np.float64) * columns
    scaled *= 127 / np.abs(scaled).max((1, 2, 3), keepdims=True)
    away = rng.choice([-1, 0, 1], scaled.shape, p=[0.05, 0.9, 0.05])
    codes: npt.NDArray[np.int8] = np.clip(np.rint(scaled) + away, -127, 127).astype(np.int8)
    return codes


def content(pool: _Pool, offset: int, size: int, predictions: Predictions) -> bytes:
    stored = bytes(pool.data[offset : offset + size])
    return predictions.restore(offset, stored, io.BytesIO(pool.data))


def test_the_layer_an_integer_one_was_made_of_is_found() -> None:
    pool = _Pool()
    floats = [pool.add(layer(seed)) for seed in range(3)]
    codes = [quantized(layer(seed), seed + 10) for seed in range(3)]
    offsets = [pool.add(array) for array in codes]
    before = bytes(pool.data)
    predictions = predict_weights(pool.data, pool.arrays)
    found = {p.offset: p.base for p in predictions}
    assert found == dict(zip(offsets, floats, strict=True))
    assert len(pool.data) == len(before)
    assert pool.data[: offsets[0]] == before[: offsets[0]]
    for offset, array in zip(offsets, codes, strict=True):
        assert content(pool, offset, array.size, predictions) == array.tobytes()
    # Of a number that is one off in ten the entropy is 0.57 bits, of an integer weight nearly 7.
    small, large = (len(zlib.compress(d[offsets[0] :], 9)) for d in (bytes(pool.data), before))
    assert small < 0.2 * large


@pytest.mark.parametrize("other", [(48, 32, 1, 1), (32, 48, 3, 3), (48, 32, 3, 3)])
def test_a_layer_without_a_likeness_stays_as_it_is(other: tuple[int, ...]) -> None:
    """Of another shape, or of the same one and strange to it."""
    pool = _Pool()
    pool.add(layer(1, other))
    offset = pool.add(quantized(layer(2), 3))
    pool.add(np.arange(600, dtype=np.int32))
    before = bytes(pool.data)
    predictions = predict_weights(pool.data, pool.arrays)
    assert not list(predictions)
    assert bytes(pool.data) == before
    assert offset in pool.arrays


def test_nothing_is_gained_from_a_handful_of_numbers() -> None:
    """Factors would weigh more than what they save."""
    pool = _Pool()
    weights = layer(4, (8, 8, 1, 1))
    pool.add(weights)
    pool.add(quantized(weights, 5))
    before = bytes(pool.data)
    assert len(predict_weights(pool.data, pool.arrays)) == 0
    assert bytes(pool.data) == before


def test_a_prediction_rounds_as_the_page_of_the_format_says() -> None:
    half, one = (np.array([value], np.float32) for value in (0.5, 1.0))
    entry = Prediction(0, 0, (1, 1, 3), half, one)
    weights = np.array([[[1.0, 3.0, -5.0]]], np.float16)
    assert entry.codes(weights).tolist() == [[[0, 2, -2]]]
