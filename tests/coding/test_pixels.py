"""Levels to samples: the core and NumPy agree, on views too, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgecodec.coding.layout import Window
from edgecodec.coding.pixels import (
    as_picture,
    pack,
    pack_numpy,
    read_padded,
    square_side,
    to_levels,
)
from edgecodec.format.coder import core_available

needs_core = pytest.mark.skipif(not core_available(), reason="the C core is not built here")

EDGES = [
    -np.inf,
    -1e30,
    -0.5,
    -0.0,
    0.49999997,
    0.5,
    1.5,
    127.5,
    254.49998,
    254.5,
    255.5,
    1e30,
    np.inf,
]
LEVELS = st.one_of(st.floats(-10, 265, width=32), st.sampled_from(EDGES))


def both(
    levels: npt.NDArray[np.float32], height: int, width: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    mine, other = (np.full((height, width, 4), fill, np.uint8) for fill in (7, 9))
    assert pack(levels, mine) == pack_numpy(levels, other) == bool(np.isfinite(levels).all())
    return mine, other


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40).map(lambda s: (*s, 3)),
        elements=LEVELS,
    )
)
def test_core_and_numpy_agree(levels: npt.NDArray[np.float32]) -> None:
    before = levels.copy()
    mine, other = both(levels, *levels.shape[:2])
    np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(levels, before)


def test_halves_round_up_and_the_rest_to_the_nearest() -> None:
    steps = np.arange(-8, 264, 0.125, dtype=np.float32)
    wide = np.repeat(steps, 3).reshape(1, -1, 3)
    mine, _ = both(wide, *wide.shape[:2])
    expected = np.clip(np.floor(wide + 0.5), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(mine[..., :3], expected)
    np.testing.assert_array_equal(to_levels(wide), expected)
    assert (mine[..., 3] == 255).all()


def squares(levels: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Return (h, w, 3) as a network makes it, one pixel after another; what is beyond it is 0."""
    height, width = (-(-n // side) for n in levels.shape[:2])
    out = np.zeros((height, width, 3 * side * side), np.float32)
    for y, x, c in np.ndindex(levels.shape):
        out[y // side, x // side, (y % side * side + x % side) * 3 + c] = levels[y, x, c]
    return out


@given(st.integers(1, 20), st.integers(1, 50), st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_squares_are_put_in_their_places(height: int, width: int, side: int) -> None:
    rng = np.random.default_rng(height * width)
    levels = rng.uniform(-9, 265, (height, width, 3)).astype(np.float32)
    made = squares(levels, side)
    plain, _ = both(levels, height, width)
    for found in both(made, height, width):
        np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(as_picture(made)[:height, :width], levels)
    assert square_side(made.shape[2]) == side


@given(
    st.integers(1, 9),
    st.integers(1, 50),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([1, 2, 8]),
)
def test_parts_of_pictures(height: int, width: int, top: int, left: int, side: int) -> None:
    rng = np.random.default_rng(height * width)
    rows, columns = -(-height // side), -(-width // side)
    shape = (rows + 5, columns + 5, 3 * side * side)
    levels = rng.uniform(-9, 265, shape).astype(np.float32)
    samples = np.full((height + 4, width + 6, 4), 3, np.uint8)
    part = levels[top : top + rows, left : left + columns]
    assert pack(part, samples[1 : 1 + height, 2 : 2 + width])
    expected = np.full_like(samples, 3)
    pack_numpy(part, expected[1 : 1 + height, 2 : 2 + width])
    np.testing.assert_array_equal(samples, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [1, 8])
def test_what_is_not_finite_is_told_wherever_it_shows(value: float, side: int) -> None:
    levels = np.full((3, 4, 3 * side * side), 100, np.float32)
    height, width = 3 * side, 4 * side - side // 2
    shown = as_picture(np.arange(levels.size, dtype=np.float32).reshape(levels.shape))
    for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 2)):
        spoilt = levels.copy()
        spoilt.flat[int(shown[y, x, 1])] = value
        both(spoilt, height, width)
        assert not pack(spoilt, np.empty((height, width, 4), np.uint8))
    if side > 1:  # beyond the right edge nobody sees it
        spoilt = levels.copy()
        spoilt.flat[int(shown[0, width, 0])] = value
        assert pack(spoilt, np.empty((height, width, 4), np.uint8))
        assert pack_numpy(spoilt, np.empty((height, width, 4), np.uint8))


@needs_core
def test_core_makes_nothing_of_nan() -> None:
    samples = np.full((2, 20, 4), 7, np.uint8)
    assert not pack(np.full((2, 20, 3), np.nan, np.float32), samples)
    assert not samples[..., :3].any()


@needs_core
@pytest.mark.parametrize(
    ("levels", "samples"),
    [
        (np.zeros((2, 2, 3), np.float64), np.zeros((2, 2, 4), np.uint8)),
        (np.zeros((2, 2, 3), np.int32), np.zeros((2, 2, 4), np.uint8)),
        (np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 4), np.uint16)),
        (np.zeros((2, 2, 3), np.float32), np.zeros((2, 3, 4), np.uint8)),
        (np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((2, 2, 4), np.float32), np.zeros((2, 2, 4), np.uint8)),
        (np.zeros((2, 2, 12), np.float32), np.zeros((2, 4, 4), np.uint8)),
        (np.zeros((2, 2, 12), np.float32), np.zeros((4, 5, 4), np.uint8)),
        (np.zeros((2, 2, 0), np.float32), np.zeros((2, 2, 4), np.uint8)),
        (np.zeros((1, 1, 3 * 17 * 17), np.float32), np.zeros((17, 17, 4), np.uint8)),
        (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8)),
        (np.zeros((2, 4, 3), np.float32)[:, ::2], np.zeros((2, 2, 4), np.uint8)),
        (np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 4), np.uint8)[::-1]),
        (np.zeros((2, 2, 3), np.float32), np.zeros((2, 4, 2), np.uint8).transpose(0, 2, 1)),
        (np.zeros((2, 2, 3), np.dtype("f4").newbyteorder(">")), np.zeros((2, 2, 4), np.uint8)),
    ],
)
def test_core_refuses_what_it_cannot_read(
    levels: npt.NDArray[np.float32], samples: npt.NDArray[np.uint8]
) -> None:
    with pytest.raises(ValueError, match="argument"):
        pack(levels, samples)


@needs_core
def test_core_refuses_samples_that_must_not_change() -> None:
    samples = np.zeros((2, 2, 4), np.uint8)
    samples.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        pack(np.ones((2, 2, 3), np.float32), samples)
    assert not samples.any()


@given(st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_read_padded_repeats_the_last_row_and_column(height: int, width: int, whole: bool) -> None:
    rng = np.random.default_rng(height * 100 + width)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    padded = -(-height // 32) * 32, -(-width // 32) * 32
    expected = np.pad(pixels, ((0, padded[0] - height), (0, padded[1] - width), (0, 0)), "edge")
    window = Window(0, 0, *padded, 0, 0)
    if not whole:
        window = Window(padded[0] - 32, padded[1] - 32, 32, 32, 0, 0)
    found = read_padded(pixels, window)
    assert found.dtype == np.float32
    assert found.shape == (1, window.height, window.width, 3)
    assert (found[0] == expected[window.slices()]).all()


@pytest.mark.parametrize("source", ["view", "read-only"])
def test_read_padded_leaves_its_input_alone(source: str) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels.flags.writeable = source != "read-only"
    read_padded(pixels, Window(0, 0, 64, 64, 0, 0))[...] = 7
    assert not pixels.any()
