"""What a conversion costs as a codec: bits and PSNR of real files, against the torch reference.

Tensor errors say little: a latent may move by half without a trace, and a trunk off by one level
shows in every file. So each pair of artefacts encodes and decodes held-out photos at several
qualities, and the two rate-distortion curves are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.entropy import LatentCoder
from edgecodec.errors import ConfigError
from edgecodec.image import to_levels
from edgecodec.metrics import bd_rate, psnr_rgb

QUALITIES = (10, 30, 50, 70, 85)
UInt8Array = npt.NDArray[np.uint8]
Int16Array = npt.NDArray[np.int16]
Analyse = Callable[[UInt8Array], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""(H, W, 3) to y and z, (h, w, C) each."""
Synthesise = Callable[[Int16Array], npt.NDArray[np.float32]]
"""y_hat (h, w, M) to (H, W, 3), neither clipped nor rounded."""


@dataclass(frozen=True)
class Verdict:
    """What a pair of artefacts costs against the reference.

    Attributes:
        synthesis_loss: BD-rate in percent of the synthesis alone, on the reference's files.
        pair_loss: BD-rate in percent of analysis and synthesis.
        worst_image: largest BD-rate in percent of a single photo, of the pair.
        worst_level: largest difference of a pixel on the reference's files.
        qualities: at which files were made.
        photos: how many.
    """

    synthesis_loss: float
    pair_loss: float
    worst_image: float
    worst_level: int
    qualities: tuple[int, ...]
    photos: int

    @property
    def analysis_loss(self) -> float:
        """What the analysis adds; infinite where that cannot be told."""
        if math.isinf(self.pair_loss):
            return math.inf
        return self.pair_loss - self.synthesis_loss

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values; None is an infinite loss."""
        found = {**asdict(self), "analysis_loss": self.analysis_loss}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in found.items()
        }


@dataclass(frozen=True, eq=False)
class _Point:
    """One photo at one quality: bits, PSNR in dB, and what the reference made of it."""

    rate: float
    psnr: float
    y_hat: Int16Array
    picture: UInt8Array


def make_files(
    coder: LatentCoder, photo: UInt8Array, analyse: Analyse, qualities: Sequence[int] = QUALITIES
) -> Iterator[tuple[bytes, Int16Array]]:
    """Yield the file of a photo at each quality, and y_hat (h, w, M) as a decoder reads it."""
    y, z = analyse(photo)
    for quality in qualities:
        data = coder.compress(quality, y, z)
        yield data, coder.decode(quality, z.shape[0], z.shape[1], data)[1]


class Gate:
    """The reference's files of some photos, to compare others with.

    Args:
        tables: content of `tables.bin`.
        photos: (H, W, 3) uint8, sides multiples of 32.
        analyse: the reference's.
        synthesise: the reference's.
        qualities: at which to make files.
    """

    def __init__(
        self,
        tables: bytes,
        photos: Sequence[UInt8Array],
        analyse: Analyse,
        synthesise: Synthesise,
        qualities: Sequence[int] = QUALITIES,
    ) -> None:
        self.coder = LatentCoder(tables)
        self.photos, self.qualities = tuple(photos), tuple(qualities)
        self.points = [self._curve(photo, analyse, synthesise) for photo in self.photos]

    def _curve(self, photo: UInt8Array, analyse: Analyse, synthesise: Synthesise) -> list[_Point]:
        points = []
        for data, y_hat in make_files(self.coder, photo, analyse, self.qualities):
            picture = to_levels(synthesise(y_hat))
            rate = 8.0 * len(data) / (photo.shape[0] * photo.shape[1])
            points.append(_Point(rate, psnr_rgb(photo, picture), y_hat, picture))
        return points

    def judge(self, analyse: Analyse, synthesise: Synthesise) -> Verdict:
        """Return what a pair of artefacts costs."""
        alone: list[list[_Point]] = []
        worst_level = 0
        for photo, curve in zip(self.photos, self.points, strict=True):
            decoded = []
            for point in curve:
                picture = to_levels(synthesise(point.y_hat))
                moved = np.abs(picture.astype(np.int16) - point.picture).max()
                worst_level = max(worst_level, int(moved))
                psnr = psnr_rgb(photo, picture)
                decoded.append(_Point(point.rate, psnr, point.y_hat, picture))
            alone.append(decoded)
        pair = [self._curve(photo, analyse, synthesise) for photo in self.photos]
        images = [_loss([a], [b]) for a, b in zip(self.points, pair, strict=True)]
        return Verdict(
            _loss(self.points, alone),
            _loss(self.points, pair),
            max(images),
            worst_level,
            self.qualities,
            len(self.photos),
        )


def _loss(reference: Sequence[Sequence[_Point]], found: Sequence[Sequence[_Point]]) -> float:
    """Return the BD-rate of averaged curves; infinite where nothing can be compared any more."""
    curves = []
    for photos in (reference, found):
        curves += [np.mean([[p.rate for p in points] for points in photos], 0)]
        curves += [np.mean([[p.psnr for p in points] for points in photos], 0)]
    try:
        return bd_rate(*(curve.tolist() for curve in curves))
    except ConfigError:  # no common range of quality, or no curve at all
        return float("inf")
