"""Rate-distortion of a codec on real files: encode, measure the bytes, decode, compare.

Nothing is estimated: the rate is the size of the whole file and the distortion is that of the
decoded 8-bit picture. Every metric is taken per image and then averaged, as is usual in learned
compression; the BD-rate is that of the averaged curves, on the metric's scale of quality.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

import numpy as np
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.coding.image_files import load_rgb
from edgecodec.errors import BackendError, ConfigError
from edgecodec.evaluation.cache import ResultCache
from edgecodec.evaluation.classical import (
    ClassicalCodec,
    ImageCodec,
    classical_codec,
)
from edgecodec.evaluation.metrics import (
    DEFAULT_METRICS,
    METRICS,
    bd_rate,
    bpp,
    metric_of,
    quality_overlap,
)

Progress = Callable[["ImageResult"], None]
_T = TypeVar("_T")
_FORMAT = 3


@dataclass(frozen=True)
class ImageResult:
    """One image at one quality.

    Attributes:
        codec: name of the codec.
        image: file name of the image.
        quality: the quality asked for, on the codec's own scale.
        width: pixels.
        height: pixels.
        bytes: size of the file.
        bpp: bits per pixel.
        scores: by metric, a name of `evaluation.metrics.METRICS`; None where the image is too
            small for it or the value infinite, as is the PSNR of an identical image.
        encode_s: wall-clock seconds; None for a result from the cache.
        decode_s: the same for decoding.
    """

    codec: str
    image: str
    quality: int
    width: int
    height: int
    bytes: int
    bpp: float
    scores: dict[str, float | None]
    encode_s: float | None
    decode_s: float | None


@dataclass(frozen=True)
class Average:
    """One quality over all images; None where an image has no such value.

    Attributes are those of `ImageResult`, and `images` counts them. Rate and distortion are means;
    times are medians, because the first call of many codecs is a slow one.
    """

    codec: str
    quality: int
    images: int
    bpp: float
    scores: dict[str, float | None]
    encode_s: float | None
    decode_s: float | None

    def level(self, metric: str) -> float | None:
        """Return a score on the metric's scale of quality, higher is better; None if not finite."""
        score = self.scores[metric]
        level = math.inf if score is None else METRICS[metric].quality(score)
        return level if math.isfinite(level) else None


@dataclass(frozen=True)
class BdRate:
    """Bits of a codec against an anchor at equal quality.

    Attributes:
        codec: the codec in question.
        anchor: what it is compared with.
        metric: a name of `evaluation.metrics.METRICS`.
        percent: negative means fewer bits than the anchor; None where it cannot be said.
        low: lower end of the quality range both cover, on the metric's scale of quality.
        high: its upper end.
        reason: why there is no number, else empty.
    """

    codec: str
    anchor: str
    metric: str
    percent: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All results of a run, ours first.

    Attributes:
        codec: name of the codec under test.
        anchors: names of the codecs it is compared with.
        variants: names of further settings of ours, compared with it and with the anchors.
        metrics: names of the metrics.
        settings: versions and options by codec name, and `machine`.
        rows: one per codec, quality and image.
        averages: one per codec and quality.
        bd_rates: one per anchor and metric; for each variant also against the codec.
        failures: by image name, why an image is in none of the results.
    """

    codec: str
    anchors: tuple[str, ...]
    variants: tuple[str, ...]
    metrics: tuple[str, ...]
    settings: dict[str, str]
    rows: tuple[ImageResult, ...]
    averages: tuple[Average, ...]
    bd_rates: tuple[BdRate, ...]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images, in order."""
        return tuple(dict.fromkeys(row.image for row in self.rows))

    def curve(self, codec: str) -> tuple[Average, ...]:
        """Return the averages of one codec, ascending in rate."""
        return tuple(sorted((a for a in self.averages if a.codec == codec), key=lambda a: a.bpp))

    def to_json(self) -> str:
        """Return everything as JSON text."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Return the rows as CSV text, a column per metric; empty where there is no value."""
        text = io.StringIO()
        names = [f.name for f in fields(ImageResult)]
        at = names.index("scores")
        names[at : at + 1] = self.metrics
        writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**asdict(row), **row.scores} for row in self.rows)
        return text.getvalue()


