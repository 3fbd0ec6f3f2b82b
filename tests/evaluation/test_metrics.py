"""Metrics against independent implementations and published numbers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from edgecodec.arrays import UInt8Array
from edgecodec.errors import ConfigError
from edgecodec.evaluation.metrics import (
    MS_SSIM_MIN_SIDE,
    bd_rate,
    bpp,
    ms_ssim,
    ms_ssim_db,
    psnr_rgb,
    quality_overlap,
)

Array = npt.NDArray[np.float64]
Points = list[tuple[float, float, float]]

# Kodak averages (bpp, PSNR-RGB dB, MS-SSIM-RGB) and the BD-rates between them, from the project's
# survey file kodak_rd.json: mbt2018-mean as published by CompressAI (commit 869a9f5d,
# results/image/8bit-decoded/kodak); AVIF (libavif 1.4.2, speed 6, 4:2:0) and JPEG (progressive,
# 4:2:0) as the survey measured them.
MBT2018_MEAN = [
    (0.12392171223958336, 27.69583757718404, 0.9177580053607622),
    (0.19798109266493058, 29.353530724843342, 0.9429814790685972),
    (0.3072441948784722, 31.121095101038616, 0.9614063774545988),
    (0.46061197916666674, 32.93884746233622, 0.975120889643828),
    (0.6616651746961806, 34.949936866760254, 0.9834911773602167),
    (0.9144049750434027, 36.88314358393351, 0.989159015317758),
    (1.2342088487413194, 38.79441340764364, 0.9929624150196711),
    (1.619089762369792, 40.56895097096761, 0.9952663431564966),
]
AVIF = [
    (0.07644483778211807, 25.86578979394803, 0.8802628332362518),
    (0.12435743543836807, 27.294477683595797, 0.9167789332250477),
    (0.1898091634114584, 28.620818427123027, 0.9409125575842355),
    (0.3101535373263889, 30.432459854380962, 0.9623502169968368),
    (0.4957309299045139, 32.47784630260686, 0.9765920975580041),
    (0.7218076917860242, 34.291643396911624, 0.9843861257361759),
    (1.0053939819335935, 36.132246660604274, 0.9891400483836575),
    (1.4252955118815105, 38.23988984598589, 0.9925500999106173),
    (1.9082828097873261, 39.91051471930519, 0.9948047444471176),
    (3.360972934299045, 42.606844505647224, 0.9970561358217097),
]
JPEG = [
    (0.1542697482638889, 23.85221750663385, 0.8070860805352699),
    (0.2683749728732639, 26.67182036133066, 0.8942416130912121),
    (0.45817989773220497, 29.14454484949287, 0.9456727876361867),
    (0.6149953206380209, 30.491472872108307, 0.9631524662416303),
    (0.7434387207031251, 31.422047307855873, 0.9716922929978521),
    (0.8648401896158853, 32.17381570095742, 0.9768756955771355),
    (0.9959284464518227, 32.90757794140709, 0.9806257982388807),
    (1.1925760904947915, 33.916748090481704, 0.9847211087842251),
    (1.504369947645399, 35.369984720838254, 0.9888591773947),
    (2.206966824001736, 38.03397334163549, 0.9932895088523099),
    (3.1169899834526915, 40.56040907935196, 0.9956745218148852),
]


def pair(height: int, width: int, noise: float) -> tuple[UInt8Array, UInt8Array]:
    """A smooth, coloured image and a noisy, shifted copy, both (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (3, 3, 0))
    image = 127 + 100 * image / np.abs(image).max() + rng.normal(0, 4, (height, width, 1))
    other = ndimage.gaussian_filter(image, (0.6, 0.6, 0)) + rng.normal(0, noise, image.shape)
    first, second = (np.clip(x, 0, 255).round().astype(np.uint8) for x in (image, other + 3))
    return first, second


def reference_ms_ssim(a: UInt8Array, b: UInt8Array) -> float:
    """The formulas written down once more: float64, 2-D windows, all five filters."""
    x = np.arange(11) - 5.0
    g = np.exp(-(x**2) / (2 * 1.5**2))
    window = np.outer(g, g) / np.outer(g, g).sum()

    def blur(plane: Array) -> Array:
        filtered: Array = ndimage.correlate(plane, window, mode="constant")
        return filtered[5:-5, 5:-5]

    def pool(plane: Array) -> Array:
        padded = np.pad(plane, [(s % 2, s % 2) for s in plane.shape])
        rows, columns = padded.shape[0] // 2, padded.shape[1] // 2
        blocks = padded[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)
        means: Array = blocks.mean(axis=(1, 3))
        return means

    scores = []
    for channel in range(3):
        p, q = a[..., channel].astype(np.float64), b[..., channel].astype(np.float64)
        score = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mp, mq = blur(p), blur(q)
            vp, vq, cov = blur(p * p) - mp**2, blur(q * q) - mq**2, blur(p * q) - mp * mq
            term = (2 * cov + 7.65**2) / (vp + vq + 7.65**2)
            if scale == 4:
                term = term * (2 * mp * mq + 2.55**2) / (mp**2 + mq**2 + 2.55**2)
            score *= max(term.mean(), 0.0) ** weight
            p, q = pool(p), pool(q)
        scores.append(score)
    return float(np.mean(scores))


def columns(points: Points, metric: str) -> tuple[list[float], list[float]]:
    """Rates and qualities in dB."""
    return [p[0] for p in points], [p[1] if metric == "psnr" else ms_ssim_db(p[2]) for p in points]


def test_bpp_counts_the_whole_file() -> None:
    assert bpp(49152, 512, 768) == 1.0
    with pytest.raises(ConfigError):
        bpp(10, 0, 5)


