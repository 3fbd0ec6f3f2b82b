"""The ends of every integer bound: C core, NumPy twin and docs/FORMAT.md agree there too.

Sums and states are driven to the largest values that the document grants them; what nearly cancels
on the way is driven through large partial sums to results that still tell the difference.
"""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecodec.errors import BitstreamError, TruncatedBitstreamError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.numpy_coder import NumpyImplementation, _write
from edgecodec.format.tables import HYPER_LIMIT, MAX_SIDE, SYMBOL_LIMIT, Tables
from tests.support import format_decoder
from tests.support.format_decoder import FormatDecoder
from tests.support.streams import likely_tables, mutated, predicted, symbols, wild_tables

BIAS = 1 << 23
MOST = 512
"""Channels of any kind."""


def coders_of(tables: Tables) -> list[LatentCoder]:
    data = tables.to_bytes()
    return [LatentCoder(data, "c"), LatentCoder(data, "numpy")]


def flat_tables(channels: int, **values: int | tuple[int, int]) -> Tables:
    """Tables whose arrays hold one value each; of w3 and its biases one for mu, one for scales."""
    blank = wild_tables(0, channels, channels, channels, channels, channels, 64)
    blank = replace(blank, frequencies=likely_tables().frequencies)
    arrays: dict[str, Any] = {}
    for name, value in values.items():
        array = np.empty_like(getattr(blank, name))
        if isinstance(value, tuple):
            half = len(array) // 2
            array[:half], array[half:] = value
        else:
            array[:] = value
        arrays[name] = array
    return replace(blank, **arrays)


STEPS = {"step_y": 131071, "step_z": 32767, "index_z": 63}
HIGH, LOW = 127, -128
FULL = {"w1": LOW, "b1": BIAS, "w2": HIGH, "b2": BIAS, "c1": LOW, "c2": LOW, "c3": LOW, "bc": BIAS}
"""With z and s at their lower ends: all activations saturate, w3 decides alone."""
EXTREMES: dict[str, tuple[dict[str, Any], int, int]] = {
    "hidden up, features down": (
        {**FULL, "w2": LOW, "b2": -BIAS, "w3": 0, "b3": 0, "index_bias": BIAS},
        -HYPER_LIMIT,
        -SYMBOL_LIMIT,
    ),
    "hidden down": (
        {**FULL, "b1": -BIAS, "w3": 0, "b3": 0, "index_bias": BIAS},
        HYPER_LIMIT,
        -SYMBOL_LIMIT,
    ),
    "context up, mu down, scales up": (
        {**FULL, "w3": (LOW, HIGH), "b3": -BIAS, "index_bias": BIAS},
        -HYPER_LIMIT,
        -SYMBOL_LIMIT,
    ),
    "context down": (
        {**FULL, "bc": -BIAS, "w3": (HIGH, HIGH), "b3": BIAS, "index_bias": BIAS},
        -HYPER_LIMIT,
        SYMBOL_LIMIT,
    ),
    "mu up, scales down": (
        {**FULL, "w3": (HIGH, LOW), "b3": BIAS, "index_bias": -BIAS},
        -HYPER_LIMIT,
        SYMBOL_LIMIT,
    ),
}
# docs/FORMAT.md, section "Why 32 bits are enough", by the bits that each sum is granted.
CLAIMS = {
    22: 127 * 32767 + 8,
    28: 512 * 128 * 2047 + BIAS + 32,
    25: 512 * 128 * 255 + BIAS + 32,
    27: 3 * 512 * 128 * 511 + BIAS + 8,
    26: (512 + 512) * 128 * 255 + BIAS + 128,
    30: 8191 * 131071 + 32,
}


def test_largest_sums_are_those_of_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """And at each of them the three decoders agree."""
    largest = dict.fromkeys(CLAIMS, 0)
    real = format_decoder.bounded

    def bounded(v: int, bits: int) -> int:
        largest[bits] = max(largest[bits], abs(v))
        return real(v, bits)

    monkeypatch.setattr(format_decoder, "bounded", bounded)
    for values, z_value, s_value in EXTREMES.values():
        tables = flat_tables(MOST, **values, **STEPS)
        coders = coders_of(tables)
        z = np.full((1, 1, MOST), z_value, np.int16)
        many = predicted(coders[0], 1, z, np.full((2, 2, MOST), s_value, np.int16))
        data = many.encode(coders[0])
        assert data == many.encode(coders[1])
        found = FormatDecoder(tables.to_bytes(), 1, data).decode(1, 1)
        assert np.array_equal(found.mu, many.mu)
        assert np.array_equal(found.index, many.index)
        for coder in coders:
            assert np.array_equal(coder.predict(1, z, many.s)[0], many.mu)
            assert np.array_equal(coder.decode(1, 1, 1, data)[1], found.y_hat)
    for bits, claim in CLAIMS.items():
        # Rounding may work against the extreme, and 127 is the largest positive weight.
        assert claim - 256 <= largest[bits] <= claim < 1 << bits


