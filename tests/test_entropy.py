"""The entropy coder: C core and NumPy twin agree to the byte, and nothing makes them fall over."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgecodec.core
from edgecodec.entropy import LatentCoder
from edgecodec.errors import BitstreamError, BundleError, ConfigError, TruncatedBitstreamError
from edgecodec.tables import HYPER_LIMIT, MAX_SIDE, PRECISION, SYMBOL_LIMIT

CORE = Path(edgecodec.core.__file__).parent
GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="no gcc here")
Int16Array = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Symbols:
    """What one substream holds."""

    quality: int
    z: Int16Array
    mu: Int16Array
    index: npt.NDArray[np.uint8]
    s: Int16Array

    @property
    def size(self) -> tuple[int, int]:
        return self.z.shape[0], self.z.shape[1]

    def encode(self, coder: LatentCoder) -> bytes:
        return coder.encode(self.quality, self.z, self.index, self.s)

    def y_hat(self, coder: LatentCoder) -> npt.NDArray[np.int64]:
        """The definition of docs/FORMAT.md, in 64 bits."""
        step = coder.tables.step_y[self.quality - 1].astype(np.int64)
        y_hat = ((self.s.astype(np.int64) * step + 32) >> 6) + self.mu
        clipped: npt.NDArray[np.int64] = np.clip(y_hat, -32768, 32767)
        return clipped


def symbols(
    coder: LatentCoder, seed: int, quality: int, zh: int, zw: int, extremes: float = 0.01
) -> Symbols:
    """Random symbols, mostly small, some at and beyond the ends of the tables."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], scale: float, limit: int) -> Int16Array:
        values = np.rint(rng.laplace(0, scale, shape)).clip(-limit, limit)
        wild = rng.integers(-limit, limit + 1, shape)
        ends = rng.choice([-limit, limit], shape)
        lot = rng.random(shape)
        return np.select([lot < extremes, lot < 2 * extremes], [wild, ends], values).astype("i2")

    z = draw((zh, zw, coder.hyper_channels), rng.choice([0.3, 3, 30]), HYPER_LIMIT)
    mu, index = coder.hyper(quality, z)
    s = draw(mu.shape, rng.choice([0.3, 3, 300]), SYMBOL_LIMIT)
    return Symbols(quality, z, mu, index, np.where(index > 0, s, 0).astype(np.int16))


SIZES = st.sampled_from([(1, 1), (1, 2), (3, 1), (2, 3), (1, 5), (4, 2)])


@given(st.integers(0, 2**32), st.integers(1, 100), SIZES, st.sampled_from([0.0, 0.01, 0.5]))
def test_core_and_twin_write_and_read_the_same(
    core: LatentCoder,
    twin: LatentCoder,
    seed: int,
    quality: int,
    size: tuple[int, int],
    extremes: float,
) -> None:
    given_symbols = symbols(core, seed, quality, *size, extremes)
    mu, index = twin.hyper(quality, given_symbols.z)
    assert (mu == given_symbols.mu).all()
    assert (index == given_symbols.index).all()
    data = given_symbols.encode(core)
    assert given_symbols.encode(twin) == data
    for coder in (core, twin):
        z, y_hat = coder.decode(quality, *size, data)
        assert (z == given_symbols.z).all()
        assert (y_hat == given_symbols.y_hat(coder)).all()


@pytest.mark.parametrize("quality", range(1, 101, 3))
def test_core_reads_what_it_wrote_at_every_quality(core: LatentCoder, quality: int) -> None:
    many = symbols(core, quality, quality, 9, 7)
    z, y_hat = core.decode(quality, 9, 7, many.encode(core))
    assert (z == many.z).all()
    assert (y_hat == many.y_hat(core)).all()


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("quality", [1, 50, 100])
def test_extreme_symbols_survive(
    core: LatentCoder, twin: LatentCoder, quality: int, sign: int
) -> None:
    z = np.full((2, 1, core.hyper_channels), sign * HYPER_LIMIT, np.int16)
    mu, index = core.hyper(quality, z)
    s = np.where(index > 0, sign * SYMBOL_LIMIT, 0).astype(np.int16)
    data = core.encode(quality, z, index, s)
    assert data == twin.encode(quality, z, index, s)
    for coder in (core, twin):
        found = coder.decode(quality, 2, 1, data)
        assert (found[0] == z).all()
        assert (found[1] == Symbols(quality, z, mu, index, s).y_hat(coder)).all()


