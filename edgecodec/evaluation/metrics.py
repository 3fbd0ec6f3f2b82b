"""Rate and distortion: bits per pixel, the table of metrics, PSNR, MS-SSIM and BD-rate.

All functions are deterministic up to the rounding of floating-point sums (within tolerance:
equal inputs give results that agree to about 1e-6 between machines).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import UInt8Array
from edgecodec.errors import ConfigError, UnknownPluginError
from edgecodec.evaluation import butteraugli, ssimulacra2
from edgecodec.evaluation.window import WINDOW, Plane, blur, check_pair

_Curve = npt.NDArray[np.float64]

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first."""

MS_SSIM_C1 = (0.01 * 255.0) ** 2
MS_SSIM_C2 = (0.03 * 255.0) ** 2
"""What steadies the luminance and the contrast-structure term of dark and of flat places."""

MS_SSIM_MIN_SIDE = (WINDOW - 1) * 2 ** (len(MS_SSIM_WEIGHTS) - 1) + 1
"""Smallest height and width MS-SSIM is defined for: the window must fit the fifth scale."""


def bpp(n_bytes: int, height: int, width: int) -> float:
    """Return the bits per pixel of a file of `n_bytes` (the whole file, header included).

    Raises:
        ConfigError: a size is negative, or the image has no pixels.
    """
    if n_bytes < 0 or height < 1 or width < 1:
        raise ConfigError(f"no rate for {n_bytes} bytes and {height} x {width} pixels")
    return 8.0 * n_bytes / (height * width)


def psnr_rgb(a: UInt8Array, b: UInt8Array) -> float:
    """Return the peak signal-to-noise ratio in dB over all samples of two images.

    `10 log10(255^2 / MSE)`, one MSE over the three channels.

    Args:
        a: (H, W, 3) uint8.
        b: (H, W, 3) uint8.

    Returns:
        Decibels; infinity for identical images. Average it over images *after* the logarithm.

    Raises:
        ConfigError: not uint8, not (H, W, 3), or of different shapes.
    """
    check_pair(a, b)
    difference = a.astype(np.int32) - b.astype(np.int32)
    mse = float(np.mean(np.square(difference), dtype=np.float64))
    return math.inf if mse == 0 else 10.0 * math.log10(255.0**2 / mse)


def ms_ssim(a: UInt8Array, b: UInt8Array) -> float:
    """Return the multi-scale structural similarity of two images.

    Wang, Simoncelli and Bovik 2003 ("Multiscale structural similarity for image quality
    assessment"), with the choices of the `pytorch-msssim` package that the learned-compression
    literature reports: each RGB channel on its own, then the mean; 11-tap Gaussian of sigma 1.5,
    no padding; five scales by 2 x 2 averaging (zero border where a side is odd); K1 = 0.01,
    K2 = 0.03, peak 255; negative contrast-structure terms count as zero.

    Args:
        a: (H, W, 3) uint8, both sides at least `MS_SSIM_MIN_SIDE` (161).
        b: (H, W, 3) uint8.

    Returns:
        A number in [0, 1], 1 for identical images.

    Raises:
        ConfigError: not uint8, not (H, W, 3), of different shapes, or a side below 161 pixels.
    """
    check_pair(a, b, MS_SSIM_MIN_SIDE, "MS-SSIM")
    if np.array_equal(a, b):
        return 1.0  # rounding would leave it just below or above
    channels = (
        _ms_ssim_plane(
            np.ascontiguousarray(a[..., c], dtype=np.float32),
            np.ascontiguousarray(b[..., c], dtype=np.float32),
        )
        for c in range(3)
    )
    return min(sum(channels) / 3.0, 1.0)


def ms_ssim_db(value: float) -> float:
    """Return an MS-SSIM value on the usual logarithmic scale, `-10 log10(1 - value)` dB."""
    return math.inf if value >= 1.0 else -10.0 * math.log10(1.0 - value)


@dataclass(frozen=True)
class Metric:
    """How good a picture is beside the original.

    Attributes:
        title: what tables and pages call it.
        unit: of the scale that BD-rates are computed on.
        measure: of one picture, the original first; pictures are averaged by it.
        quality: brings an average to the scale that BD-rates are computed on, where higher is
            better and identical pictures may lie at infinity.
        decimals: to be shown.
        least_side: in pixels, of pictures that can be measured.
        least_rise: on the scale of `quality`, less than any trained codec gains from its worst
            to its best quality.
        higher_is_better: of `measure`.
        version: tells apart builds of a program that it takes; raises where there is none.
    """

    title: str
    unit: str
    measure: Callable[[UInt8Array, UInt8Array], float]
    quality: Callable[[float], float] = float
    decimals: int = 2
    least_side: int = 1
    least_rise: float = 1.0
    higher_is_better: bool = True
    version: Callable[[], str] = str


