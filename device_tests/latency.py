"""Latency per stage and backend, measured so that the figures can be trusted.

    edgecodec bench IMAGES... --against jpeg,webp,avif

Candidates take turns on the same picture, so that whatever else the machine does slows all of
them alike. Median and interquartile range first; percentiles only where there are enough samples
for them to mean something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.bundle import Bundle, default_bundle_path
from edgecodec.classical import classical_codec, load_rgb, timed
from edgecodec.codec import Codec, Profile
from edgecodec.device_tests.conformance import open_backends
from edgecodec.errors import BackendError
from edgecodec.runtimes.device import Device, probe_device

DEMO_PHOTO = default_bundle_path().with_name("demo.png")
WARM_UP = 3
CLASSICAL_QUALITY = {"jpeg": 80, "webp": 80, "avif": 60}
"""Common settings, near the rate of our default quality."""


@dataclass(frozen=True)
class Measurement:
    """Samples of one stage.

    Attributes:
        codec: backend, or name of a classical codec.
        image: file name.
        stage: `encode`, `decode`, or a stage of one of them as `encode: analysis`.
        samples_s: seconds, in order.
    """

    codec: str
    image: str
    stage: str
    samples_s: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """Return a percentile of the samples in seconds."""
        return float(np.percentile(self.samples_s, percent))

    @property
    def median_s(self) -> float:
        """Median in seconds."""
        return self.percentile(50)

    @property
    def iqr_s(self) -> float:
        """Interquartile range in seconds."""
        return self.percentile(75) - self.percentile(25)


@dataclass(frozen=True)
class LatencyReport:
    """All measurements of a run.

    Attributes:
        device: where it was.
        quality: our quality.
        sizes: bytes by codec and image.
        measurements: one per codec, image and stage.
        skipped: backends that are not here, with the reason.
    """

    device: Device
    quality: int
    sizes: dict[str, dict[str, int]]
    measurements: tuple[Measurement, ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, raw samples too, as JSON-compatible values."""
        return {
            "device": self.device.to_dict(),
            "quality": self.quality,
            "sizes": self.sizes,
            "skipped": self.skipped,
            "measurements": [
                {**asdict(m), "median_s": m.median_s, "iqr_s": m.iqr_s} for m in self.measurements
            ],
        }

    def text(self) -> str:
        """Return a table per image."""
        lines = [self.device.text(), ""]
        for image in dict.fromkeys(m.image for m in self.measurements):
            rows = [m for m in self.measurements if m.image == image]
            lines.append(f"{image}, quality {self.quality}, milliseconds")
            lines.append(
                f"{'':<14}{'stage':<26}{'median':>9}{'IQR':>9}{'p95':>9}{'n':>6}{'bytes':>10}"
            )
            lines += [self._line(m) for m in rows]
            lines.append("")
        lines += [f"{name}: not here ({reason})" for name, reason in self.skipped.items()]
        return "\n".join(lines).rstrip()

    def _line(self, m: Measurement) -> str:
        n = len(m.samples_s)
        p95 = f"{1e3 * m.percentile(95):.2f}" if n >= 100 else "-"
        size = str(self.sizes[m.codec][m.image]) if m.stage == "encode" else ""
        noisy = "  noisy: IQR above 10 % of the median" if m.iqr_s > 0.1 * m.median_s else ""
        return (
            f"{m.codec:<14}{m.stage:<26}{1e3 * m.median_s:>9.2f}{1e3 * m.iqr_s:>9.2f}"
            f"{p95:>9}{n:>6}{size:>10}{noisy}"
        )


Once = Callable[[npt.NDArray[np.uint8]], tuple[dict[str, float], int]]


def _once(codec: Codec, quality: int) -> Once:
    def run(pixels: npt.NDArray[np.uint8]) -> tuple[dict[str, float], int]:
        coding, decoding = Profile(), Profile()
        data, encode_s = timed(codec.encode, pixels, quality, profile=coding)
        _, decode_s = timed(codec.decode, data, profile=decoding)
        parts = {"encode": encode_s}
        parts |= {f"encode: {name}": s for name, s in coding.seconds.items()}
        parts["decode"] = decode_s
        parts |= {f"decode: {name}": s for name, s in decoding.seconds.items()}
        return parts, len(data)

    return run


def _once_classical(name: str) -> Once:
    codec, quality = classical_codec(name), CLASSICAL_QUALITY[name]

    def run(pixels: npt.NDArray[np.uint8]) -> tuple[dict[str, float], int]:
        data, encode_s = timed(codec.encode, pixels, quality)
        _, decode_s = timed(codec.decode, data)
        return {"encode": encode_s, "decode": decode_s}, len(data)

    return run


def benchmark(
    images: Sequence[Path],
    *,
    bundle: str | Path | None = None,
    backends: Sequence[str] | None = None,
    against: Sequence[str] = (),
    quality: int = 60,
    runs: int = 20,
    threads: int | None = None,
) -> LatencyReport:
    """Measure encoding and decoding on every backend.

    Args:
        images: pictures.
        bundle: the model; None takes the shipped one.
        backends: names; None takes all there are.
        against: classical codecs to measure beside.
        quality: 1..100.
        runs: timed runs per picture and candidate, after warm-up.
        threads: for the runtimes; None leaves it to them.

    Raises:
        BackendError: no backend works here.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(Bundle(bundle))
        codecs, skipped = open_backends(opened, backends, threads)
        if not codecs:
            raise BackendError("bench", "; ".join(f"{k}: {v}" for k, v in skipped.items()))
        for codec in codecs.values():
            stack.enter_context(codec)
        candidates = {codec.backend: _once(codec, quality) for codec in codecs.values()}
        candidates |= {name: _once_classical(name) for name in against}
        sizes: dict[str, dict[str, int]] = {name: {} for name in candidates}
        measurements: list[Measurement] = []
        for path in images:
            measurements += _measure(path, candidates, runs, sizes)
    return LatencyReport(probe_device(), quality, sizes, tuple(measurements), skipped)


def _measure(
    path: Path, candidates: dict[str, Once], runs: int, sizes: dict[str, dict[str, int]]
) -> list[Measurement]:
    """Let all candidates take turns on one picture, and note the sizes of their files."""
    pixels = load_rgb(path)
    samples: dict[tuple[str, str], list[float]] = {}
    for number in range(WARM_UP + runs):
        for name, once in candidates.items():
            parts, size = once(pixels)
            sizes[name][path.name] = size
            for stage, seconds in parts.items():
                if number >= WARM_UP:
                    samples.setdefault((name, stage), []).append(seconds)
    return [
        Measurement(codec, path.name, stage, tuple(values))
        for name in candidates
        for (codec, stage), values in samples.items()
        if codec == name
    ]
