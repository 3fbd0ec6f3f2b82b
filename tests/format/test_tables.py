"""`tables.bin`: what is written is read, what is damaged is refused, by Python and by the core."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import BundleError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import PRECISION, Tables
from tests.support.streams import wild_tables

HEADER_BYTES = 32


def core_refuses(data: bytes) -> bool:
    from edgecodec.core import _binding

    try:
        _binding.load(data)
    except ValueError as exc:
        return str(exc) == "tables"
    return False


def refused(data: bytes) -> bool:
    """Say whether tables are refused, after making sure that everybody agrees."""
    verdicts = [core_refuses(data)]
    for implementation in ("c", "numpy"):
        try:
            LatentCoder(data, implementation)
        except BundleError:
            verdicts.append(True)
        else:
            verdicts.append(False)
    assert len(set(verdicts)) == 1, verdicts
    return verdicts[0]


@pytest.fixture(scope="module")
def parsed(tables: bytes) -> Tables:
    return Tables.from_bytes(tables)


def test_tables_round_trip(tables: bytes, parsed: Tables) -> None:
    assert parsed.to_bytes() == tables


@given(
    seed=st.integers(0, 2**32),
    m=st.integers(1, 9),
    z=st.integers(1, 33),
    h=st.integers(1, 9),
    f=st.integers(1, 17),
    c=st.integers(1, 17),
    levels=st.integers(2, 64),
)
def test_tables_of_any_shape_round_trip(
    seed: int, m: int, z: int, h: int, f: int, c: int, levels: int
) -> None:
    data = wild_tables(seed, m, z, h, f, c, levels).to_bytes()
    assert Tables.from_bytes(data).to_bytes() == data
    assert not refused(data)


def test_shipped_frequency_tables_are_symmetric_and_whole(shipped: Bundle) -> None:
    frequencies = Tables.from_bytes(shipped.tables()).frequencies
    assert len(frequencies[0]) == 0
    for row in frequencies[1:]:
        assert int(row.sum()) == 1 << PRECISION
        assert row.all()
        assert (row[:-1] == row[-2::-1]).all()


def test_every_changed_byte_of_the_header_is_refused(tables: bytes) -> None:
    """The counts make every other array lie elsewhere, so that lengths no longer add up."""
    for at in range(HEADER_BYTES + 2 * tables[21]):
        for value in {0, 1, tables[at] ^ 1, tables[at] ^ 0x80, 0xFF} - {tables[at]}:
            assert refused(tables[:at] + bytes([value]) + tables[at + 1 :]), (at, value)


def test_every_changed_frequency_is_refused() -> None:
    good = wild_tables(1, 2, 2, 2, 2, 2, 4)
    data, begin = good.to_bytes(), HEADER_BYTES + 2 * 4
    for k in range(sum(len(row) for row in good.frequencies)):
        at = begin + 2 * k
        (old,) = struct.unpack_from("<H", data, at)
        for new in {0, old + 1, old - 1, 0xFFFF}:
            changed = data[:at] + struct.pack("<H", new) + data[at + 2 :]
            assert refused(changed), (k, new)


def test_frequencies_of_right_sum_with_a_zero_are_refused(parsed: Tables) -> None:
    row = parsed.frequencies[5].copy()
    row[len(row) // 2] += row[0]
    row[0] = 0
    frequencies = (*parsed.frequencies[:5], row, *parsed.frequencies[6:])
    assert refused(replace(parsed, frequencies=frequencies).to_bytes())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step_y", 0),
        ("step_y", -5),
        ("step_y", 131072),
        ("step_z", 0),
        ("step_z", 32768),
        ("index_z", 0),
        ("index_z", 64),
        ("b1", (1 << 23) + 1),
        ("b2", -(1 << 23) - 1),
        ("b3", 2**31 - 1),
        ("bc", (1 << 23) + 1),
        ("bc", -(2**31)),
        ("index_bias", -(2**31)),
    ],
)
def test_values_out_of_bounds_are_refused(parsed: Tables, name: str, value: int) -> None:
    for position in (0, -1):
        array = getattr(parsed, name).copy()
        array.flat[position] = value
        assert refused(replace(parsed, **{name: array}).to_bytes())


@pytest.mark.parametrize("at", range(10, 20, 2))
@pytest.mark.parametrize("count", [0, 513, 0xFFFF])
def test_counts_of_channels_out_of_bounds_are_refused(tables: bytes, at: int, count: int) -> None:
    assert refused(tables[:at] + struct.pack("<H", count) + tables[at + 2 :])


@pytest.mark.parametrize("which", range(5))
def test_more_channels_than_there_may_be_are_refused(which: int) -> None:
    """Where all lengths add up, so that the bound alone decides."""
    for count in (512, 513):
        m, z, h, f, c = (count if k == which else 1 for k in range(5))
        assert refused(wild_tables(0, m, z, h, f, c, 2).to_bytes()) == (count == 513)


def test_tables_of_version_1_are_refused(tables: bytes) -> None:
    with pytest.raises(BundleError, match="version"):
        Tables.from_bytes(tables[:8] + struct.pack("<H", 1) + tables[10:])


def test_tables_cut_or_extended_are_refused(tables: bytes) -> None:
    some = random.Random(1).sample(range(len(tables)), 60)
    for size in (*range(HEADER_BYTES + 3), *some, len(tables) - 1):
        assert refused(tables[:size])
    assert refused(tables + b"\0")
    assert refused(b"")
    assert refused(b"\x89PNG\r\n\x1a\n" + tables[8:])


@given(st.data())
def test_changed_bytes_are_refused_or_give_a_coder_that_agrees_with_its_twin(
    data: st.DataObject,
) -> None:
    """Nothing in damaged tables that pass can make the two implementations differ."""
    good = wild_tables(data.draw(st.integers(0, 9)), 3, 2, 5, 2, 4, 6).to_bytes()
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    if refused(bytes(changed)):
        return
    c, twin = LatentCoder(bytes(changed), "c"), LatentCoder(bytes(changed), "numpy")
    rng = np.random.default_rng(0)
    z = rng.integers(-127, 128, (2, 3, 2)).astype(np.int16)
    s = rng.integers(-8191, 8192, (4, 6, 3)).astype(np.int16)
    quality = data.draw(st.integers(1, 100))
    for mine, other in zip(c.predict(quality, z, s), twin.predict(quality, z, s), strict=True):
        np.testing.assert_array_equal(mine, other)