def test_twin_hyper_agrees_on_a_large_field(core: LatentCoder, twin: LatentCoder) -> None:
    rng = np.random.default_rng(3)
    z = rng.integers(-127, 128, (5, 7, core.hyper_channels)).astype(np.int16)
    for quality in (1, 37, 100):
        for a, b in zip(core.hyper(quality, z), twin.hyper(quality, z), strict=True):
            np.testing.assert_array_equal(a, b)


def test_latents_do_not_depend_on_neighbours(core: LatentCoder) -> None:
    """Why tiles may be cut anywhere."""
    rng = np.random.default_rng(4)
    z = rng.integers(-60, 60, (5, 6, core.hyper_channels)).astype(np.int16)
    mu, index = core.hyper(50, z)
    part = core.hyper(50, np.ascontiguousarray(z[2:4, 1:6]))
    assert (part[0] == mu[4:8, 2:12]).all()
    assert (part[1] == index[4:8, 2:12]).all()


@given(st.integers(0, 2**32), st.integers(1, 100))
def test_quantizers_agree_and_bear_any_float(
    core: LatentCoder, twin: LatentCoder, seed: int, quality: int
) -> None:
    many = symbols(core, seed, quality, 2, 2)
    rng = np.random.default_rng(seed)
    y = rng.normal(0, rng.choice([1, 50, 1e6]), many.mu.shape).astype(np.float32)
    special = np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 0.0, -0.0, 1e-40], np.float32)
    y.flat[: special.size] = special
    s = core.quantize(quality, y, many.mu, many.index)
    assert (s == twin.quantize(quality, y, many.mu, many.index)).all()
    assert (s[many.index == 0] == 0).all()
    assert np.abs(s.astype(int)).max() <= SYMBOL_LIMIT
    z = rng.normal(0, 50, many.z.shape).astype(np.float32)
    z.flat[: special.size] = special
    z_hat = core.quantize_hyper(quality, z)
    assert z_hat.dtype == np.int16
    assert np.abs(z_hat).max() <= HYPER_LIMIT
    Symbols(quality, z_hat, *core.hyper(quality, z_hat), s * 0).encode(core)


def test_quantize_rounds_to_the_nearest_step(core: LatentCoder) -> None:
    many = symbols(core, 1, 60, 2, 2)
    gain = core.tables.gain_y[59]
    wanted = np.where(many.index > 0, np.clip(many.s, -500, 500), 0)
    offset = np.random.default_rng(0).uniform(-0.4, 0.4, wanted.shape)
    y = (many.mu / 16 + (wanted + offset) / gain).astype(np.float32)
    assert (core.quantize(60, y, many.mu, many.index) == wanted).all()


