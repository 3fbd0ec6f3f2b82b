"""Encoder effort: what it spends buys bits, and no decoder can tell."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.arrays import Float32Array, UInt8Array
from edgecodec.codec import Codec
from edgecodec.coding.effort import PLANS, STEP_WEIGHT, decide, dequantize, thresholds_of
from edgecodec.errors import ConfigError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.container import read_container
from edgecodec.format.tables import RELUCTANCES
from tests.support.streams import likely_tables


@pytest.fixture(scope="module")
def coders() -> tuple[LatentCoder, LatentCoder]:
    tables = likely_tables().to_bytes()
    return LatentCoder(tables, "c"), LatentCoder(tables, "numpy")


def latents(coder: LatentCoder, seed: int, zh: int = 3, zw: int = 5) -> tuple[Float32Array, ...]:
    """y and z as an analysis might give them."""
    rng = np.random.default_rng(seed)
    y = rng.laplace(0, 0.7, (2 * zh, 2 * zw, coder.latent_channels)).astype(np.float32)
    return y, rng.normal(0, 2, (zh, zw, coder.hyper_channels)).astype(np.float32)


def spent(codec: Codec, pixels: UInt8Array, quality: int, effort: int) -> tuple[int, float]:
    data = codec.encode(pixels, quality, effort=effort)
    error = np.asarray(codec.decode(data), np.float64) - pixels
    return 8 * len(data), float((error**2).mean())


def test_effort_one_is_plain_rounding(coders: tuple[LatentCoder, LatentCoder]) -> None:
    coder, _ = coders
    y, z = latents(coder, 1)

    def never(_: npt.NDArray[np.int16]) -> Float32Array:
        raise AssertionError("the plain path runs no network")

    choice = decide(coder, 50, y, z, 1, never)
    s, index = coder.quantize(50, choice.z, choice.y, choice.reluctance)
    assert coder.encode(50, choice.z, index, s) == coder.compress(50, y, z)


@pytest.mark.parametrize("quality", [1, 40, 100])
def test_price_without_errors_is_the_size(
    coders: tuple[LatentCoder, LatentCoder], quality: int
) -> None:
    coder, _ = coders
    y, z = latents(coder, quality, 12, 14)
    # Symbols of the tables' own size: the price of escapes is rough.
    y *= 0.3 / coder.tables.gain_y[quality - 1]
    z_hat = np.zeros_like(coder.quantize_hyper(quality, z))
    mu, _ = coder.predict(quality, z_hat, np.zeros(y.shape, np.int16))
    y += mu / np.float32(16)
    s, index = coder.quantize(quality, z_hat, y)
    assert s.any()
    size = 8 * len(coder.encode(quality, z_hat, index, s))
    price = coder.price(quality, z_hat, y, weight=0.0).sum()
    assert price == pytest.approx(size - 64, rel=0.02, abs=64)  # the coder's two states


@pytest.mark.parametrize("reluctance", [None, 0.3])
def test_price_is_the_same_in_core_and_twin(
    coders: tuple[LatentCoder, LatentCoder], reluctance: float | None
) -> None:
    core, twin = coders
    y, z = latents(core, 5)
    y[0, 0] = 5000.0  # escapes
    z_hat = core.quantize_hyper(70, z)
    thresholds = None if reluctance is None else thresholds_of(core.tables, reluctance)
    prices = [c.price(70, z_hat, y, thresholds, weight=3.0) for c in coders]
    assert prices[0].shape == z_hat.shape[:2]
    np.testing.assert_allclose(prices[0], prices[1], rtol=1e-5)
    assert twin.implementation == "numpy"


def test_price_counts_errors_in_steps(coders: tuple[LatentCoder, LatentCoder]) -> None:
    coder, _ = coders
    y, z = latents(coder, 6)
    z_hat = coder.quantize_hyper(30, z)
    s, _ = coder.quantize(30, z_hat, y)
    mu, _ = coder.predict(30, z_hat, s)
    error = (y - mu / 16) * coder.tables.gain_y[29] - s
    difference = coder.price(30, z_hat, y, weight=2.0) - coder.price(30, z_hat, y, weight=0.0)
    assert difference.sum() == pytest.approx(2.0 * (error**2).sum(), rel=1e-3)


def test_thresholds_rise_with_the_bits_saved(coders: tuple[LatentCoder, LatentCoder]) -> None:
    tables = coders[0].tables
    thresholds = thresholds_of(tables, 1.0)
    assert thresholds.shape == (len(tables.frequencies), RELUCTANCES)
    assert (thresholds[1:] >= 0).all()
    first = thresholds[1:, 0]
    assert first[0] > 0.3 > 0.1 > first[19]  # rare symbols are given up, common ones kept
    assert np.allclose(thresholds_of(tables, 0.5), thresholds / 2)
    row = tables.bits()[20]
    half = len(row) // 2 - 1
    assert thresholds[20, 0] == pytest.approx((row[half + 1] - row[half]) / (2 * STEP_WEIGHT))


def test_dequantize_is_what_the_decoder_sees(coders: tuple[LatentCoder, LatentCoder]) -> None:
    coder, _ = coders
    y, z = latents(coder, 7)
    z_hat = coder.quantize_hyper(80, z)
    thresholds = thresholds_of(coder.tables, 0.5)
    s, index = coder.quantize(80, z_hat, y, thresholds)
    zh, zw, _ = z_hat.shape
    _, y_hat = coder.decode(80, zh, zw, coder.encode(80, z_hat, index, s))
    assert (dequantize(coder, 80, z_hat, y, thresholds) == y_hat).all()


def test_search_of_hyper_latents_never_costs_more(
    coders: tuple[LatentCoder, LatentCoder],
) -> None:
    coder, _ = coders
    y, z = latents(coder, 8)
    thresholds = thresholds_of(coder.tables, PLANS[9].reluctance)

    def still(y_hat: npt.NDArray[np.int16]) -> Float32Array:
        """A perfect transform: analysis finds what the synthesis was given."""
        return y_hat.astype(np.float32) / np.float32(16)

    choice = decide(coder, 50, y, z, 9, still)
    plain = coder.price(50, coder.quantize_hyper(50, z), choice.y, thresholds, weight=STEP_WEIGHT)
    found = coder.price(50, choice.z, choice.y, thresholds, weight=STEP_WEIGHT)
    assert found.sum() < plain.sum()
    # With such a transform the loop has nothing to correct.
    np.testing.assert_allclose(choice.y, y, atol=1e-4)


@pytest.mark.parametrize("quality", [20, 80])
def test_effort_buys_bits_at_equal_quality(codec: Codec, photo: UInt8Array, quality: int) -> None:
    """Bits plus distortion at the slope of plain files of neighbouring quality."""
    pixels = np.ascontiguousarray(photo[128:320, 256:512])
    bits, error = spent(codec, pixels, quality, 1)
    more_bits, less_error = spent(codec, pixels, quality + 10, 1)
    price_of_error = (more_bits - bits) / (error - less_error)
    costs = [b + price_of_error * e for b, e in (spent(codec, pixels, quality, n) for n in (4, 9))]
    plain = bits + price_of_error * error
    assert costs[0] < 0.998 * plain
    assert costs[1] < 0.995 * plain


@pytest.mark.parametrize("effort", [2, 9])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 70)])
def test_any_size_in_tiles(
    codec: Codec, photo: UInt8Array, height: int, width: int, effort: int
) -> None:
    pixels = np.ascontiguousarray(photo[200 : 200 + height, 300 : 300 + width])
    data = codec.encode(pixels, 70, effort=effort, tile=32)
    assert len(read_container(data).substreams) == -(-height // 32) * -(-width // 32)
    decoded = np.asarray(codec.decode(data))
    assert decoded.shape == pixels.shape
    plain = np.asarray(codec.decode(codec.encode(pixels, 70)))
    assert ((decoded - pixels.astype(float)) ** 2).mean() < 1.5 * (
        (plain - pixels.astype(float)) ** 2
    ).mean() + 4


def test_latents_of_a_file_do_not_say_how_it_was_made(codec: Codec, small: UInt8Array) -> None:
    data = codec.encode(small, 60, effort=5)
    assert (codec.decode_latents(data) == codec.decode_latents(data)).all()
    assert read_container(data).header == read_container(codec.encode(small, 60)).header


@pytest.mark.parametrize("effort", [0, 10, 2.5, True, None, "3"])
def test_effort_out_of_range_is_a_config_error(
    codec: Codec, small: UInt8Array, effort: object
) -> None:
    with pytest.raises(ConfigError, match="effort must be a whole number from 1 to 9"):
        codec.encode(small, effort=effort)  # type: ignore[arg-type]
