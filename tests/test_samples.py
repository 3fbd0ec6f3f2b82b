"""Levels to samples: the core and NumPy agree, on views too, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgecodec.entropy import core_available
from edgecodec.samples import pack, pack_numpy

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


def both(levels: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    mine, other = np.full(levels.shape, 7, np.uint8), np.full(levels.shape, 9, np.uint8)
    pack(levels, mine)
    pack_numpy(levels, other)
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
    mine, other = both(levels)
    np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(levels, before)


def test_halves_round_up_and_the_rest_to_the_nearest() -> None:
    steps = np.arange(-8, 264, 0.125, dtype=np.float32)
    wide = np.repeat(steps, 3).reshape(1, -1, 3)
    mine, _ = both(wide)
    np.testing.assert_array_equal(mine, np.clip(np.floor(wide + 0.5), 0, 255).astype(np.uint8))


@given(st.integers(1, 9), st.integers(1, 50), st.integers(0, 3), st.integers(0, 3))
def test_parts_of_pictures(height: int, width: int, top: int, left: int) -> None:
    rng = np.random.default_rng(height * width)
    levels = rng.uniform(-9, 265, (height + 5, width + 5, 3)).astype(np.float32)
    samples = np.full((height + 4, width + 6, 3), 3, np.uint8)
    part = levels[top : top + height, left : left + width]
    pack(part, samples[1 : 1 + height, 2 : 2 + width])
    expected = np.full_like(samples, 3)
    pack_numpy(part, expected[1 : 1 + height, 2 : 2 + width])
    np.testing.assert_array_equal(samples, expected)


@needs_core
def test_core_makes_nothing_of_nan() -> None:
    samples = np.full((2, 20, 3), 7, np.uint8)
    pack(np.full(samples.shape, np.nan, np.float32), samples)
    assert not samples.any()


@needs_core
@pytest.mark.parametrize(
    ("levels", "samples"),
    [
        (np.zeros((2, 2, 3), np.float64), np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((2, 2, 3), np.int32), np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 3), np.uint16)),
        (np.zeros((2, 2, 3), np.float32), np.zeros((2, 3, 3), np.uint8)),
        (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8)),
        (np.zeros((2, 4, 3), np.float32)[:, ::2], np.zeros((2, 2, 3), np.uint8)),
        (np.zeros((2, 2, 3), np.float32), np.zeros((2, 3, 2), np.uint8).transpose(0, 2, 1)),
        (np.zeros((2, 2, 3), np.dtype("f4").newbyteorder(">")), np.zeros((2, 2, 3), np.uint8)),
    ],
    ids=["float64", "int32", "uint16", "shape", "plane", "gaps", "axes", "byte order"],
)
def test_core_refuses_what_it_cannot_read(
    levels: npt.NDArray[np.float32], samples: npt.NDArray[np.uint8]
) -> None:
    with pytest.raises(ValueError, match="argument"):
        pack(levels, samples)


@needs_core
def test_core_refuses_samples_that_must_not_change() -> None:
    samples = np.zeros((2, 2, 3), np.uint8)
    samples.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        pack(np.ones(samples.shape, np.float32), samples)
    assert not samples.any()
