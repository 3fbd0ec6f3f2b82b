"""Crops side by side at equal bytes, of the pictures on which a codec does worst.

Figures say how much; eyes say what. Lossless PNG inside the page, so that a browser shows the very
pixels that each decoder gave.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.coding.image_files import load_rgb
from edgecodec.evaluation.classical import AVIF, JXL, ClassicalCodec, ImageCodec
from edgecodec.evaluation.evaluate import Evaluation, ImageResult, decode, named, score
from edgecodec.evaluation.metrics import METRICS, bpp, format_score

WIDTH, HEIGHT = 256, 192
_STEP = 8
_TITLES = {AVIF.name: "AVIF", JXL.name: "JPEG XL"}


@dataclass(frozen=True, eq=False)
class Side:
    """What one codec makes of a picture.

    Attributes:
        title: of the codec.
        crop: (h, w, 3) uint8.
        bytes: of the file of the whole picture; None for the original.
        bpp: likewise.
        scores: likewise, by metric.
    """

    title: str
    crop: UInt8Array
    bytes: int | None
    bpp: float | None
    scores: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class SideBySide:
    """A picture by several codecs at about equal bytes, the original first, ours next.

    Attributes:
        image: its name in the evaluation.
        x: left edge of the crop in pixels.
        y: its upper edge.
        sides: what is shown beside each other.
    """

    image: str
    x: int
    y: int
    sides: tuple[Side, ...]


def worst_crops(
    evaluation: Evaluation, images: Sequence[Path], codec: ImageCodec, most: int = 6
) -> tuple[SideBySide, ...]:
    """Return crops of the pictures on which the codec does worst at its middle quality.

    Worst is lowest by SSIMULACRA2, or by the first metric where that was not measured. A crop is
    the place where the codec's picture differs most from the original, by squared error. AVIF,
    and JPEG XL where its plug-in is installed, spend at most as many bytes on the whole picture as
    the codec does, at the finest quality that is so.

    Args:
        evaluation: of these images with this codec.
        images: as given to `evaluate`.
        codec: the one under test.
        most: how many pictures.

    Raises:
        ConfigError: a picture cannot be read any more.
    """
    metric = "ssimulacra2" if "ssimulacra2" in evaluation.metrics else evaluation.metrics[0]
    ours = [row for row in evaluation.rows if row.codec == evaluation.codec]
    qualities = sorted({row.quality for row in ours})
    middle = qualities[(len(qualities) - 1) // 2]

    def level(row: ImageResult) -> float:
        found = row.scores[metric]
        return np.inf if found is None else METRICS[metric].quality(found)

    worst = sorted((row for row in ours if row.quality == middle), key=level)[:most]
    paths = dict(named(images))
    return tuple(
        _compare(row.image, load_rgb(paths[row.image]), codec, evaluation, middle) for row in worst
    )


def _compare(
    name: str, image: UInt8Array, codec: ImageCodec, evaluation: Evaluation, quality: int
) -> SideBySide:
    height, width = image.shape[:2]
    data = codec.encode(image, quality=quality)
    decoded = decode(codec, data)
    x, y = _most_different(image, decoded)
    place = np.s_[y : y + HEIGHT, x : x + WIDTH]

    def sides() -> Iterator[Side]:
        yield Side("original", image[place], None, None, {})
        files = [(f"{evaluation.codec} q{quality}", data, decoded)]
        for other in (AVIF, JXL):
            if other.available():
                found, content = _no_larger(other, image, len(data))
                title = f"{_TITLES[other.name]} q{found}"
                files.append((title, content, other.decode(content)))
        for title, content, pixels in files:
            scores = {metric: score(metric, image, pixels) for metric in evaluation.metrics}
            rate = bpp(len(content), height, width)
            yield Side(title, pixels[place], len(content), rate, scores)

    return SideBySide(name, x, y, tuple(sides()))


def _most_different(a: UInt8Array, b: UInt8Array) -> tuple[int, int]:
    """Return left and upper edge of the crop with the most squared error."""
    error = np.square(a.astype(np.int32) - b).sum(2)
    sums = np.pad(error.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    height, width = min(HEIGHT, len(error)), min(WIDTH, error.shape[1])
    # Of all rectangles at once, by their four corners.
    windows = sums[height:, width:] - sums[:-height, width:]
    windows += sums[:-height, :-width] - sums[height:, :-width]
    windows = windows[::_STEP, ::_STEP]
    y, x = np.unravel_index(int(windows.argmax()), windows.shape)
    return int(x) * _STEP, int(y) * _STEP


def _no_larger(codec: ClassicalCodec, image: UInt8Array, size: int) -> tuple[int, bytes]:
    """Return the finest quality whose file is no larger, and that file; the coarsest at worst."""
    low, high = 1, 100
    best = low, codec.encode(image, low)
    while low < high:
        middle = (low + high + 1) // 2
        data = codec.encode(image, middle)
        if len(data) <= size:
            low, best = middle, (middle, data)
        else:
            high = middle - 1
    return best


def render_crops(comparisons: Sequence[SideBySide]) -> str:
    """Return HTML, the pictures inside it."""
    intro = (
        '<p class="small soft">The pictures on which ours is worst, worst first, each where ours '
        "differs most from the original. Bytes and scores are those of the whole picture. The "
        "others were given at most the bytes of ours.</p>"
    )
    return intro + "".join(map(_comparison, comparisons))


def _comparison(comparison: SideBySide) -> str:
    figures = "".join(_figure(side) for side in comparison.sides)
    place = f"at {comparison.x}, {comparison.y}"
    return (
        f'<h3>{escape(comparison.image)} <span class="soft small">{place}</span></h3>'
        f'<div class="crops">{figures}</div>'
    )


def _figure(side: Side) -> str:
    height, width = side.crop.shape[:2]
    buffer = io.BytesIO()
    Image.fromarray(side.crop).save(buffer, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    lines = []
    if side.bytes is not None and side.bpp is not None:
        lines.append(f"{side.bytes:,} bytes, {side.bpp:.3f} bpp")
    lines += [
        f"{METRICS[metric].title} {format_score(metric, value)}"
        for metric, value in side.scores.items()
    ]
    text = "".join(f"<br>{escape(line)}" for line in lines)
    return (
        f'<figure><img src="{source}" width="{width}" height="{height}" '
        f'alt="{escape(side.title)}"><figcaption class="small"><b>{escape(side.title)}</b>'
        f'<span class="soft">{text}</span></figcaption></figure>'
    )