METRICS = {
    "psnr": Metric("PSNR", "dB", psnr_rgb),
    "ms-ssim": Metric(
        "MS-SSIM", "dB", ms_ssim, ms_ssim_db, decimals=4, least_side=MS_SSIM_MIN_SIDE
    ),
    "ssimulacra2": Metric(
        "SSIMULACRA2",
        "points",
        ssimulacra2.ssimulacra2,
        least_side=ssimulacra2.SMALLEST,
        least_rise=5.0,
    ),
    "butteraugli": Metric(
        "butteraugli",
        "3-norm",
        butteraugli.butteraugli,
        lambda norm: -norm,
        decimals=3,
        least_side=butteraugli.LEAST_SIDE,
        least_rise=0.5,
        higher_is_better=False,
        version=butteraugli.program_digest,
    ),
}
"""By name. One more entry is all that a new metric takes."""
DEFAULT_METRICS = ("psnr", "ms-ssim", "ssimulacra2")
"""Those that need nothing beside this package."""


def metric_of(name: str) -> Metric:
    """Return a metric that works here.

    Raises:
        UnknownPluginError: there is none of that name.
        BackendUnavailableError: a program that it takes is missing.
    """
    if name not in METRICS:
        raise UnknownPluginError("metric", name, tuple(METRICS))
    METRICS[name].version()
    return METRICS[name]


def format_score(metric: str, score: float | None) -> str:
    """Return a score to be shown; a dash where there is none."""
    return "-" if score is None else f"{score:.{METRICS[metric].decimals}f}"


def scores_text(scores: Mapping[str, float | None]) -> str:
    """Return scores by metric on one line."""
    return ", ".join(f"{METRICS[m].title} {format_score(m, score)}" for m, score in scores.items())


def bd_rate(
    anchor_rates: Sequence[float],
    anchor_quality: Sequence[float],
    rates: Sequence[float],
    quality: Sequence[float],
) -> float:
    """Return the Bjontegaard rate difference of a codec against an anchor, in percent.

    Bjontegaard 2001 (VCEG-M33) in the piecewise-cubic form of JCTVC-B055 and later: log-rate is
    interpolated over quality by a monotone cubic (PCHIP: Fritsch and Carlson 1980, slopes of
    Fritsch and Butland 1984) and integrated exactly over the quality range both curves cover.

    Points may come in any order. A point that costs as much or more than another one without
    being better is dropped first: no encoder would be used there, and log-rate over quality is a
    function only without it. A flat stretch therefore keeps its cheapest point.

    Args:
        anchor_rates: rates of the anchor, > 0, any unit (bpp, bytes).
        anchor_quality: its quality at each rate in dB, the same length.
        rates: rates of the codec in question, same unit.
        quality: its quality at each rate.

    Returns:
        Percent of bits at equal quality; negative means the codec needs fewer than the anchor.

    Raises:
        ConfigError: unequal lengths, values that are not finite, rates that are not positive,
            fewer than two useful points, or no common range of quality.
    """
    anchor, codec = _curve(anchor_rates, anchor_quality), _curve(rates, quality)
    low, high = _overlap(anchor, codec)
    areas = [_pchip_integral(q, np.log(r), low, high) for r, q in (anchor, codec)]
    return 100.0 * math.expm1((areas[1] - areas[0]) / (high - low))


def quality_overlap(
    anchor_rates: Sequence[float],
    anchor_quality: Sequence[float],
    rates: Sequence[float],
    quality: Sequence[float],
) -> tuple[float, float]:
    """Return the range of quality that `bd_rate` compares over, with the same arguments.

    Raises:
        ConfigError: as `bd_rate`.
    """
    return _overlap(_curve(anchor_rates, anchor_quality), _curve(rates, quality))


def _ms_ssim_plane(a: Plane, b: Plane) -> float:
    """MS-SSIM of two (H, W) planes in 0..255."""
    result = 1.0
    last = len(MS_SSIM_WEIGHTS) - 1
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        result *= max(_similarity(a, b, luminance=scale == last), 0.0) ** weight
        if scale < last:
            a, b = _halve(a), _halve(b)
    return result