def test_psnr_rgb_matches_the_definition() -> None:
    a = np.zeros((4, 6, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 255
    assert psnr_rgb(a, b) == pytest.approx(10 * math.log10(4 * 6 * 3))
    assert psnr_rgb(a, a) == math.inf
    # uint8 differences must not wrap around.
    assert psnr_rgb(a, a + 255) == pytest.approx(0.0)


@pytest.mark.parametrize("metric", [psnr_rgb, ms_ssim])
def test_metrics_refuse_what_is_no_pair_of_rgb_images(
    metric: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float],
) -> None:
    a = np.zeros((170, 170, 3), np.uint8)
    for wrong in (a[..., 0], a.astype(np.float32), a[:-1], np.zeros((170, 170, 4), np.uint8)):
        with pytest.raises(ConfigError):
            metric(a, wrong)


@pytest.mark.parametrize(
    ("height", "width", "noise"),
    [(176, 192, 2.0), (161, 161, 9.0), (181, 203, 25.0), (167, 240, 70)],
)
def test_ms_ssim_matches_an_independent_implementation(
    height: int, width: int, noise: float
) -> None:
    a, b = pair(height, width, noise)
    assert ms_ssim(a, b) == pytest.approx(reference_ms_ssim(a, b), abs=2e-6)
    assert ms_ssim(a, b) == pytest.approx(ms_ssim(b, a), abs=1e-6)


def test_ms_ssim_stays_in_range() -> None:
    a, _ = pair(161, 170, 1.0)
    assert ms_ssim(a, a) == 1.0
    assert 0.0 <= ms_ssim(a, 255 - a) < 0.2
    assert 0.9 < ms_ssim(a, np.where(a < 255, a + 1, a).astype(np.uint8)) <= 1.0


def test_ms_ssim_names_the_smallest_size_when_an_image_is_smaller() -> None:
    assert MS_SSIM_MIN_SIDE == 161
    a = np.zeros((160, 400, 3), np.uint8)
    with pytest.raises(ConfigError, match="161"):
        ms_ssim(a, a)


def test_ms_ssim_db_is_logarithmic() -> None:
    assert ms_ssim_db(0.99) == pytest.approx(20.0)
    assert ms_ssim_db(1.0) == math.inf


@pytest.mark.parametrize(
    ("anchor", "codec", "metric", "published"),
    [
        (AVIF, MBT2018_MEAN, "psnr", -18.11),
        (AVIF, MBT2018_MEAN, "ms_ssim", -6.22),
        (AVIF, JPEG, "psnr", 87.11),
        (AVIF, JPEG, "ms_ssim", 83.63),
        (JPEG, AVIF, "psnr", -46.56),
        (JPEG, AVIF, "ms_ssim", -45.54),
    ],
)
def test_bd_rate_reproduces_published_pairs(
    anchor: Points,
    codec: Points,
    metric: str,
    published: float,
) -> None:
    found = bd_rate(*columns(anchor, metric), *columns(codec, metric))
    # The survey integrated over samples, this integrates exactly: up to 0.1 % of the rate apart.
    assert found == pytest.approx(published, abs=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_bd_rate_matches_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(2):
        count = int(rng.integers(2, 14))
        quality = np.cumsum(rng.uniform(0.2, 3.0, count)) + rng.uniform(26, 27)
        rates = np.exp(np.cumsum(rng.uniform(0.01, 0.6, count)) - 3)
        curves.append((rates.tolist(), quality.tolist()))
    (ra, qa), (rb, qb) = curves
    low, high = max(qa[0], qb[0]), min(qa[-1], qb[-1])
    areas = [PchipInterpolator(q, np.log(r)).integrate(low, high) for r, q in curves]
    expected = 100 * math.expm1((areas[1] - areas[0]) / (high - low))
    assert bd_rate(ra, qa, rb, qb) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert quality_overlap(ra, qa, rb, qb) == (low, high)


def test_bd_rate_of_scaled_rates_is_the_scale() -> None:
    rates, quality = columns(AVIF, "psnr")
    assert bd_rate(rates, quality, [0.8 * r for r in rates], quality) == pytest.approx(-20.0)
    forth = bd_rate(rates, quality, *columns(MBT2018_MEAN, "psnr"))
    back = bd_rate(*columns(MBT2018_MEAN, "psnr"), rates, quality)
    assert (1 + forth / 100) * (1 + back / 100) == pytest.approx(1.0)


def test_bd_rate_ignores_order_and_points_not_worth_their_bits() -> None:
    anchor, (rates, quality) = columns(JPEG, "psnr"), columns(AVIF, "psnr")
    expected = bd_rate(*anchor, rates, quality)
    # More bits for less, the same quality for more bits, the same rate with less quality, twice.
    rates, quality = (
        [1.2, 0.6, rates[3], rates[2], *rates],
        [35.0, quality[4], 29.0, quality[2], *quality],
    )
    assert bd_rate(*anchor, rates[::-1], quality[::-1]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rates", "quality", "message"),
    [
        ([1.0, 2.0], [50.0, 55.0], "in common"),
        ([1.0, 2.0, 3.0], [30.0, 35.0], "equally long"),
        ([0.0, 2.0], [30.0, 35.0], "above zero"),
        ([1.0, 2.0], [30.0, math.inf], "finite"),
        ([1.0, 2.0], [35.0, 30.0], "two or more"),
        ([], [], "two or more"),
    ],
)
def test_bd_rate_says_why_there_is_none(
    rates: list[float], quality: list[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bd_rate(*columns(AVIF, "psnr"), rates, quality)
