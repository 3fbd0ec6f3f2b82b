"""Damaged bytes and wrong arguments: the C core and the NumPy twin refuse the same."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecodec.errors import BitstreamError, BundleError, ConfigError, TruncatedBitstreamError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import HYPER_LIMIT, MAX_SIDE, SYMBOL_LIMIT
from tests.support.streams import mutated, symbols

# -- bytes that no encoder wrote -----------------------------------------------------------------


def test_substream_cut_at_every_byte_is_refused(core: LatentCoder, twin: LatentCoder) -> None:
    data = symbols(core, 6, 40, 1, 1).encode(core)
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            core.decode(40, 1, 1, data[:size])
    for size in (0, 7, 8, len(data) - 2, len(data) - 1):
        with pytest.raises(TruncatedBitstreamError, match="too early"):
            core.decode(40, 1, 1, data[:size])
        with pytest.raises(TruncatedBitstreamError, match="too early"):
            twin.decode(40, 1, 1, data[:size])


def test_flipped_bits_of_a_substream_are_noticed(core: LatentCoder) -> None:
    """Even without the container's checksum, as the states do not come home.

    Where a flip turns the last symbols into others as likely, or one nibble of an escape into
    another, the bytes are those an encoder would have written for these.
    """
    many = symbols(core, 5, 20, 1, 1, 0.0)
    data = many.encode(core)
    unnoticed = 0
    for byte in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[byte] ^= 1 << bit
            try:
                core.decode(20, 1, 1, bytes(changed))
            except BitstreamError:
                continue
            unnoticed += 1
    assert unnoticed <= 8


def test_bytes_behind_a_substream_are_refused(core: LatentCoder, twin: LatentCoder) -> None:
    data = symbols(core, 8, 60, 1, 2).encode(core)
    for coder in (core, twin):
        for extra in (b"\0", b"\0\0", b"x" * 100):
            with pytest.raises(BitstreamError):
                coder.decode(60, 1, 2, data + extra)


def test_mutations_of_a_substream_raise_nothing_else(core: LatentCoder) -> None:
    source = random.Random(9)
    streams = [symbols(core, n, q, 2, 1, 0.2).encode(core) for n, q in enumerate((1, 50, 100))]
    refused = 0
    for _ in range(3000):
        data = mutated(source.choice(streams), source)
        try:
            core.decode(source.choice([1, 50, 100]), 2, 1, data)
        except BitstreamError:
            refused += 1
    assert refused > 2900


@given(st.binary(max_size=400), st.integers(1, 100))
def test_random_bytes_raise_nothing_else(core: LatentCoder, data: bytes, quality: int) -> None:
    with pytest.raises(BitstreamError):
        core.decode(quality, 1, 1, data)


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_core_and_twin_refuse_the_same(core: LatentCoder, twin: LatentCoder, seed: int) -> None:
    good = symbols(core, seed, 30, 1, 1, 0.1)
    data = mutated(good.encode(core), random.Random(seed))
    results: list[Any] = []
    for coder in (core, twin):
        try:
            results.append(coder.decode(30, 1, 1, data))
        except BitstreamError:
            results.append(None)
    if results[0] is None or results[1] is None:
        assert results == [None, None]
    else:
        assert all((a == b).all() for a, b in zip(*results, strict=True))


# -- wrong arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["c", "numpy"])
def test_wrong_shapes_and_types_are_config_errors(tables: bytes, implementation: str) -> None:
    coder = LatentCoder(tables, implementation)
    good = symbols(coder, 1, 50, 2, 3)
    y = np.zeros(good.s.shape, np.float32)
    wrong_z: list[Any] = [
        good.z[0],
        good.z[:, :, :-1],
        good.z[:0],
        good.z.astype(np.int32),
        good.z.astype(np.float32),
        good.z.tolist(),
        np.zeros((MAX_SIDE + 1, 1, coder.hyper_channels), np.int16),
    ]
    for z in wrong_z:
        with pytest.raises(ConfigError):
            coder.predict(50, z, good.s)
        with pytest.raises(ConfigError):
            coder.quantize(50, z, y)
        with pytest.raises(ConfigError):
            coder.encode(50, z, good.index, good.s)
    wrong_s: list[Any] = [good.s[1:], good.s[:2], good.s[..., 1:], good.s.astype(np.int64), None]
    for s in wrong_s:
        with pytest.raises(ConfigError):
            coder.encode(50, good.z, good.index, s)
        with pytest.raises(ConfigError):
            coder.predict(50, good.z, s)
    with pytest.raises(ConfigError):
        coder.encode(50, good.z, good.index.astype(np.int16), good.s)
    wrong_y: list[Any] = [y.astype(np.float64), y[2:], y[1:], y[..., 0]]
    for bad_y in wrong_y:
        with pytest.raises(ConfigError):
            coder.quantize(50, good.z, bad_y)
    levels = len(coder.tables.frequencies)
    for shape, kind in (((levels, 3), "f4"), ((levels - 1, 4), "f4"), ((levels, 4), "f8")):
        with pytest.raises(ConfigError, match="reluctance"):
            coder.quantize(50, good.z, y, np.zeros(shape, kind))
    with pytest.raises(ConfigError):
        coder.quantize_hyper(50, good.z)  # type: ignore[arg-type]
    for size in ((0, 1), (1, -1), (MAX_SIDE + 1, 1)):
        with pytest.raises(ConfigError):
            coder.decode(50, *size, b"")


@pytest.mark.parametrize("quality", [0, 101, -1, 1.5, True, None, "50"])
def test_wrong_quality_is_a_config_error(core: LatentCoder, quality: Any) -> None:
    good = symbols(core, 1, 50, 1, 1)
    with pytest.raises(ConfigError, match="quality"):
        core.predict(quality, good.z, good.s)
    with pytest.raises(ConfigError, match="quality"):
        core.quantize(quality, good.z, np.zeros(good.s.shape, np.float32))
    with pytest.raises(ConfigError, match="quality"):
        core.encode(quality, good.z, good.index, good.s)
    with pytest.raises(ConfigError, match="quality"):
        core.decode(quality, 1, 1, b"")


@pytest.mark.parametrize("implementation", ["c", "numpy"])
def test_symbols_out_of_range_are_config_errors(tables: bytes, implementation: str) -> None:
    coder = LatentCoder(tables, implementation)
    good = symbols(coder, 2, 90, 1, 1, 0.0)
    for value in (HYPER_LIMIT + 1, -HYPER_LIMIT - 1, -32768, 32767):
        z = good.z.copy()
        z.flat[3] = value
        with pytest.raises(ConfigError):
            coder.predict(90, z, good.s)
        with pytest.raises(ConfigError):
            coder.quantize(90, z, np.zeros(good.s.shape, np.float32))
        with pytest.raises(ConfigError):
            coder.encode(90, z, good.index, good.s)
    at = int(np.argmax(good.index > 0))
    for value in (SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1, -32768, 32767):
        s = good.s.copy()
        s.flat[at] = value
        with pytest.raises(ConfigError):
            coder.predict(90, good.z, s)
        with pytest.raises(ConfigError):
            coder.encode(90, good.z, good.index, s)
    index = good.index.copy()
    index.flat[at] = 64
    with pytest.raises(ConfigError):
        coder.encode(90, good.z, index, good.s)
    index.flat[at] = 0
    s = good.s.copy()
    s.flat[at] = 1
    with pytest.raises(ConfigError):
        coder.encode(90, good.z, index, s)


def test_coder_of_unknown_name_is_a_config_error(tables: bytes) -> None:
    with pytest.raises(ConfigError, match="auto, c or numpy"):
        LatentCoder(tables, "rust")
    assert LatentCoder(tables).implementation == "c"
    assert LatentCoder(tables, "numpy").implementation == "numpy"


def test_binding_refuses_buffers_of_wrong_size(tables: bytes) -> None:
    """What a caller of the binding itself gets wrong must not reach memory."""
    from edgecodec.core import _binding

    model = _binding.load(tables)
    m, hyper = _binding.channels(model)
    s, mu, index = bytearray(8 * m), bytearray(8 * m), bytearray(4 * m)
    z = bytearray(2 * hyper)
    y, reluctance = bytearray(16 * m), bytearray(64 * 16)
    _binding.predict(model, 50, 1, 1, z, s, mu, index)
    _binding.quantize(model, 50, 1, 1, z, y, b"", s, index)
    _binding.quantize(model, 50, 1, 1, z, y, reluctance, s, index)
    wrong: list[tuple[Any, tuple[Any, ...]]] = [
        (_binding.predict, (model, 50, 1, 1, z[:-1], s, mu, index)),
        (_binding.predict, (model, 50, 1, 1, z, s + b"x", mu, index)),
        (_binding.predict, (model, 50, 1, 1, z, s, mu[:-2], index)),
        (_binding.predict, (model, 50, 1, 1, z, s, mu, index + b"x")),
        (_binding.quantize, (model, 50, 1, 1, z, y[:-4], b"", s, index)),
        (_binding.quantize, (model, 50, 1, 1, z, y, reluctance[:-4], s, index)),
        (_binding.quantize, (model, 50, 1, 1, z, y, reluctance + b"x", s, index)),
        (_binding.quantize, (model, 50, 1, 1, z, y, b"", s[2:], index)),
        (_binding.encode, (model, 50, 1, 1, z, index[1:], s)),
        (_binding.decode, (model, 50, 1, 1, b"", z, s[2:])),
    ]
    for q, *size in ((50, 2, 1), (50, 0, 1), (50, -1, -1), (50, MAX_SIDE + 1, 1), (0, 1, 1)):
        wrong.append((_binding.predict, (model, q, *size, z, s, mu, index)))
    wrong.append((_binding.predict, (model, 50, 2000, 2000, z, s, mu, index)))
    wrong.append((_binding.predict, (object(), 50, 1, 1, z, s, mu, index)))
    for function, args in wrong:
        with pytest.raises(ValueError):  # noqa: PT011 - the binding has no words of its own
            function(*args)
    with pytest.raises((TypeError, BufferError)):
        _binding.predict(model, 50, 1, 1, z, s, bytes(mu), index)
    with pytest.raises(ValueError, match="truncated"):
        _binding.decode(model, 50, 1, 1, b"short", z, s)
    with pytest.raises(ValueError, match="tables"):
        _binding.load(b"no tables")


def test_damaged_tables_are_a_bundle_error(tables: bytes) -> None:
    for implementation in ("c", "numpy"):
        with pytest.raises(BundleError):
            LatentCoder(tables[:-1], implementation)


def test_states_below_their_bound_are_refused(core: LatentCoder, twin: LatentCoder) -> None:
    for coder in (core, twin):
        with pytest.raises(BitstreamError, match="damaged"):
            coder.decode(50, 1, 1, struct.pack("<II", 0xFFFF, 0x10000) + bytes(100))