def _similarity(a: Plane, b: Plane, *, luminance: bool) -> float:
    """Mean contrast-structure term of one scale, times the luminance term where asked for.

    Only the sum of the two variances occurs in the formula, so it takes four filters, not five.
    """
    mean_a, mean_b = blur(a), blur(b)
    product = mean_a * mean_b
    squares = mean_a * mean_a + mean_b * mean_b
    covariance = blur(a * b) - product
    variances = blur(a * a + b * b) - squares
    similarity = (2 * covariance + MS_SSIM_C2) / (variances + MS_SSIM_C2)
    if luminance:
        similarity *= (2 * product + MS_SSIM_C1) / (squares + MS_SSIM_C1)
    return float(np.mean(similarity, dtype=np.float64))


def _halve(plane: Plane) -> Plane:
    """Average 2 x 2 blocks; an odd side gets a border of zeros first, as pytorch-msssim has it."""
    odd = [side % 2 for side in plane.shape]
    if any(odd):
        plane = np.pad(plane, [(p, p) for p in odd])
    plane = plane[: plane.shape[0] // 2 * 2, : plane.shape[1] // 2 * 2]
    rows = plane[0::2] + plane[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def _curve(rates: Sequence[float], quality: Sequence[float]) -> tuple[_Curve, _Curve]:
    """Check a rate-quality curve and keep the points that are worth their bits, ascending."""
    r, q = np.asarray(rates, np.float64), np.asarray(quality, np.float64)
    if r.ndim != 1 or r.shape != q.shape:
        raise ConfigError(f"rates and quality must be equally long, found {r.shape}, {q.shape}")
    if not (np.isfinite(r).all() and np.isfinite(q).all() and (r > 0).all()):
        raise ConfigError("BD-rate needs finite quality and finite rates above zero")
    # Cheapest first, and of equal rates the best first: then a point is useful exactly when it
    # is better than all before it.
    order = np.lexsort((-q, r))
    r, q = r[order], q[order]
    useful = q > np.concatenate(([-np.inf], np.maximum.accumulate(q)[:-1]))
    if useful.sum() < 2:
        raise ConfigError("BD-rate needs two or more points of rising rate and quality")
    return r[useful], q[useful]


def _overlap(first: tuple[_Curve, _Curve], second: tuple[_Curve, _Curve]) -> tuple[float, float]:
    low = float(max(first[1][0], second[1][0]))
    high = float(min(first[1][-1], second[1][-1]))
    if high <= low:
        raise ConfigError(
            f"the curves have no quality in common: {first[1][0]:.2f} to {first[1][-1]:.2f} and "
            f"{second[1][0]:.2f} to {second[1][-1]:.2f}; widen the range of qualities"
        )
    return low, high


def _pchip_integral(x: _Curve, y: _Curve, low: float, high: float) -> float:
    """Integrate the monotone cubic through (x, y), x ascending, over [low, high] within x."""
    h = np.diff(x)
    secant = np.diff(y) / h
    slope = _pchip_slopes(h, secant)
    # On each interval y = c0 + c1 t + c2 t^2 + c3 t^3 with t from its left end.
    c2 = (3 * secant - 2 * slope[:-1] - slope[1:]) / h
    c3 = (slope[:-1] + slope[1:] - 2 * secant) / h**2

    def primitive(t: _Curve) -> _Curve:
        total: _Curve = t * (y[:-1] + t * (slope[:-1] / 2 + t * (c2 / 3 + t * c3 / 4)))
        return total

    start, stop = np.clip(low - x[:-1], 0, h), np.clip(high - x[:-1], 0, h)
    return float(np.sum(primitive(stop) - primitive(start)))


def _pchip_slopes(h: _Curve, secant: _Curve) -> _Curve:
    """Slopes at the points: weighted harmonic means inside, one-sided three-point at the ends."""
    if len(h) == 1:
        return np.repeat(secant, 2)
    slope = np.zeros(len(h) + 1)
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    same_sign = secant[:-1] * secant[1:] > 0
    left, right = (np.where(same_sign, s, 1.0) for s in (secant[:-1], secant[1:]))
    slope[1:-1] = np.where(same_sign, (w1 + w2) / (w1 / left + w2 / right), 0.0)
    slope[0] = _end_slope(h[0], h[1], secant[0], secant[1])
    slope[-1] = _end_slope(h[-1], h[-2], secant[-1], secant[-2])
    return slope


def _end_slope(h0: float, h1: float, s0: float, s1: float) -> float:
    """Three-point slope at an end, limited so that the curve stays monotone."""
    slope = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
    if slope * s0 <= 0:
        return 0.0
    if s0 * s1 <= 0 and abs(slope) > 3 * abs(s0):
        return 3 * s0
    return slope
