"""How long a picture takes on this device, shortly: every backend and precision that works here.

    edgecodec device-test --runs 20

The samples are those of `edgecodec bench`, kept in the same shape, so that reports of two devices'
tests compare with `edgecodec bench --compare`, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecodec.bundle.reading import Bundle
from edgecodec.device_tests.bench import Options, benchmark
from edgecodec.device_tests.measuring.contenders import AUTO, expand_requests
from edgecodec.device_tests.measuring.sampling import summarise
from edgecodec.device_tests.measuring.steady import Limits
from edgecodec.device_tests.reports.bench_report import BenchReport
from edgecodec.errors import BackendError
from edgecodec.text_table import align


@dataclass(frozen=True)
class Latency:
    """What was measured.

    Attributes:
        bench: the samples; None where there are none.
        reason: why.
    """

    bench: BenchReport | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any] | None:
        """Return a report as `edgecodec bench --json` writes it; None without samples."""
        return None if self.bench is None else self.bench.to_dict()

    def text(self) -> str:
        """Return a line per backend and precision."""
        if self.bench is None:
            return f"latency: not measured ({self.reason})"
        picture = self.bench.pictures[0]
        title = f"latency, {picture.name} ({picture.width} x {picture.height}), ms"
        rows: list[tuple[str, ...]] = [(title, "encode p50", "p90", "decode p50", "p90", "n")]
        for contender in self.bench.contenders:
            encode, decode = (
                summarise(self.bench.pooled(contender.name, action))
                for action in ("encode", "decode")
            )
            seconds = (encode.p50_s, encode.p90_s, decode.p50_s, decode.p90_s)
            name = f"  {contender.name.replace(':', ' ')}"
            rows.append((name, *(f"{1e3 * s:.1f}" for s in seconds), str(encode.n)))
        absent = [
            f"  {name.replace(':', ' ')}: not here ({reason})"
            for name, reason in self.bench.skipped.items()
        ]
        return "\n".join([*align(rows), *absent])


def measure_latency(
    images: Sequence[Path], runs: int, bundle: str | Path | None = None, threads: int | None = None
) -> Latency:
    """Encode and decode pictures on every backend and precision, in turns.

    Args:
        images: pictures.
        runs: timed runs of each, at least 1; 0 measures nothing.
        bundle: the model; None takes the shipped one.
        threads: of the runtimes, and cores to pin to; None leaves both open.

    Raises:
        ConfigError: a picture cannot be read.
    """
    if not runs:
        return Latency(None, "not asked for")
    with Bundle(bundle) as model:
        names = [str(request) for request in expand_requests(("all",), model)]
    options = Options(
        bundle=bundle,
        backends=[name for name in names if name != AUTO],  # which is one of these
        threads=threads,
        limits=Limits(runs, 0.0),
        cold_starts=0,
    )
    try:
        return Latency(benchmark(images, options).report)
    except BackendError as exc:
        return Latency(None, str(exc))
