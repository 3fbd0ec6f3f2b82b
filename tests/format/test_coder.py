"""The entropy coder: C core, NumPy twin and docs/FORMAT.md agree to the byte.

And nothing makes them fall over. What concerns the C core alone is in `core/test_core.py`.
"""

from __future__ import annotations

import hashlib
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgecodec.core
from edgecodec.arrays import Int16Array, UInt8Array
from edgecodec.errors import BitstreamError, ConfigError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import (
    CELL_ORDER,
    HYPER_LIMIT,
    MAX_SIDE,
    PRECISION,
    RELUCTANCES,
    SYMBOL_LIMIT,
    Tables,
)
from tests.support.format_decoder import FormatDecoder, FormatError
from tests.support.streams import likely_tables, mutated, predicted, symbols, wild_tables

SPECIAL = np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 0.0, -0.0, 1e-40], np.float32)
CHANNELS = st.sampled_from([1, 2, 15, 16, 17, 33])


def floats_of_any_kind(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Floats of all magnitudes, with some that are no numbers; signalling ones included."""
    bits = rng.integers(0, 1 << 32, shape, np.uint32)
    values = rng.normal(0, rng.choice([1, 50, 1e6]), shape).astype(np.float32)
    return np.where(rng.random(shape) < 0.2, bits.view(np.float32), values)


SIZES = st.sampled_from([(1, 1), (1, 2), (3, 1), (2, 3), (1, 4), (1, 5), (4, 2), (2, 7)])


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
    mu, index = twin.predict(quality, given_symbols.z, given_symbols.s)
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
    s = np.full((4, 2, core.latent_channels), sign * SYMBOL_LIMIT, np.int16)
    many = predicted(core, quality, z, s)
    data = many.encode(core)
    assert data == many.encode(twin)
    for coder in (core, twin):
        found = coder.decode(quality, 2, 1, data)
        assert (found[0] == z).all()
        assert (found[1] == many.y_hat(coder)).all()


def test_twin_predicts_the_same_on_a_large_field(core: LatentCoder, twin: LatentCoder) -> None:
    rng = np.random.default_rng(3)
    z = rng.integers(-127, 128, (5, 7, core.hyper_channels)).astype(np.int16)
    s = rng.integers(-9, 10, (10, 14, core.latent_channels)).astype(np.int16)
    for quality in (1, 37, 100):
        for a, b in zip(core.predict(quality, z, s), twin.predict(quality, z, s), strict=True):
            np.testing.assert_array_equal(a, b)


# -- docs/FORMAT.md ----------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    channels=st.tuples(CHANNELS, CHANNELS, CHANNELS, CHANNELS, CHANNELS),
    levels=st.integers(2, 64),
    size=st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 5)]),
    likely=st.booleans(),
)
def test_decoder_written_from_the_document_agrees(
    seed: int,
    channels: tuple[int, int, int, int, int],
    levels: int,
    size: tuple[int, int],
    likely: bool,
) -> None:
    """Whatever the counts of channels, multiples of 16 or not."""
    made = likely_tables(seed, *channels) if likely else wild_tables(seed, *channels, levels)
    tables = made.to_bytes()
    coders = [LatentCoder(tables, "c"), LatentCoder(tables, "numpy")]
    many = symbols(coders[0], seed, 1 + seed % 100, *size, 0.1)
    data = many.encode(coders[0])
    assert many.encode(coders[1]) == data
    found = FormatDecoder(tables, many.quality, data).decode(*size)
    assert np.array_equal(found.z, many.z)
    assert np.array_equal(found.s, many.s)
    assert np.array_equal(found.mu, many.mu)
    assert np.array_equal(found.index, many.index)
    for coder in coders:
        z, y_hat = coder.decode(many.quality, *size, data)
        assert np.array_equal(found.z, z)
        assert np.array_equal(found.y_hat, y_hat)


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_decoder_written_from_the_document_refuses_the_same(
    tables: bytes, core: LatentCoder, seed: int
) -> None:
    data = mutated(symbols(core, seed, 30, 1, 1, 0.1).encode(core), random.Random(seed))
    try:
        y_hat = core.decode(30, 1, 1, data)[1]
    except BitstreamError:
        with pytest.raises(FormatError):
            FormatDecoder(tables, 30, data).decode(1, 1)
    else:
        assert np.array_equal(FormatDecoder(tables, 30, data).decode(1, 1).y_hat, y_hat)


def golden_tables() -> Tables:
    """Small tables by a formula, the same wherever and whenever they are made."""
    blank = wild_tables(0, 3, 2, 5, 2, 3, 6)
    bounds = {
        "w3": (-9, 9),
        "bc": (-300, 3000),
        "b1": (0, 9000),
        "b2": (0, 9000),
        "b3": (-900, 900),
        "index_bias": (0, 1500),
        "step_y": (700, 9000),
        "step_z": (100, 900),
        "index_z": (1, 5),
        "gain_z": (1, 1),
    }
    arrays = {}
    for name, array in vars(blank).items():
        if name != "frequencies":
            low, high = bounds.get(name, (-60, 60))
            noise = (np.arange(array.size, dtype=np.uint64) + 7) * 2654435761 % 2**32 >> 9
            values = low + (noise % (high - low + 1)).astype(np.int64)
            arrays[name] = values.reshape(array.shape).astype(array.dtype)
    rows = [np.full(2 * w + 2, (1 << PRECISION) // (2 * w + 2), np.uint16) for w in range(1, 6)]
    for row in rows:
        row[len(row) // 2 - 1] += (1 << PRECISION) - row.sum()
    return Tables(frequencies=(blank.frequencies[0], *rows), **arrays)


def test_golden_substream_stays_what_it_is() -> None:
    """Files of today must decode for ever: any change of these bytes is a change of the format."""
    tables = golden_tables().to_bytes()
    z = (np.arange(2 * 3 * 2) % 11 - 5).reshape(2, 3, 2).astype(np.int16)
    s = (np.arange(4 * 6 * 3) * 5 % 13 - 6).reshape(4, 6, 3).astype(np.int16)
    s[1, 1, 0], s[3, 5, 0] = SYMBOL_LIMIT, -SYMBOL_LIMIT
    for implementation in ("c", "numpy"):
        coder = LatentCoder(tables, implementation)
        many = predicted(coder, 50, z, s)
        assert set(many.index.ravel().tolist()) == set(range(6))
        data = many.encode(coder)
        y_hat = coder.decode(50, 2, 3, data)[1].astype("<i2").tobytes()
        assert [hashlib.sha256(part).hexdigest()[:16] for part in (tables, data, y_hat)] == [
            "b86ae8e8b9eb92b0",
            "2238d53b8ee9b6af",
            "a9c75b850037539b",
        ]


# -- context within a cell, and nothing beyond it --------------------------------------------------


@pytest.mark.parametrize("implementation", ["c", "numpy"])
@pytest.mark.parametrize("earlier", range(4))
def test_context_reaches_later_latents_of_its_cell_and_no_others(
    tables: bytes, implementation: str, earlier: int
) -> None:
    coder = LatentCoder(tables, implementation)
    rng = np.random.default_rng(earlier)
    z = rng.integers(-9, 10, (3, 6, coder.hyper_channels)).astype(np.int16)
    s = rng.integers(-3, 4, (6, 12, coder.latent_channels)).astype(np.int16)
    before = coder.predict(50, z, s)
    cell = (1, 4)
    dy, dx = CELL_ORDER[earlier]
    s[2 * cell[0] + dy, 2 * cell[1] + dx] += 4
    after = coder.predict(50, z, s)
    changed = np.zeros(s.shape[:2], bool)
    for a, b in zip(before, after, strict=True):
        changed |= np.any(a != b, 2)
    expected = {(2 * cell[0] + y, 2 * cell[1] + x) for y, x in CELL_ORDER[earlier + 1 :]}
    assert set(zip(*map(np.ndarray.tolist, np.nonzero(changed)), strict=True)) == expected


def test_symbols_that_are_not_coded_are_no_context(core: LatentCoder, twin: LatentCoder) -> None:
    many = symbols(core, 5, 50, 2, 3)
    loud = np.where(many.index > 0, many.s, SYMBOL_LIMIT).astype(np.int16)
    for coder in (core, twin):
        mu, index = coder.predict(50, many.z, loud)
        assert np.array_equal(mu, many.mu)
        assert np.array_equal(index, many.index)


@given(st.integers(0, 2**32), st.integers(1, 100), SIZES)
def test_predict_sees_what_quantize_saw_and_decode_sees(
    core: LatentCoder, twin: LatentCoder, seed: int, quality: int, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    z = rng.integers(-20, 21, (*size, core.hyper_channels)).astype(np.int16)
    y = rng.normal(0, 30, (2 * size[0], 2 * size[1], core.latent_channels)).astype(np.float32)
    for coder in (core, twin):
        s, index = coder.quantize(quality, z, y)
        many = predicted(coder, quality, z, s)
        assert np.array_equal(many.index, index)
        assert np.array_equal(many.s, s)
        assert np.array_equal(
            coder.decode(quality, *size, many.encode(coder))[1], many.y_hat(coder)
        )
        exact = (y - many.mu / 16.0) * 1024.0 / coder.tables.step_y[quality - 1]
        assert np.abs(exact - s)[index > 0].max(initial=0) <= 0.5 + 1e-4


@pytest.mark.parametrize("implementation", ["c", "numpy"])
def test_latents_do_not_depend_on_the_cut_into_tiles(tables: bytes, implementation: str) -> None:
    coder = LatentCoder(tables, implementation)
    rng = np.random.default_rng(4)
    z = rng.integers(-60, 60, (5, 6, coder.hyper_channels)).astype(np.int16)
    y = rng.normal(0, 30, (10, 12, coder.latent_channels)).astype(np.float32)
    s, index = coder.quantize(50, z, y)
    whole = coder.decode(50, 5, 6, coder.encode(50, z, index, s))[1]
    for rows, columns in ((slice(0, 2), slice(0, 1)), (slice(2, 4), slice(1, 6))):
        part_z = z[rows, columns]
        fine = (slice(2 * rows.start, 2 * rows.stop), slice(2 * columns.start, 2 * columns.stop))
        part_s, part_index = coder.quantize(50, part_z, y[fine])
        assert np.array_equal(part_s, s[fine])
        assert np.array_equal(part_index, index[fine])
        data = coder.encode(50, part_z, part_index, part_s)
        zh, zw, _ = part_z.shape
        assert np.array_equal(coder.decode(50, zh, zw, data)[1], whole[fine])


# -- quantization ----------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 100), st.booleans())
def test_quantizers_agree_and_bear_any_float(
    core: LatentCoder, twin: LatentCoder, seed: int, quality: int, reluctant: bool
) -> None:
    many = symbols(core, seed, quality, 2, 3)
    rng = np.random.default_rng(seed)
    y = floats_of_any_kind(rng, many.s.shape)
    y.flat[: SPECIAL.size] = SPECIAL
    reluctance = None
    if reluctant:
        # Large ones are for the test below: the twin takes them one step at a time.
        reluctance = np.minimum(floats_of_any_kind(rng, (64, RELUCTANCES)), np.float32(3))
    s, index = core.quantize(quality, many.z, y, reluctance)
    for mine, other in zip((s, index), twin.quantize(quality, many.z, y, reluctance), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (s[index == 0] == 0).all()
    assert np.abs(s.astype(int)).max() <= SYMBOL_LIMIT
    z = rng.normal(0, 50, many.z.shape).astype(np.float32)
    z.flat[: SPECIAL.size] = SPECIAL
    z_hat = core.quantize_hyper(quality, z)
    assert z_hat.dtype == np.int16
    assert np.abs(z_hat).max() <= HYPER_LIMIT
    predicted(core, quality, z_hat, s).encode(core)


@pytest.mark.parametrize("implementation", ["c", "numpy"])
def test_infinite_reluctance_leaves_nothing_negative_and_undefined_everything(
    implementation: str,
) -> None:
    coder = LatentCoder(likely_tables(1, 3, 2, 5, 2, 3).to_bytes(), implementation)
    z = np.full((1, 1, 2), 3, np.int16)
    y = np.random.default_rng(0).normal(0, 300, (2, 2, 3)).astype(np.float32)
    s, index = coder.quantize(50, z, y)
    assert np.abs(s).max() > 10
    for value in (-1.0, -np.inf, np.nan, -3e38):
        same = coder.quantize(50, z, y, np.full((64, RELUCTANCES), value, np.float32))
        assert np.array_equal(same[0], s)
        assert np.array_equal(same[1], index)
    for value in (np.inf, 3e38, 1e6):
        none, _ = coder.quantize(50, z, y, np.full((64, RELUCTANCES), value, np.float32))
        assert not none.any()


def test_quantize_rounds_to_the_nearest_step(core: LatentCoder) -> None:
    many = symbols(core, 1, 60, 2, 2)
    step = core.tables.step_y[59] / 1024
    wanted = np.where(many.index > 0, np.clip(many.s, -500, 500), 0).astype(np.int16)
    many = predicted(core, 60, many.z, wanted)
    offset = np.random.default_rng(0).uniform(-0.4, 0.4, wanted.shape)
    y = (many.mu / 16 + (many.s + offset) * step).astype(np.float32)
    for reluctance in (None, np.zeros((64, RELUCTANCES), np.float32)):
        s, index = core.quantize(60, many.z, y, reluctance)
        assert np.array_equal(s, many.s)
        assert np.array_equal(index, many.index)


@given(st.integers(0, 2**32), st.integers(1, 100))
def test_reluctance_never_raises_a_magnitude(seed: int, quality: int) -> None:
    """Of the same prediction: other symbols before it give a latent another context.

    So all latents are compared with tables whose context is mute, and the first of each cell with
    others.
    """
    made = likely_tables(seed % 5, 7, 3, 5, 3, 3)
    silent = {name: np.zeros_like(getattr(made, name)) for name in ("c1", "c2", "c3", "bc")}
    rng = np.random.default_rng(seed)
    z = rng.integers(-9, 10, (2, 3, 3)).astype(np.int16)
    y = rng.normal(0, 40, (4, 6, 7)).astype(np.float32)
    small = rng.random((64, RELUCTANCES), np.float32)
    large = small + rng.random((64, RELUCTANCES), np.float32)
    for tables, apart in ((made, 2), (replace(made, **silent), 1)):
        coder = LatentCoder(tables.to_bytes(), "c")
        several = [coder.quantize(quality, z, y, r)[0] for r in (None, small, large)]
        magnitudes = [np.abs(s[::apart, ::apart]) for s in several]
        assert (magnitudes[0] >= magnitudes[1]).all()
        assert (magnitudes[1] >= magnitudes[2]).all()
        assert (magnitudes[0] - magnitudes[1]).max() <= 1  # a threshold is below one step


@pytest.mark.parametrize("implementation", ["c", "numpy"])
def test_reluctance_is_the_threshold_of_its_magnitude_and_index(implementation: str) -> None:
    """Symbol k holds from k - 1/2 + reluctance[index, min(k, 4) - 1] on."""
    made = likely_tables(3, 1, 1, 1, 1, 1)
    flat = {name: np.zeros_like(getattr(made, name)) for name in ("w3", "b3")}
    bias, step = np.full((100, 1), 256 * 9, np.int32), np.full((100, 1), 1024, np.int32)
    coder = LatentCoder(
        replace(made, **flat, index_bias=bias, step_y=step).to_bytes(), implementation
    )
    reluctance = np.zeros((64, RELUCTANCES), np.float32)
    reluctance[9] = (0.5, 0.25, 0.125, 0.0625)
    z = np.zeros((1, 1, 1), np.int16)
    for k in (1, 2, 3, 4, 5, 100):
        edge = np.float32(k - 0.5 + reluctance[9, min(k, 4) - 1])
        below = np.nextafter(edge, np.float32(0))
        y = np.array([edge, below, -edge, -below], np.float32).reshape(2, 2, 1)
        s, index = coder.quantize(50, z, y, reluctance)
        assert (index == 9).all()
        assert s.ravel().tolist() == [k, k - 1, -k, 1 - k]


def test_size_is_the_information_content(core: LatentCoder) -> None:
    """Within half a percent of what the integer tables themselves say."""
    rng = np.random.default_rng(5)
    quality, zh, zw = 70, 10, 15
    rows = core.tables.frequencies
    bits = 0.0

    def draw(levels: UInt8Array) -> Int16Array:
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
    s = np.zeros((2 * zh, 2 * zw, core.latent_channels), np.int16)
    for dy, dx in CELL_ORDER:
        s[dy::2, dx::2] = draw(core.predict(quality, z, s)[1][dy::2, dx::2])
    size = 8 * len(predicted(core, quality, z, s).encode(core))
    assert bits <= size <= 1.005 * bits + 64


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
    reluctance = np.full((64, RELUCTANCES), 0.2, np.float32)

    def everything(turn: Any) -> list[Any]:
        s, index = coder.quantize(50, turn(good.z), turn(y), turn(reluctance))
        mu, again = coder.predict(50, turn(good.z), turn(s))
        data = coder.encode(50, turn(good.z), turn(index), turn(s))
        return [mu, index, again, s, data, coder.quantize_hyper(50, turn(z_raw))]

    expected = everything(np.copy)
    for name in ("predict", "quantize", "encode"):
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


def test_twin_serves_where_the_core_is_not_built(
    tables: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "edgecodec.core._binding", None)
    monkeypatch.delattr(edgecodec.core, "_binding", raising=False)
    with pytest.warns(RuntimeWarning, match="C core of edgecodec is not built"):
        assert LatentCoder(tables).implementation == "numpy"
    with pytest.raises(ConfigError, match="not built"):
        LatentCoder(tables, "c")


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
