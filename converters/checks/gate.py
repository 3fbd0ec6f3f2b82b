"""What a conversion costs as a codec: bits and quality of real files, against the torch reference.

Tensor errors say little: a latent may move by half without a trace, and a trunk off by one level
shows in every file. So each pair of artefacts encodes and decodes held-out photos at several
qualities, and the two rate-distortion curves are compared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from edgecodec.arrays import Int16Array, UInt8Array
from edgecodec.coding.pixels import to_levels
from edgecodec.converters.checks.run_artefact import Analyse, Synthesise
from edgecodec.errors import ConfigError
from edgecodec.evaluation.metrics import bd_rate, metric_of, quality_overlap
from edgecodec.format.coder import LatentCoder
from edgecodec.runtimes.base import STAGES

QUALITIES = (10, 30, 50, 70, 85, 100)
_MEASURED_OF = {
    "analysis_loss": {"analysis"},
    "analysis_worst": {"analysis"},
    "synthesis_loss": {"synthesis"},
    "synthesis_worst": {"synthesis"},
    "worst_level": {"synthesis"},
    "pair_loss": {"analysis", "synthesis"},
}
"""Stages without which a figure of a verdict says nothing."""


@dataclass(frozen=True)
class GateVerdict:
    """What a pair of artefacts costs against the reference.

    Attributes:
        analysis_loss: BD-rate in percent that the analysis adds to that of the synthesis.
        synthesis_loss: BD-rate in percent of the synthesis alone, on the reference's files.
        pair_loss: of both; infinite where there is nothing left to compare.
        analysis_worst: what the analysis adds on the photo where that is most.
        synthesis_worst: what the synthesis alone costs, likewise.
        worst_level: largest difference of a pixel on the reference's files.
        qualities: at which files were made.
        photos: how many.
        metric: what the quality was measured by, a name of `edgecodec.evaluation.metrics.METRICS`.
    """

    analysis_loss: float
    synthesis_loss: float
    pair_loss: float
    analysis_worst: float
    synthesis_worst: float
    worst_level: int
    qualities: tuple[int, ...]
    photos: int
    metric: str

    def to_dict(self, stages: Collection[str] = STAGES) -> dict[str, Any]:
        """Return JSON-compatible values; None is an infinite loss.

        Args:
            stages: that were judged; what belongs to others was not measured and is left out.
        """
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
            if _MEASURED_OF.get(name, set()) <= set(stages)
        }


@dataclass(frozen=True, eq=False)
class Point:
    """One photo at one quality.

    Attributes:
        rate: bits per pixel.
        score: how good it is, by the gate's metric.
        y_hat: (h, w, M), what the file holds.
        picture: (H, W, 3), what it decodes to.
    """

    rate: float
    score: float
    y_hat: Int16Array
    picture: UInt8Array


Curves: TypeAlias = Sequence[Sequence[Point]]
"""By photo and quality."""


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

    Photos whose quality does not rise with the rate say nothing of what bits are worth and are
    left out: those of an untrained codec, or of a single colour.

    Args:
        tables: content of `tables.bin`.
        photos: (H, W, 3) uint8, sides multiples of 32.
        analyse: the reference's.
        synthesise: the reference's.
        qualities: at which to make files.
        metric: of `edgecodec.evaluation.metrics.METRICS`; what the codec was trained for. Photos
            too small for it are left out.

    Attributes:
        photos: those compared with; there may be none.
        points: files of these.
        sample: a photo and its y_hat at a middle quality, whether compared with or not.
    """

    def __init__(
        self,
        tables: bytes,
        photos: Sequence[UInt8Array],
        analyse: Analyse,
        synthesise: Synthesise,
        qualities: Sequence[int] = QUALITIES,
        metric: str = "psnr",
    ) -> None:
        self.coder = LatentCoder(tables)
        self.qualities = tuple(qualities)
        self.metric, self._metric = metric, metric_of(metric)
        self._synthesise = synthesise
        middle = self.qualities[len(self.qualities) // 2]
        (_, y_hat), *_ = make_files(self.coder, photos[0], analyse, [middle])
        self.sample = photos[0], y_hat
        fit = [photo for photo in photos if min(photo.shape[:2]) >= self._metric.least_side]
        curves = [self._curve(photo, analyse, synthesise) for photo in fit]
        kept = [i for i, curve in enumerate(curves) if self._rises(curve)]
        self.photos = [fit[i] for i in kept]
        self.points = [curves[i] for i in kept]

    def part(self, photos: int) -> Gate:
        """Return the same for the first few photos."""
        part = copy.copy(self)
        part.photos, part.points = self.photos[:photos], self.points[:photos]
        return part

    def _curve(self, photo: UInt8Array, analyse: Analyse, synthesise: Synthesise) -> list[Point]:
        points = []
        for data, y_hat in make_files(self.coder, photo, analyse, self.qualities):
            picture = to_levels(synthesise(y_hat))
            rate = 8.0 * len(data) / (photo.shape[0] * photo.shape[1])
            points.append(Point(rate, self._metric.measure(photo, picture), y_hat, picture))
        return points

    def encoded(self, analyse: Analyse, synthesise: Synthesise | None = None) -> Curves:
        """Return files that an analysis makes, decoded by a synthesis or by the reference."""
        decode = self._synthesise if synthesise is None else synthesise
        return [self._curve(photo, analyse, decode) for photo in self.photos]

    def decoded(self, synthesise: Synthesise) -> Curves:
        """Return the reference's files, decoded by a synthesis."""
        curves = []
        for photo, points in zip(self.photos, self.points, strict=True):
            pictures = [to_levels(synthesise(point.y_hat)) for point in points]
            curves.append(
                [
                    Point(point.rate, self._metric.measure(photo, picture), point.y_hat, picture)
                    for point, picture in zip(points, pictures, strict=True)
                ]
            )
        return curves

    def loss(self, found: Curves) -> float:
        """Return the BD-rate in percent; infinite where nothing can be compared any more."""
        return self._loss(self.points, found)

    def losses(self, found: Curves) -> list[float]:
        """Return the same for each photo."""
        return [self._loss([a], [b]) for a, b in zip(self.points, found, strict=True)]

    def _added(self, alone: Curves, both: Curves) -> list[float]:
        """Return the loss of one beyond another: on average, then for each photo."""
        losses = [[self.loss(curves), *self.losses(curves)] for curves in (alone, both)]
        return [b - a if math.isfinite(a) else math.inf for a, b in zip(*losses, strict=True)]

    def judge(self, analyse: Analyse | None, synthesise: Synthesise | None) -> GateVerdict:
        """Return what a pair of artefacts costs, if there is a photo to tell by.

        None stands for the reference's, which costs nothing.
        """
        alone = self.points if synthesise is None else self.decoded(synthesise)
        pair = alone if analyse is None else self.encoded(analyse, synthesise)
        added = self._added(alone, pair)
        if math.isinf(self.loss(pair)):  # the synthesis may be to blame for that alone
            own = self.points if analyse is None else self.encoded(analyse)
            added = self._added(self.points, own)
        moved = [
            int(np.abs(a.picture.astype(np.int16) - b.picture).max())
            for curve, points in zip(alone, self.points, strict=True)
            for a, b in zip(curve, points, strict=True)
        ]
        return GateVerdict(
            added[0],
            self.loss(alone),
            self.loss(pair),
            max(added[1:]),
            max(self.losses(alone)),
            max(moved),
            self.qualities,
            len(self.photos),
            self.metric,
        )

    def _rises(self, curve: Sequence[Point]) -> bool:
        """Return whether more bits give a picture that is better by something to speak of."""
        points = self._averaged([curve])
        try:
            low, high = quality_overlap(*points, *points)
        except ConfigError:
            return False
        return high - low >= self._metric.least_rise

    def _averaged(self, curves: Curves) -> tuple[list[float], list[float]]:
        """Return rate and quality of the average over photos."""
        rates = np.mean([[p.rate for p in points] for points in curves], 0)
        scores = np.mean([[p.score for p in points] for points in curves], 0)
        return rates.tolist(), [self._metric.quality(score) for score in scores.tolist()]

    def _loss(self, reference: Curves, found: Curves) -> float:
        """Return the BD-rate of averages; infinite where nothing can be compared any more."""
        if not reference:
            return math.inf
        try:
            return bd_rate(*self._averaged(reference), *self._averaged(found))
        except ConfigError:  # no common range of quality
            return math.inf
