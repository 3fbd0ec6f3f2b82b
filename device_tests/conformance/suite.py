"""The device test: golden files, every backend against every other, damaged files, latency.

edgecodec device-test
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecodec.bundle.manifest import PRECISIONS
from edgecodec.device_tests.bench import DEMO_PHOTO, load_pictures
from edgecodec.device_tests.conformance.kit import KitReport, check_kit, kit_model, open_pictures
from edgecodec.device_tests.conformance.kit_pictures import extreme_pictures
from edgecodec.device_tests.conformance.latency import Latency, measure_latency
from edgecodec.device_tests.conformance.matrix import ConformanceReport, check_conformance
from edgecodec.device_tests.conformance.robustness import RobustnessReport, check_robustness
from edgecodec.errors import ConfigError

_EXTREME_SIZE = (512, 768)


@dataclass(frozen=True)
class SuiteOptions:
    """What the device test checks.

    Attributes:
        qualities: at which pictures are coded.
        matrix: take every precision instead of fp32; and without pictures and a bundle the model
            and the pictures of the golden files.
        precisions: those to take instead.
        extremes: add black, white, noise and saturated colours to the pictures.
        twin: let the NumPy coder read and write every file, too: seconds for each megapixel.
        bundle: the model; None takes the shipped one.
        threads: of the runtimes; None leaves it to them.
        runs: timed runs of the first picture on each backend; 0 measures nothing.
    """

    qualities: Sequence[int] = (10, 50, 90)
    matrix: bool = False
    precisions: Sequence[str] | None = None
    extremes: bool = False
    twin: bool = True
    bundle: str | Path | None = None
    threads: int | None = None
    runs: int = 20


@dataclass(frozen=True)
class SuiteReport:
    """What was found, part by part."""

    kit: KitReport
    conformance: ConformanceReport
    robustness: RobustnessReport
    latency: Latency

    @property
    def passed(self) -> bool:
        """All parts that check something did."""
        return self.kit.passed and self.conformance.passed and self.robustness.passed

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {
            **self.conformance.to_dict(),
            "kit": self.kit.to_dict(),
            "robustness": self.robustness.to_dict(),
            "bench": self.latency.to_dict(),
            "passed": self.passed,
        }

    def text(self) -> str:
        """Return the parts one below the other, and the outcome; no trailing newline."""
        parts = (self.kit, self.conformance, self.robustness, self.latency)
        outcome = f"device test {'passed' if self.passed else 'FAILED'}"
        return "\n\n".join([*(part.text() for part in parts), outcome])


def run_suite(images: Sequence[Path], options: SuiteOptions) -> SuiteReport:
    """Check everything on this machine.

    Args:
        images: picture files; none stands for the demo photo.
        options: what to check.

    Raises:
        BundleError: the bundle or the model of the golden files is damaged.
        ConfigError: there is no such precision, or a picture cannot be read.
        EdgeCodecError: the golden files are not there.
    """
    unknown = set(options.precisions or ()) - set(PRECISIONS)
    if unknown:
        raise ConfigError(f"precision {', '.join(sorted(unknown))}: {', '.join(PRECISIONS)} exist")
    photos = list(images) or [DEMO_PHOTO]
    bundle, tile = options.bundle, 1536
    if options.matrix and not images and bundle is None:
        pictures, bundle, tile = open_pictures(), kit_model(), 64
    else:
        pictures = load_pictures(photos)
    if options.extremes:
        pictures |= extreme_pictures(*_EXTREME_SIZE)
    return SuiteReport(
        check_kit(threads=options.threads),
        check_conformance(
            pictures,
            options.qualities,
            bundle=bundle,
            precisions=options.precisions or (PRECISIONS if options.matrix else ("fp32",)),
            tile=tile,
            threads=options.threads,
            twin=options.twin,
        ),
        check_robustness(options.threads),
        measure_latency(photos[:1], options.runs, options.bundle, options.threads),
    )