def evaluate(
    images: Sequence[Path],
    codec: ImageCodec,
    qualities: Sequence[int],
    *,
    name: str = "edgecodec",
    variants: Mapping[str, ImageCodec] | None = None,
    against: Sequence[str] = ("jpeg", "webp", "avif"),
    metrics: Sequence[str] = DEFAULT_METRICS,
    cache: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """Encode and decode images at several qualities and compare with the classical codecs.

    Args:
        images: picture files; orientation tags are applied, transparency is dropped. One that
            cannot be read or coded is left out of all results and named in `failures`.
        codec: anything with `encode(image, quality=...)` and `decode(data)`.
        qualities: what to ask of `codec`; two or more for a BD-rate.
        name: the codec's name in the results.
        variants: the codec in other settings by name, measured at the same qualities.
        against: names of classical codecs, each run over its own sweep.
        metrics: names of `evaluation.metrics.METRICS`.
        cache: JSON file with results of classical codecs, made when missing. A result is found
            by the hash of the pixels, the quality, the metric and the library versions, so it is
            never stale. It holds no times: those belong to the machine and the moment.
        workers: threads, each on an image of its own. Times are only worth reading with 1.
        progress: called with each row as it is done, by the thread that did it.

    Returns:
        The results, the codec under test first. Sizes and distortions are as exact as the codec
        is; times are of single calls without warm-up (`edgecodec bench` measures properly).

    Raises:
        ConfigError: no images or qualities, none of the images can be read and coded, or a cache
            of another kind.
        UnknownPluginError: a name in `against` or `metrics` is not known.
        BackendUnavailableError: this Pillow lacks a codec in `against`, or a metric's program is
            not installed.
        BackendError: the codec returned a picture of another size.
    """
    if not qualities or not metrics:
        raise ConfigError("evaluation needs at least one quality and one metric")
    metrics = tuple(dict.fromkeys(metrics))
    keys = {metric: f"{metric} {metric_of(metric).version()}".strip() for metric in metrics}
    ours = {name: codec, **(variants or {})}
    if clash := sorted(set(ours) & set(against)):
        raise ConfigError(f"the codec under test cannot go by the name of an anchor, {clash[0]!r}")
    anchors = {anchor: classical_codec(anchor) for anchor in against}
    results = ResultCache(cache)

    def measure(picture: tuple[str, Path]) -> list[ImageResult]:
        """All rows of one image, so that no more than `workers` images are in memory."""
        source = _Source(picture[0], load_rgb(picture[1]))
        done = []
        for row in chain(
            (
                _measure(n, c, source, q, metrics)
                for n, c in ours.items()
                for q in sorted(set(qualities))
            ),
            (
                _measure_cached(a, source, q, keys, results)
                for a in anchors.values()
                for q in a.qualities
            ),
        ):
            done.append(row)
            if progress is not None:
                progress(row)
        return done

    rows, failures = _map_images(measure, named(images), workers, results)
    averages = _average(rows, metrics)
    machine = f"{platform.machine()}, {platform.system()}, {os.cpu_count()} CPUs"
    settings = {"machine": machine, **{a: c.settings for a, c in anchors.items()}}
    pairs = [(n, a) for n in ours for a in (*anchors, *([name] if n != name else []))]
    rates = tuple(compare(averages, n, a, metric) for n, a in pairs for metric in metrics)
    others = tuple(n for n in ours if n != name)
    return Evaluation(
        name, tuple(anchors), others, metrics, settings, rows, averages, rates, failures
    )


def compare(averages: Sequence[Average], codec: str, anchor: str, metric: str) -> BdRate:
    """Return the BD-rate of one codec against another from their averaged curves.

    Args:
        averages: those of both codecs, in any order.
        codec: the codec in question.
        anchor: what it is compared with.
        metric: a name of `evaluation.metrics.METRICS`.

    Returns:
        The difference, or the reason why there is none: this does not raise.
    """
    curves: list[list[float]] = []
    for name in (anchor, codec):
        points = [(a.bpp, a.level(metric)) for a in averages if a.codec == name]
        finite = [(rate, quality) for rate, quality in points if quality is not None]
        curves += [[rate for rate, _ in finite], [quality for _, quality in finite]]
    try:
        return BdRate(codec, anchor, metric, bd_rate(*curves), *quality_overlap(*curves))
    except ConfigError as exc:
        return BdRate(codec, anchor, metric, None, reason=str(exc))


def named(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return names for the results: those of the files, or the paths where file names repeat.

    Raises:
        ConfigError: there are none, or one twice.
    """
    if not paths:
        raise ConfigError("evaluation needs at least one image")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError("the same image was given twice")
    return list(zip(names, paths, strict=True))


def _map_images(
    measure: Callable[[tuple[str, Path]], list[ImageResult]],
    pictures: Sequence[tuple[str, Path]],
    workers: int,
    results: ResultCache,
) -> tuple[tuple[ImageResult, ...], dict[str, str]]:
    """Do the images in order and save the cache after each, for when a later one fails.

    Returns:
        the rows, and why an image has none.

    Raises:
        ConfigError: none has any.
    """
    rows: list[ImageResult] = []
    failures: dict[str, str] = {}
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        running = [(name, pool.submit(measure, (name, path))) for name, path in pictures]
        for name, future in running:
            try:
                rows += future.result()
            except ConfigError as exc:  # of this image; what else goes wrong would with all
                failures[name] = str(exc)
                if len(failures) == len(pictures):
                    raise
            results.save()
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(rows), failures


class _Source:
    """An image under its name, with the hash of its pixels for the cache."""

    def __init__(self, name: str, pixels: UInt8Array) -> None:
        self.name, self.pixels = name, pixels
        self.digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _measure_cached(
    codec: ClassicalCodec,
    source: _Source,
    quality: int,
    metrics: Mapping[str, str],
    results: ResultCache,
) -> ImageResult:
    """Measure what the cache lacks; `metrics` are names with what keys hold of them."""

    def key(metric: str) -> str:
        return f"{codec.settings} q={quality} {metrics[metric]} {source.digest}"

    found = {metric: results.get(key(metric)) for metric in metrics}
    known = {m: entry for m, entry in found.items() if entry and entry.keys() == {"bytes", "score"}}
    missing = [metric for metric in metrics if metric not in known]
    if missing:
        row = _measure(codec.name, codec, source, quality, missing)
        for metric, score in row.scores.items():
            results.put(key(metric), {"bytes": row.bytes, "score": score})
    else:
        row = _result(codec.name, source, quality, next(iter(known.values()))["bytes"])
    scores = {m: known[m]["score"] if m in known else row.scores[m] for m in metrics}
    return replace(row, scores=scores)


def _measure(
    name: str, codec: ImageCodec, source: _Source, quality: int, metrics: Sequence[str]
) -> ImageResult:
    image = source.pixels
    data, encode_s = _timed(lambda: codec.encode(image, quality=quality))
    decoded, decode_s = _timed(lambda: decode(codec, data))
    if decoded.shape != image.shape:
        raise BackendError(name, f"decoded {source.name} to {decoded.shape}, not {image.shape}")
    return replace(
        _result(name, source, quality, len(data)),
        scores={metric: score(metric, image, decoded) for metric in metrics},
        encode_s=encode_s,
        decode_s=decode_s,
    )


def _result(name: str, source: _Source, quality: int, size: int) -> ImageResult:
    """Return a result without scores and times."""
    height, width = source.pixels.shape[:2]
    rate = bpp(size, height, width)
    return ImageResult(name, source.name, quality, width, height, size, rate, {}, None, None)


def score(metric: str, image: UInt8Array, decoded: UInt8Array) -> float | None:
    """Return what a metric says; None for images too small for it, and where it is infinite."""
    if min(image.shape[:2]) < METRICS[metric].least_side:
        return None
    value = METRICS[metric].measure(image, decoded)
    return value if math.isfinite(value) else None


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """Return a result and the wall-clock seconds it took."""
    start = time.perf_counter_ns()
    result = work()
    return result, (time.perf_counter_ns() - start) * 1e-9


def decode(codec: ImageCodec, data: bytes) -> UInt8Array:
    """Decode to (H, W, 3) uint8; a lazy PIL image is loaded here, within the time that is taken."""
    decoded = codec.decode(data)
    if isinstance(decoded, Image.Image):
        decoded = np.asarray(decoded.convert("RGB"))
    return decoded


def _average(rows: Iterable[ImageResult], metrics: Sequence[str]) -> tuple[Average, ...]:
    """Summarise per codec and quality, codecs in order of appearance.

    A metric is averaged over the images that are large enough for it, the same for every codec.
    A lossless result has no finite PSNR, so neither has an average that it belongs to.
    """
    groups: dict[tuple[str, int], list[ImageResult]] = {}
    for row in rows:
        groups.setdefault((row.codec, row.quality), []).append(row)
    averages = []
    for (codec, quality), group in groups.items():
        scores = {
            metric: _over(
                fmean,
                (
                    row.scores[metric]
                    for row in group
                    if min(row.width, row.height) >= METRICS[metric].least_side
                ),
            )
            for metric in metrics
        }
        averages.append(
            Average(
                codec=codec,
                quality=quality,
                images=len(group),
                bpp=fmean(row.bpp for row in group),
                scores=scores,
                encode_s=_over(median, (row.encode_s for row in group)),
                decode_s=_over(median, (row.decode_s for row in group)),
            )
        )
    return tuple(averages)


def _over(summary: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    """Summarise some values; None where there are none or one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return summary(known) if found and len(known) == len(found) else None