def test_size_is_the_information_content(core: LatentCoder) -> None:
    """Within half a percent of what the integer tables themselves say."""
    rng = np.random.default_rng(5)
    quality, zh, zw = 70, 20, 30
    rows = core.tables.frequencies
    bits = 0.0

    def draw(levels: npt.NDArray[np.uint8]) -> Int16Array:
        nonlocal bits
        values = np.zeros(levels.shape, np.int16)
        for level in np.unique(levels[levels > 0]):
            p = rows[level] / (1 << PRECISION)
            inside = p[:-1] / p[:-1].sum()
            k = rng.choice(len(inside), int((levels == level).sum()), p=inside)
            bits -= float(np.log2(p[k]).sum())
            values[levels == level] = k - (len(inside) - 1) // 2
        return values

    row = core.tables.index_z[quality - 1]
    z = draw(np.broadcast_to(row, (zh, zw, row.size)).copy())
    _, index = core.hyper(quality, z)
    size = 8 * len(core.encode(quality, z, index, draw(index)))
    assert bits <= size <= 1.005 * bits + 64


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

    Where a flip turns the last symbols into others as likely, the bytes are those an encoder
    would have written for these.
    """
    many = symbols(core, 7, 20, 1, 1, 0.0)
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


def mutated(data: bytes, source: random.Random) -> bytes:
    """Return damaged bytes of one of several kinds."""
    out = bytearray(data)
    for _ in range(source.choice([1, 1, 2, 8])):
        kind, at = source.randrange(6), source.randrange(len(out) or 1)
        if kind == 0 and out:
            out[at] ^= 1 << source.randrange(8)
        elif kind == 1 and out:
            out[at] = source.randrange(256)
        elif kind == 2:
            del out[at : at + source.randrange(1, 9)]
        elif kind == 3:
            out[at:at] = source.randbytes(source.randrange(1, 9))
        elif kind == 4:
            out[at : at + 16] = source.choice([b"\0", b"\xff"]) * 16
        else:
            del out[at:]
    return bytes(out)


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
            coder.hyper(50, z)
        with pytest.raises(ConfigError):
            coder.encode(50, z, good.index, good.s)
    wrong_s: list[Any] = [good.s[1:], good.s[:2], good.s[..., 1:], good.s.astype(np.int64), None]
    for s in wrong_s:
        with pytest.raises(ConfigError):
            coder.encode(50, good.z, good.index, s)
        with pytest.raises(ConfigError):
            coder.quantize(50, y, s, good.index)
    with pytest.raises(ConfigError):
        coder.encode(50, good.z, good.index.astype(np.int16), good.s)
    wrong_y: list[Any] = [y.astype(np.float64), y[2:], y[1:], y[..., 0]]
    for bad_y in wrong_y:
        with pytest.raises(ConfigError):
            coder.quantize(50, bad_y, good.mu, good.index)
    with pytest.raises(ConfigError):
        coder.quantize_hyper(50, good.z)  # type: ignore[arg-type]
    for size in ((0, 1), (1, -1), (MAX_SIDE + 1, 1)):
        with pytest.raises(ConfigError):
            coder.decode(50, *size, b"")


@pytest.mark.parametrize("quality", [0, 101, -1, 1.5, True, None, "50"])
def test_wrong_quality_is_a_config_error(core: LatentCoder, quality: Any) -> None:
    good = symbols(core, 1, 50, 1, 1)
    with pytest.raises(ConfigError, match="quality"):
        core.hyper(quality, good.z)
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
            coder.hyper(90, z)
        with pytest.raises(ConfigError):
            coder.encode(90, z, good.index, good.s)
    at = int(np.argmax(good.index > 0))
    for value in (SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1, -32768, 32767):
        s = good.s.copy()
        s.flat[at] = value
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


def test_arrays_of_any_memory_order_are_taken(core: LatentCoder) -> None:
    good = symbols(core, 3, 50, 2, 2)
    data = good.encode(core)
    turn = np.asfortranarray
    assert core.encode(50, turn(good.z), turn(good.index), turn(good.s)) == data


def unaligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values one byte beside where their type should lie."""
    moved = np.frombuffer(b"\0" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)
    assert not moved.flags.aligned or array.itemsize == 1
    return moved


