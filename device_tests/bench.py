"""The benchmark behind `edgecodec bench`: who takes part, then one kind of measurement at a time.

steady state   everybody in turns, per stage        steady.py
cold start     processes of their own               cold_start.py
sustained      minutes of one contender             sustained.py
layers         the runtimes' own profilers          layers.py
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgecodec.arrays import UInt8Array
from edgecodec.bundle.embedded import default_bundle_path
from edgecodec.bundle.reading import Bundle, short_id
from edgecodec.codec import Codec
from edgecodec.coding.image_files import load_rgb
from edgecodec.coding.profiling import Span
from edgecodec.device_tests.measuring.cold_start import ColdStart, ColdStartJob, measure_cold_starts
from edgecodec.device_tests.measuring.contenders import (
    Contender,
    classical_contender,
    expand_requests,
    open_codecs,
    our_contender,
)
from edgecodec.device_tests.measuring.layer_profile import profile_networks
from edgecodec.device_tests.measuring.process import pinned
from edgecodec.device_tests.measuring.steady import Limits, measure_steady
from edgecodec.device_tests.measuring.sustained import measure_sustained
from edgecodec.device_tests.reports.bench_report import (
    BenchConditions,
    BenchReport,
    MeasuredPicture,
)
from edgecodec.device_tests.reports.chrome_trace import chrome_trace
from edgecodec.errors import BackendError
from edgecodec.runtimes.base import STAGES, StageName
from edgecodec.runtimes.device.probe import probe_device
from edgecodec.runtimes.layers.peak import measure_peaks

DEMO_PHOTO = default_bundle_path().with_name("demo.png")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        bundle: the model; None takes the shipped one.
        backends: `auto`, names of backends with or without a precision as `tflite:int8`, `all`.
        against: classical codecs.
        quality: of our codec, 1..100.
        threads: of the runtimes, and cores to pin to; None leaves both open.
        limits: when the steady state is measured well enough.
        cold_starts: processes per contender and action.
        minutes: of sustained work of the first contender.
        layers: whether to profile each network by layer.
    """

    bundle: str | Path | None = None
    backends: Sequence[str] = ("auto",)
    against: Sequence[str] = ()
    quality: int = 60
    threads: int | None = None
    limits: Limits = field(default_factory=Limits)
    cold_starts: int = 3
    minutes: float = 0.0
    layers: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a benchmark leaves.

    Attributes:
        report: what was measured.
        spans: the stages of one picture, coded once by the first contender after the others.
        traced: names of that contender and that picture.
    """

    report: BenchReport
    spans: tuple[Span, ...]
    traced: tuple[str, str]

    def trace(self) -> dict[str, Any]:
        """Return that picture as a Chrome trace."""
        codec, picture = self.traced
        device = self.report.device
        facts = {"codec": codec, "picture": picture, "cpu": device.cpu, "system": device.system}
        return chrome_trace(self.spans, f"edgecodec, {codec}, {picture}", facts)


def benchmark(
    images: Sequence[Path], options: Options, progress: Progress = lambda line: None
) -> Outcome:
    """Measure.

    Args:
        images: pictures.
        options: what to measure.
        progress: told what is being done, one line at a time.

    Raises:
        ConfigError: a picture cannot be read.
        BackendError: no backend works here, or one failed.
    """
    device = probe_device()
    pictures = load_pictures(images)
    with ExitStack() as stack:
        bundle = stack.enter_context(Bundle(options.bundle))
        cores = stack.enter_context(pinned(device, options.threads))
        with ExitStack() as sessions:
            classical = [classical_contender(name) for name in options.against]
            requests = expand_requests(options.backends, bundle)
            codecs, skipped = open_codecs(requests, bundle, options.threads, sessions)
            if not codecs:
                raise BackendError("bench", "; ".join(f"{k}: {v}" for k, v in skipped.items()))
            ours = [our_contender(r, codec, options.quality) for r, codec in codecs.items()]
            contenders = (*ours, *classical)
            progress(f"steady state of {', '.join(c.name for c in contenders)}")
            steady = measure_steady(contenders, pictures, options.limits)
            name, pixels = next(iter(pictures.items()))
            coded = {c.name: c.once(pixels) for c in contenders}
            # Asked only now: `auto` chooses by the size of a picture, and what fails is replaced.
            ours = [our_contender(r, codec, options.quality) for r, codec in codecs.items()]
            contenders = (*ours, *classical)
            choices = [c.choice(stage) for c in codecs.values() for stage in STAGES]
            sizes = _network_sizes(next(iter(codecs.values())), pixels)
            report = BenchReport(
                device,
                _conditions(bundle, options, cores),
                tuple(_picture(name, pixels) for name, pixels in pictures.items()),
                contenders,
                steady,
                skipped=skipped,
            )
            if options.minutes:
                progress(f"sustained work of {contenders[0].name}, {options.minutes:g} minutes")
                report.sustained = measure_sustained(contenders[0], pictures, options.minutes)
        if options.layers:
            progress("layers of each network")
            report.peaks = measure_peaks(options.threads)
            report.layers = profile_networks(bundle, choices, sizes)
        files = {codec: c.data for codec, c in coded.items()}
        if options.cold_starts:
            report.cold_starts = _cold_starts(
                contenders, (images[0], pixels), files, options, cores, progress
            )
    first = contenders[0].name
    return Outcome(report, coded[first].spans, (first, name))


def _network_sizes(codec: Codec, pixels: UInt8Array) -> dict[StageName, tuple[int, int]]:
    """Return height and width of what each network gets of a picture at a time."""
    layout = codec.layout(*pixels.shape[:2])
    return {stage: layout.network_size(stage) for stage in STAGES}


def load_pictures(images: Sequence[Path]) -> dict[str, UInt8Array]:
    """Read pictures by unique names: those of the files, or paths where files share a name.

    Raises:
        ConfigError: one cannot be read.
    """
    names = [path.name for path in images]
    unique = [n if names.count(n) == 1 else str(p) for n, p in zip(names, images, strict=True)]
    return {name: load_rgb(path) for name, path in zip(unique, images, strict=True)}


def _conditions(bundle: Bundle, options: Options, cores: tuple[int, ...] | None) -> BenchConditions:
    m = bundle.manifest
    files = short_id(json.dumps(sorted(m.files.items())).encode())
    return BenchConditions(
        bundle={"name": m.name, "model": m.model_id, "tables": m.tables_id, "files": files},
        quality=options.quality,
        threads=options.threads,
        cores=cores,
        runs=options.limits.runs,
        seconds=options.limits.seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _picture(name: str, pixels: UInt8Array) -> MeasuredPicture:
    height, width = pixels.shape[:2]
    return MeasuredPicture(name, width, height, hashlib.sha256(pixels.tobytes()).hexdigest())


def _cold_starts(
    contenders: Sequence[Contender],
    picture: tuple[Path, UInt8Array],
    files: dict[str, bytes],
    options: Options,
    cores: tuple[int, ...] | None,
    progress: Progress,
) -> list[ColdStart]:
    with tempfile.TemporaryDirectory(prefix="edgecodec-bench-") as folder:
        jobs = []
        image, pixels = picture
        for number, contender in enumerate(contenders):
            path = Path(folder) / str(number)
            path.write_bytes(files[contender.name])
            request = contender.request
            common = ColdStartJob(
                codec=contender.name,
                action="encode",
                input=str(image.resolve()),
                quality=contender.settings["quality"],
                backend="" if request is None else request.backend,
                precision="" if request is None else request.precision,
                bundle=None if options.bundle is None else str(options.bundle),
                threads=options.threads,
                cores=cores,
                size=(pixels.shape[0], pixels.shape[1]),
            )
            jobs += [common, replace(common, action="decode", input=str(path))]
        return measure_cold_starts(jobs, options.cold_starts, progress)