@pytest.mark.parametrize("channels", [16, 40, MOST])
def test_large_partial_sums_that_cancel_are_exact(channels: int) -> None:
    """Quarters of each sum pull with all their weight in opposite directions.

    Biases bring what is left to where activations and heads tell single units apart.
    """
    rng = np.random.default_rng(channels)
    signs = np.array([[[1], [-1]], [[-1], [1]]])  # the same throughout a cell
    z = np.repeat(HYPER_LIMIT * signs, channels, 2).astype(np.int16)
    s = np.kron(SYMBOL_LIMIT * signs, np.ones((2, 2, channels))).astype(np.int16)
    made = opposing_tables(rng, channels)
    coders = coders_of(made)
    expected = coders[1].predict(50, z, s)
    for mine, other in zip(coders[0].predict(50, z, s), expected, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert len(np.unique(expected[0])) > 8  # nothing saturates everywhere
    many = predicted(coders[0], 50, z, s)
    data = many.encode(coders[0])
    assert many.encode(coders[1]) == data
    for coder in coders:
        assert np.array_equal(coder.decode(50, 2, 2, data)[1], many.y_hat(coder))
    if channels < MOST:
        found = FormatDecoder(made.to_bytes(), 50, data).decode(2, 2)
        assert np.array_equal(found.mu, expected[0])
        assert np.array_equal(found.index, many.index)


def opposing_tables(rng: np.random.Generator, channels: int) -> Tables:
    """Weights near their ends, the quarters of each row against each other but for a few."""
    made = flat_tables(channels, step_y=131071, step_z=32767, index_z=63)
    arrays: dict[str, Any] = {}
    for name in ("w1", "w2", "c1", "c2", "c3", "w3"):
        rows, columns = getattr(made, name).shape
        quarters = [rng.integers(125, 128, (rows, columns // 4)) for _ in range(2)]
        pairs = [(quarter, -rng.permuted(quarter, axis=1)) for quarter in quarters]
        array = np.concatenate([*pairs[0], *pairs[1]], 1)
        for _ in range(3):
            array[np.arange(rows), rng.integers(0, columns, rows)] -= 1
        arrays[name] = array.astype(np.int8)
    for name, spread in (("b1", 9000), ("b2", 9000), ("bc", 3000), ("b3", 20000)):
        shape = getattr(made, name).shape
        arrays[name] = rng.integers(0, spread, shape).astype(np.int32)
    bias = rng.integers(2000, 14000, made.index_bias.shape).astype(np.int32)
    return replace(made, **arrays, index_bias=bias)


# -- states of the entropy coder -----------------------------------------------------------------


def coding_tables(rows: list[list[int]], z_levels: list[int]) -> Tables:
    """Tables of these frequencies, in which y is never coded and z has these scale indexes."""
    made = wild_tables(0, 1, len(z_levels), 1, 1, 1, len(rows) + 1)
    frequencies = (made.frequencies[0], *(np.array(row, np.uint16) for row in rows))
    return replace(
        made,
        frequencies=frequencies,
        index_z=np.tile(np.array(z_levels, np.uint8), (100, 1)),
        index_bias=np.full_like(made.index_bias, -BIAS),
        w3=np.zeros_like(made.w3),
    )


def test_largest_state_is_reached_and_not_passed() -> None:
    """Symbols chosen so that a state climbs to 2^32 - 1 without ever giving a word away.

    A step with start + f = 2^14 takes f * 2^k - 1 to 2^(k + 14) - 1: escapes do. The first symbol
    coded takes 2^16 to 1025 * 2^6 - 1.
    """
    rows = [[1, 2**14 - 1026, 1, 1024], [1, 2**14 - 1027, 1, 1025], [11, 16371, 1, 1]]
    coders = coders_of(coding_tables(rows, [1, 1, 1, 2, 3]))
    z = np.array([2, 2, 2, 2, 0], np.int16).reshape(1, 1, 5)
    s = np.zeros((2, 2, 1), np.int16)
    many = predicted(coders[0], 50, z, s)
    assert not many.index.any()
    data = many.encode(coders[0])
    assert data[:4] == b"\xff\xff\xff\xff"
    assert many.encode(coders[1]) == data
    FormatDecoder(coders[0].tables.to_bytes(), 50, data).decode(1, 1)  # checks its states
    for coder in coders:
        assert np.array_equal(coder.decode(50, 1, 1, data)[0], z)


@pytest.mark.parametrize("state", [1 << 16, (1 << 16) + 1, (1 << 32) - 1, (1 << 32) - 16384])
def test_states_at_their_ends_are_read_alike(state: int) -> None:
    """Whatever the frequencies: the least, the largest there is, and those of nibbles."""
    rows = [[1, 2**14 - 3, 1, 1], [2**14 - 3, 1, 1, 1], [1, 1, 1, 2**14 - 3]]
    made = coding_tables(rows, [1, 2, 3, 1])
    for seed in range(40):
        rng = random.Random(seed)
        head = struct.pack("<II", state, rng.choice([1 << 16, (1 << 32) - 1]))
        data = head + rng.choice([b"\0", b"\xff", rng.randbytes(1)]) * rng.randrange(40)
        outcome = {verdict(coder, data, 50, 1, 1) for coder in coders_of(made)}
        assert len(outcome) == 1


def test_least_likely_symbols_fit_the_bound(core: LatentCoder) -> None:
    """Nothing but steps of frequency 1, each of which gives a word away."""
    rows = [[1, 1, 2**14 - 3, 1]]
    for coder in coders_of(coding_tables(rows, [1] * 7)):
        z = np.full((MAX_SIDE // 8, 5, 7), HYPER_LIMIT, np.int16)
        many = predicted(coder, 1, z, np.zeros((MAX_SIDE // 4, 10, 1), np.int16))
        data = many.encode(coder)
        assert np.array_equal(coder.decode(1, *z.shape[:2], data)[0], z)


# -- the same verdict about bytes no encoder wrote -----------------------------------------------


def verdict(coder: LatentCoder, data: bytes, quality: int, zh: int, zw: int) -> str:
    """Say what becomes of a substream: its latents, or the kind of error."""
    try:
        z, y_hat = coder.decode(quality, zh, zw, data)
    except BitstreamError as exc:
        return type(exc).__name__
    return z.tobytes().hex() + y_hat.tobytes().hex()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    channels=st.tuples(*[st.sampled_from([1, 2, 3, 5, 17])] * 5),
    levels=st.integers(2, 64),
    size=st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 5)]),
    extremes=st.sampled_from([0.0, 0.1, 0.6]),
    likely=st.booleans(),
)
def test_core_and_twin_give_the_same_verdict(
    seed: int,
    channels: tuple[int, int, int, int, int],
    levels: int,
    size: tuple[int, int],
    extremes: float,
    likely: bool,
) -> None:
    """Which error it is, too: cut short or damaged."""
    made = likely_tables(seed, *channels) if likely else wild_tables(seed, *channels, levels)
    coders = coders_of(made)
    quality, source = 1 + seed % 100, random.Random(seed)
    good = symbols(coders[0], seed, quality, *size, extremes).encode(coders[0])
    for data in (good, *(mutated(good, source) for _ in range(6)), good[: len(good) // 2]):
        assert len({verdict(coder, data, quality, *size) for coder in coders}) == 1


def test_first_thing_wrong_decides_wherever_the_bytes_end() -> None:
    """Symbols out of range before and behind the end of the bytes, cut at every length."""
    made = likely_tables(3, 4, 6, 3, 3, 3)
    coders = coders_of(made)
    twin = coders[1]._impl
    assert isinstance(twin, NumpyImplementation)
    levels = made.index_z[49].tolist()
    seen = set()
    for wrong in range(6):
        for value in (HYPER_LIMIT + 1, -HYPER_LIMIT - 1, 20000, -32768):
            ops: list[tuple[int, int]] = []
            for channel, level in enumerate(levels):
                twin._push(ops, level, value if channel == wrong else (-1) ** channel * 90)
            data = _write(ops)
            for end in range(len(data) + 1):
                verdicts = [verdict(coder, data[:end], 50, 1, 1) for coder in coders]
                assert verdicts[0] == verdicts[1], (wrong, value, end)
                seen.add(verdicts[0])
    assert seen == {BitstreamError.__name__, TruncatedBitstreamError.__name__}


@pytest.mark.parametrize("value", [HYPER_LIMIT, HYPER_LIMIT + 1, -HYPER_LIMIT - 1, 2047, -2047])
def test_wide_tables_reach_beyond_what_z_may_be(value: int) -> None:
    """Such a value needs no escape, and is out of range all the same."""
    row = [4] * (2 * 2047) + [4, 4]
    row[2047] += 2**14 - sum(row)
    coders = coders_of(coding_tables([row], [1]))
    twin = coders[1]._impl
    assert isinstance(twin, NumpyImplementation)
    ops: list[tuple[int, int]] = []
    twin._push(ops, 1, value)
    outcomes = {verdict(coder, _write(ops), 50, 1, 1) for coder in coders}
    assert len(outcomes) == 1
    assert (outcomes == {BitstreamError.__name__}) == (abs(value) > HYPER_LIMIT)


def test_longest_escape_is_out_of_range_not_out_of_bits() -> None:
    """Four nibbles of ones behind the widest table: more than 16 bits hold."""
    row = [1] * (2 * 2047) + [2**14 - 2 * 2047 - 1024, 1024]
    coders = coders_of(coding_tables([row], [1]))
    nibbles = [(4 << 10, 1 << 10), *[(15 << 10, 1 << 10)] * 4]
    for last in (15, 14):
        ops = [(2**14 - 1024, 1024), *nibbles[:-1], (last << 10, 1 << 10)]
        for coder in coders:
            with pytest.raises(BitstreamError, match="damaged"):
                coder.decode(50, 1, 1, _write(ops))