@pytest.mark.parametrize("implementation", ["c", "numpy"])
def test_unaligned_arrays_are_moved(
    tables: bytes, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core reads numbers where they lie, which some processors refuse at odd addresses."""
    coder = LatentCoder(tables, implementation)
    good = symbols(coder, 3, 50, 2, 2)
    y = np.linspace(-30, 30, good.s.size, dtype=np.float32).reshape(good.s.shape)
    z_raw = good.z.astype(np.float32)

    def everything(turn: Any) -> list[Any]:
        mu, index = coder.hyper(50, turn(good.z))
        s = coder.quantize(50, turn(y), turn(mu), turn(index))
        data = coder.encode(50, turn(good.z), turn(index), turn(s))
        return [mu, index, s, data, coder.quantize_hyper(50, turn(z_raw))]

    expected = everything(np.copy)
    for name in ("hyper", "quantize", "encode"):
        real = getattr(coder._impl, name)

        def checked(quality: int, *arrays: npt.NDArray[Any], real: Any = real) -> Any:
            assert all(array.flags.aligned and array.flags.c_contiguous for array in arrays)
            return real(quality, *arrays)

        monkeypatch.setattr(coder._impl, name, checked)
    for found, wanted in zip(everything(unaligned), expected, strict=True):
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("size", [(1, MAX_SIDE), (MAX_SIDE, 1)])
def test_widest_tile_is_coded(core: LatentCoder, size: tuple[int, int]) -> None:
    many = symbols(core, 21, 50, *size)
    z, y_hat = core.decode(50, *size, many.encode(core))
    assert (z == many.z).all()
    assert (y_hat == many.y_hat(core)).all()


def test_limits_are_those_of_the_core() -> None:
    text = (CORE / "edgecodec_core.h").read_text()
    limits = {"SYMBOL_LIMIT": SYMBOL_LIMIT, "HYPER_LIMIT": HYPER_LIMIT, "MAX_SIDE": MAX_SIDE}
    for name, value in limits.items():
        assert re.search(rf"^#define ECX_{name} {value}\b", text, re.MULTILINE)


def test_coder_of_unknown_name_is_a_config_error(tables: bytes) -> None:
    with pytest.raises(ConfigError, match="auto, c or numpy"):
        LatentCoder(tables, "rust")
    assert LatentCoder(tables).implementation == "c"
    assert LatentCoder(tables, "numpy").implementation == "numpy"


def test_twin_serves_where_the_core_is_not_built(
    tables: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "edgecodec.core._binding", None)
    monkeypatch.delattr(edgecodec.core, "_binding", raising=False)
    assert LatentCoder(tables).implementation == "numpy"
    with pytest.raises(ConfigError, match="not built"):
        LatentCoder(tables, "c")


def test_binding_refuses_buffers_of_wrong_size(tables: bytes) -> None:
    """What a caller of the binding itself gets wrong must not reach memory."""
    from edgecodec.core import _binding

    model = _binding.load(tables)
    m, z = _binding.channels(model)
    latents, hyper, index = bytearray(8 * m), bytearray(2 * z), bytearray(4 * m)
    _binding.hyper(model, 50, 1, 1, hyper, latents, index)
    for args in (
        (model, 50, 1, 1, hyper[:-1], latents, index),
        (model, 50, 1, 1, hyper, latents[:-2], index),
        (model, 50, 1, 1, hyper, latents, index + b"x"),
        (model, 50, 2, 1, hyper, latents, index),
        (model, 50, 0, 1, hyper, latents, index),
        (model, 50, -1, -1, hyper, latents, index),
        (model, 50, MAX_SIDE + 1, 1, hyper, latents, index),
        (model, 50, 2000, 2000, hyper, latents, index),
        (model, 0, 1, 1, hyper, latents, index),
        (object(), 50, 1, 1, hyper, latents, index),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - the binding has no words of its own
            _binding.hyper(*args)
    with pytest.raises((TypeError, BufferError)):
        _binding.hyper(model, 50, 1, 1, hyper, bytes(latents), index)
    with pytest.raises(ValueError, match="truncated"):
        _binding.decode(model, 50, 1, 1, b"short", hyper, latents)
    with pytest.raises(ValueError, match="tables"):
        _binding.load(b"no tables")


def test_one_coder_serves_many_threads(core: LatentCoder) -> None:
    work = [symbols(core, n, 1 + 9 * n, 6, 5) for n in range(8)]
    expected = [(w.encode(core), w.y_hat(core)) for w in work]

    def once(n: int) -> bool:
        data = work[n].encode(core)
        z, y_hat = core.decode(work[n].quality, 6, 5, data)
        same = data == expected[n][0] and bool((y_hat == expected[n][1]).all())
        return same and bool((z == work[n].z).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(once, list(range(8)) * 12))


def test_damaged_tables_are_a_bundle_error(tables: bytes) -> None:
    for implementation in ("c", "numpy"):
        with pytest.raises(BundleError):
            LatentCoder(tables[:-1], implementation)


# -- C alone, as a phone app links it --------------------------------------------------------------

SLURP = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "edgecodec_core.h"

static uint8_t *slurp(const char *name, size_t *length) {
  FILE *f = fopen(name, "rb");
  uint8_t *data;
  if (!f) exit(2);
  fseek(f, 0, SEEK_END);
  *length = (size_t)ftell(f);
  rewind(f);
  data = (uint8_t *)malloc(*length ? *length : 1);
  if (!data || fread(data, 1, *length, f) != *length) exit(2);
  fclose(f);
  return data;
}
"""

PROGRAM = (
    SLURP
    + r"""
int main(int argc, char **argv) {
  size_t n_tables, n_data, need, i, count;
  uint8_t *tables, *data;
  ecx_model *model;
  int q, zh, zw, status;
  int16_t *z, *y_hat;
  void *scratch;
  uint32_t sum = 2166136261u;
  if (argc != 6) return 2;
  tables = slurp(argv[1], &n_tables);
  data = slurp(argv[2], &n_data);
  q = atoi(argv[3]);
  zh = atoi(argv[4]);
  zw = atoi(argv[5]);
  need = ecx_model_bytes(tables, n_tables);
  model = (ecx_model *)malloc(need);
  if (ecx_model_init(model, need, tables, n_tables) != ECX_OK) return 3;
  if (ecx_model_init(model, need - 1, tables, n_tables) != ECX_CAPACITY) return 4;
  if (ecx_model_init(model, need, tables, n_tables) != ECX_OK) return 3;
  free(tables); /* the model has its own copy */
  count = 4u * (size_t)zh * (size_t)zw * (size_t)ecx_latent_channels(model);
  y_hat = (int16_t *)malloc(2 * count);
  z = (int16_t *)malloc(2u * (size_t)zh * (size_t)zw * (size_t)ecx_hyper_channels(model));
  need = ecx_decode_scratch_bytes(model, zh, zw);
  scratch = malloc(need);
  if (ecx_decode(model, q, zh, zw, data, n_data, scratch, need - 1, z, y_hat) != ECX_CAPACITY)
    return 5;
  if (ecx_decode(model, q, zh, ECX_MAX_SIDE + 1, data, n_data, scratch, need, z, y_hat) !=
      ECX_ARGUMENT)
    return 6;
  status = ecx_decode(model, q, zh, zw, data, n_data, scratch, need, z, y_hat);
  for (i = 0; i < count; i++) {
    sum = (sum ^ ((uint32_t)y_hat[i] & 255u)) * 16777619u;
    sum = (sum ^ (((uint32_t)y_hat[i] >> 8) & 255u)) * 16777619u;
  }
  printf("%d %lu\n", status, (unsigned long)sum);
  free(data);
  free(model);
  free(y_hat);
  free(z);
  free(scratch);
  return 0;
}
"""
)

FUZZER = (
    SLURP
    + r"""
static uint32_t state = 12345u;
static uint32_t rnd(void) {
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state;
}

/* A block of exactly this size, so that the sanitizer sees every step outside. */
static void *exactly(size_t n) {
  void *p = malloc(n ? n : 1);
  if (!p) exit(2);
  return p;
}

static uint8_t *damaged(const uint8_t *from, size_t length, size_t *out) {
  size_t n = rnd() % 4 ? length : rnd() % (length + 1), i;
  uint8_t *p = (uint8_t *)exactly(n);
  memcpy(p, from, n);
  for (i = rnd() % 6; n && i > 0; i--) p[rnd() % n] = (uint8_t)rnd();
  if (n && rnd() % 8 == 0)
    for (i = 0; i < n; i++) p[i] = (uint8_t)rnd();
  *out = n;
  return p;
}

static void decode(const ecx_model *m, const uint8_t *data, size_t n) {
  int zh = 1 + (int)(rnd() % 2), zw = 1 + (int)(rnd() % 2), q = (int)(rnd() % 102);
  size_t cells = (size_t)zh * (size_t)zw, need = ecx_decode_scratch_bytes(m, zh, zw);
  int16_t *z = (int16_t *)exactly(2u * cells * (size_t)ecx_hyper_channels(m));
  int16_t *y = (int16_t *)exactly(8u * cells * (size_t)ecx_latent_channels(m));
  void *scratch = exactly(need);
  int status = ecx_decode(m, q, zh, zw, data, n, scratch, need, z, y);
  if (status > 0 || status < ECX_TABLES) abort();
  free(z);
  free(y);
  free(scratch);
}

static void encode(const ecx_model *m) {
  int zh = 1 + (int)(rnd() % 2), zw = 1, q = 1 + (int)(rnd() % 100), status;
  size_t cells = (size_t)zh, nz = cells * (size_t)ecx_hyper_channels(m), i, written = 0;
  size_t ny = 4u * cells * (size_t)ecx_latent_channels(m);
  size_t need = ecx_encode_scratch_bytes(m, zh, zw);
  size_t bound = rnd() % 4 ? ecx_encode_bound(m, zh, zw) : rnd() % 3000;
  int16_t *z = (int16_t *)exactly(2 * nz), *s = (int16_t *)exactly(2 * ny);
  int16_t *mu = (int16_t *)exactly(2 * ny);
  uint8_t *index = (uint8_t *)exactly(ny), *out = (uint8_t *)exactly(bound);
  float *y = (float *)exactly(4 * ny);
  void *scratch = exactly(need);
  for (i = 0; i < nz; i++) z[i] = (int16_t)((int)(rnd() % 255) - 127);
  if (ecx_hyper(m, q, zh, zw, z, mu, index) != ECX_OK) abort();
  for (i = 0; i < ny; i++) {
    uint32_t bits = rnd() % 3 ? 0x3f800000u + rnd() % 0x08000000u : rnd();
    memcpy(&y[i], &bits, 4); /* some are NaN, infinite, huge */
  }
  if (ecx_quantize(m, q, zh, zw, y, mu, index, s) != ECX_OK) abort();
  if (rnd() % 4 == 0) s[rnd() % ny] = (int16_t)rnd();
  status = ecx_encode(m, q, zh, zw, z, index, s, scratch, need, out, bound, &written);
  if (status == ECX_OK) {
    if (written > bound) abort();
    decode(m, out, written);
  } else if (status != ECX_ARGUMENT && status != ECX_CAPACITY) {
    abort();
  }
  free(z); free(s); free(mu); free(index); free(out); free(y); free(scratch);
}

int main(int argc, char **argv) {
  size_t n_tables, n_data, need, n;
  uint8_t *tables, *data, *p;
  ecx_model *model;
  int round, rounds;
  if (argc != 4) return 2;
  tables = slurp(argv[1], &n_tables);
  data = slurp(argv[2], &n_data);
  rounds = atoi(argv[3]);
  need = ecx_model_bytes(tables, n_tables);
  model = (ecx_model *)exactly(need);
  if (ecx_model_init(model, need, tables, n_tables) != ECX_OK) return 3;
  for (round = 0; round < rounds; round++) {
    p = damaged(data, n_data, &n);
    decode(model, p, n);
    free(p);
    if (round % 4 == 0) encode(model);
    if (round % 16 == 0) {
      ecx_model *other;
      p = damaged(tables, n_tables, &n);
      need = ecx_model_bytes(p, n);
      other = (ecx_model *)exactly(need);
      if (ecx_model_init(other, need, p, n) == ECX_OK) {
        encode(other);
        decode(other, data, n_data);
      }
      free(other);
      free(p);
    }
  }
  free(model); free(tables); free(data);
  puts("done");
  return 0;
}
"""
)


def compile_c(folder: Path, source: str, *flags: str) -> Path:
    (folder / "main.c").write_text(source)
    program = folder / "main"
    command = [str(GCC), "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", *flags]
    command += [f"-I{CORE}", str(folder / "main.c"), str(CORE / "edgecodec_core.c")]
    result = subprocess.run([*command, "-o", str(program)], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return program


def checksum(values: Int16Array) -> int:
    """FNV-1a over the little-endian bytes."""
    total = 2166136261
    for byte in values.astype("<i2").tobytes():
        total = (total ^ byte) * 16777619 & 0xFFFFFFFF
    return total


@needs_gcc
@pytest.mark.parametrize("flags", [("-O2",), ("-O1", "-DECX_NO_DISPATCH")], ids=" ".join)
def test_c_program_gets_the_latents_of_python(
    tmp_path: Path, core: LatentCoder, tables: bytes, flags: tuple[str, ...]
) -> None:
    program = compile_c(tmp_path, PROGRAM, *flags)
    many = symbols(core, 11, 60, 2, 3)
    data = many.encode(core)
    (tmp_path / "tables.bin").write_bytes(tables)
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "cut").write_bytes(data[:-2])

    def run(name: str) -> list[bytes]:
        files = [str(program), str(tmp_path / "tables.bin"), str(tmp_path / name)]
        command = [*files, "60", "2", "3"]
        return subprocess.run(command, capture_output=True, check=True).stdout.split()

    y_hat = core.decode(60, 2, 3, data)[1]
    assert run("data") == [b"0", str(checksum(y_hat)).encode()]
    assert run("cut")[0] == b"-1"


@needs_gcc
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_core_needs_four_functions_of_the_library(tmp_path: Path) -> None:
    """So that it links into anything; what compilers add themselves does not count."""
    target = tmp_path / "core.o"
    flags = ["-std=c99", "-O2", "-fno-stack-protector", "-c", "-U_FORTIFY_SOURCE"]
    command = [str(GCC), *flags, str(CORE / "edgecodec_core.c"), "-o", str(target)]
    subprocess.run(command, check=True)
    listing = subprocess.run(["nm", target], capture_output=True, check=True, text=True).stdout
    symbols_of = [line.split()[-2:] for line in listing.splitlines()]
    undefined = {name for kind, name in symbols_of if kind == "U"}
    allowed = {"memcpy", "memmove", "memset", "memcmp", "__cpu_model", "_GLOBAL_OFFSET_TABLE_"}
    assert undefined <= allowed
    written = {name for kind, name in symbols_of if kind in "bBdDC"}
    assert not written, "the core must have no variables"


@needs_gcc
@pytest.mark.slow
def test_core_stays_inside_its_memory_whatever_it_is_given(
    tmp_path: Path, core: LatentCoder, tables: bytes
) -> None:
    flags = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    try:
        program = compile_c(tmp_path, FUZZER, *flags)
    except AssertionError as exc:
        if "asan" in str(exc):
            pytest.skip("gcc has no sanitizers here")
        raise
    (tmp_path / "tables.bin").write_bytes(tables)
    (tmp_path / "data").write_bytes(symbols(core, 12, 60, 2, 2, 0.05).encode(core))
    result = subprocess.run(
        [str(program), str(tmp_path / "tables.bin"), str(tmp_path / "data"), "20000"],
        capture_output=True,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1"},
    )
    assert result.returncode == 0, result.stderr.decode()[-3000:]
    assert result.stdout == b"done\n"


def test_states_below_their_bound_are_refused(core: LatentCoder, twin: LatentCoder) -> None:
    for coder in (core, twin):
        with pytest.raises(BitstreamError, match="damaged"):
            coder.decode(50, 1, 1, struct.pack("<II", 0xFFFF, 0x10000) + bytes(100))
