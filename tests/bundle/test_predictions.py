"""Integers predicted from floats: what comes back, and what is refused."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecodec.bundle.parts import Parts, Slice, to_planes
from edgecodec.bundle.predictions import Prediction, Predictions
from edgecodec.bundle.reading import PREDICTIONS, Bundle
from edgecodec.errors import BundleError
from tests.bundle import test_parts

HALVES = np.array([[[1.0], [-2.5]], [[0.5], [65504.0]]], np.float16)
ENTRY = Prediction(
    8, 0, (2, 2, 1), np.array([3.0, 7.0], np.float32), np.array([1.0, 0.5], np.float32)
)
STORED = to_planes(HALVES.tobytes(), 2) + bytes([0, 1, 255, 128])
# 3; -3.75, that is -4; 3.5 to the even 4; what is beyond 127 is 127.
RESTORED = np.array([3, -4 + 1, 4 - 1, 127 - 128], np.int8).tobytes()


def restore(entry: Prediction, weights: bytes = STORED) -> bytes:
    stored = weights[entry.offset : entry.offset + entry.size]
    return Predictions([entry]).restore(entry.offset, stored, io.BytesIO(weights))


def test_the_page_of_the_format_is_kept() -> None:
    """docs/FORMAT.md, by hand."""
    expected = b"\x89ECQ\r\n\x1a\n" + struct.pack("<H", 1)
    expected += struct.pack("<II3I4f", 8, 0, 2, 2, 1, 3.0, 7.0, 1.0, 0.5)
    assert Predictions([ENTRY]).to_bytes() == expected
    (again,) = Predictions.from_bytes(expected, "x")
    assert restore(ENTRY) == restore(again) == RESTORED


def test_what_is_not_predicted_is_as_it_is_stored() -> None:
    assert Predictions([ENTRY]).restore(7, b"abc", io.BytesIO(STORED)) == b"abc"


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_any_tensor_comes_back(seed: int, outputs: int, inputs: int, rest: int) -> None:
    """Also from a prediction that has nothing to do with it, of weights that are no numbers."""
    rng = np.random.default_rng(seed)
    shape = outputs, inputs, rest
    halves = rng.integers(0, 1 << 16, shape, np.uint16).view(np.float16)
    codes = rng.integers(-128, 128, shape, np.int8)
    rows, columns = (
        rng.integers(0, 1 << 32, n, np.uint32).view(np.float32) for n in (outputs, inputs)
    )
    entry = Prediction(2 * codes.size, 0, shape, rows, columns)
    differences = (codes.view(np.uint8) - entry.codes(halves).view(np.uint8)).tobytes()
    (again,) = Predictions.from_bytes(Predictions([entry]).to_bytes(), "x")
    weights = to_planes(halves.tobytes(), 2) + differences
    assert restore(again, weights) == codes.tobytes()


@pytest.mark.parametrize("shape", [(5, 3, 2), (3, 17, 1), (2, 2, 31), (1, 1, 40), (2, 9, 4)])
def test_a_large_tensor_comes_back_in_blocks(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    """Of some outputs, of some inputs of one, or of a piece of one filter."""
    whole = np.random.default_rng(1).normal(0, 9, shape).astype(np.float16)
    rows, columns = (np.linspace(1, 4, n, dtype=np.float32) for n in shape[:2])
    entry = Prediction(2 * whole.size, 0, shape, rows, columns)
    expected = entry.codes(whole).tobytes()
    monkeypatch.setattr("edgecodec.bundle.predictions._BLOCK", 8)
    assert restore(entry, to_planes(whole.tobytes(), 2) + bytes(whole.size)) == expected


def test_a_huge_tensor_takes_little_more_memory_than_itself() -> None:
    """A list from anyone may name one; float64 of all of it would be eight times as much."""
    size = 4 << 20
    one = np.ones(1, np.float32)
    weights = io.BytesIO(bytes(2 * size))
    tracemalloc.start()
    try:
        Prediction(0, 0, (1, 1, size), one, one).restore(bytes(size), weights)
        assert tracemalloc.get_traced_memory()[1] < 4 * size
    finally:
        tracemalloc.stop()


def test_two_predictions_of_one_tensor_are_refused() -> None:
    raw = struct.pack("<H", 2) + 2 * Predictions([ENTRY]).to_bytes()[10:]
    with pytest.raises(BundleError, match="two of them are of the tensor at byte 8"):
        Predictions.from_bytes(Predictions().to_bytes()[:8] + raw, "x")


@given(st.data())
def test_damaged_lists_are_a_bundle_error(data: st.DataObject) -> None:
    """Cut or changed anywhere: refused, or other differences for the hash to find."""
    listed = Predictions([ENTRY, replace(ENTRY, offset=12)]).to_bytes()
    raw = test_parts.damaged(data, listed)
    message = ""
    try:
        for entry in Predictions.from_bytes(raw, "x"):
            restore(entry, STORED + STORED[8:])
    except BundleError as exc:
        message = str(exc)
        assert message.startswith("x is not a list of predictions (")
    except ValueError as exc:
        message = str(exc)
        assert re.match(r"\d+ bytes are predicted of \d+|a prediction is from beyond", message)


def bundle_with(folder: Path, predictions: bytes) -> Path:
    """Write a bundle whose graph holds the four numbers above."""
    parts = Parts((Slice(3, 8, 1, (2, 2, 1), (0, 1, 2)),), b"abctail")
    whole = b"abc" + RESTORED + b"tail"
    return test_parts.write(folder, parts, STORED, whole, predictions=predictions)


def test_bundle_puts_a_file_together_from_predictions(tmp_path: Path, scratch: Path) -> None:
    path = bundle_with(tmp_path, Predictions([ENTRY]).to_bytes())
    with Bundle(path) as bundle:
        assert bundle.file(test_parts.BIN).read_bytes() == b"abc" + RESTORED + b"tail"
    assert list(scratch.iterdir()) == []


def test_bundle_names_a_list_of_predictions_that_is_wrong(tmp_path: Path) -> None:
    path = bundle_with(tmp_path, b"no such list")
    with Bundle(path) as bundle, pytest.raises(BundleError, match="not a list of predictions"):
        bundle.file(test_parts.BIN)
    path = bundle_with(tmp_path, Predictions([replace(ENTRY, base=5)]).to_bytes())
    with Bundle(path) as bundle, pytest.raises(BundleError, match="a prediction is from beyond"):
        bundle.file(test_parts.BIN)
    path = bundle_with(tmp_path, Predictions([replace(ENTRY, base=1)]).to_bytes())
    with Bundle(path) as bundle, pytest.raises(BundleError, match="do not make the file"):
        bundle.file(test_parts.BIN)


def test_bundle_names_a_list_of_predictions_that_is_missing(tmp_path: Path) -> None:
    path = bundle_with(tmp_path, Predictions([ENTRY]).to_bytes())
    (path / PREDICTIONS).unlink()
    with (
        Bundle(path) as bundle,
        pytest.raises(BundleError, match=PREDICTIONS),
    ):
        bundle.file(test_parts.BIN)
    (path / PREDICTIONS).write_bytes(b"other")
    with Bundle(path) as bundle, pytest.raises(BundleError, match=f"{PREDICTIONS} changes|damaged"):
        bundle.file(test_parts.BIN)
