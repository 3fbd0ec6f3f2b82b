"""What a benchmark found: for machines with every sample, for people as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgecodec.coding.profiling import DECODE_STAGES, ENCODE_STAGES
from edgecodec.device_tests.measuring.cold_start import PHASES, ColdStart
from edgecodec.device_tests.measuring.contenders import Contender, used_by
from edgecodec.device_tests.measuring.layer_profile import NetworkProfile
from edgecodec.device_tests.measuring.sampling import Interval, Summary, median_interval, summarise
from edgecodec.device_tests.measuring.steady import Steady
from edgecodec.device_tests.measuring.sustained import Sustained
from edgecodec.runtimes.device.probe import Device
from edgecodec.runtimes.layers.peak import Peak
from edgecodec.text_table import align

KIND, FORMAT = "edgecodec bench", 1
_DIGITS = 7  # of seconds: a tenth of a microsecond
_STAGES = (
    "encode", *(f"encode/{s}" for s in (*ENCODE_STAGES, "other")),
    "decode", *(f"decode/{s}" for s in (*DECODE_STAGES, "other")),
)  # fmt: skip


@dataclass(frozen=True)
class MeasuredPicture:
    """A picture that was coded.

    Attributes:
        name: unique within a report.
        width: in pixels.
        height: in pixels.
        sha256: of its pixels, rows of RGB bytes.
    """

    name: str
    width: int
    height: int
    sha256: str

    @property
    def megapixels(self) -> float:
        """Size in millions of pixels."""
        return self.width * self.height / 1e6


@dataclass(frozen=True)
class BenchConditions:
    """How it was measured.

    Attributes:
        bundle: name of the model, and the ids of weights, tables and files.
        quality: of our codec.
        threads: of the runtimes; None left it to them.
        cores: that everything was pinned to; None where nothing was.
        runs: least number of timed runs asked for.
        seconds: least time asked for.
        created: when, in UTC, ISO 8601.
    """

    bundle: dict[str, str]
    quality: int
    threads: int | None
    cores: tuple[int, ...] | None
    runs: int
    seconds: float
    created: str


@dataclass
class BenchReport:
    """Everything a benchmark measured.

    Attributes:
        device: where.
        conditions: how.
        pictures: what was coded.
        contenders: who took part, ours first.
        steady: samples of the steady state.
        cold_starts: from process start to first picture.
        sustained: a long run of the first contender, where it was asked for.
        layers: profiles per layer, where they were asked for.
        peaks: what this machine can do at most, by arithmetic, for those.
        skipped: backends that could not take part, with the reason.
    """

    device: Device
    conditions: BenchConditions
    pictures: tuple[MeasuredPicture, ...]
    contenders: tuple[Contender, ...]
    steady: Steady
    cold_starts: list[ColdStart] = field(default_factory=list)
    sustained: Sustained | None = None
    layers: list[NetworkProfile] = field(default_factory=list)
    peaks: dict[str, Peak] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def pooled(self, codec: str, stage: str) -> list[float]:
        """Return the samples of a stage over all pictures, in the order they were taken."""
        timed: list[tuple[float, float]] = []
        for picture in self.pictures:
            series = self.steady.series[codec, picture.name]
            timed += zip(series.starts_s, series.stages.get(stage, ()), strict=False)
        return [seconds for _, seconds in sorted(timed)]

    def stages(self, codec: str) -> list[str]:
        """Return the stages that a contender has, in the order of the work."""
        have = self.steady.series[codec, self.pictures[0].name].stages
        return [stage for stage in _STAGES if stage in have]

    def summaries(self) -> Iterator[tuple[str, str, Summary]]:
        """Yield contender, stage and summary over all pictures."""
        for contender in self.contenders:
            for stage in self.stages(contender.name):
                yield contender.name, stage, summarise(self.pooled(contender.name, stage))

    def megapixels_per_second(self, codec: str, action: str) -> float:
        """Return the speed of `encode` or `decode`: each picture by its median run."""
        seconds = sum(
            float(np.median(self.steady.series[codec, p.name].stages[action]))
            for p in self.pictures
        )
        return sum(p.megapixels for p in self.pictures) / seconds

    def outside_networks(self, codec: str, action: str) -> float | None:
        """Return the share of `encode` or `decode` in which no network is at work.

        Stages of several tiles overlap, so this is the whole time less that in which at least one
        network runs, in whatever thread. None without stages.
        """
        outside = self.pooled(codec, f"outside/{action}")
        return sum(outside) / sum(self.pooled(codec, action)) if outside else None

    def joules_per_megapixel(self, codec: str) -> float | None:
        """Return the energy of encoding and decoding a megapixel; None where unknown."""
        total = megapixels = 0.0
        for picture in self.pictures:
            series = self.steady.series[codec, picture.name]
            if series.joules is None:
                return None
            total += series.joules
            megapixels += picture.megapixels * len(series.starts_s)
        return total / megapixels

    def ratios(self) -> Iterator[tuple[str, str, str, Interval]]:
        """Yield contender of ours, classical codec, action, and how many times as long it takes.

        Runs are compared in the pairs in which they were made, so that drift cancels.
        """
        for ours in (c for c in self.contenders if c.ours):
            for other in (c for c in self.contenders if not c.ours):
                for action in ("encode", "decode"):
                    pairs = zip(
                        self.pooled(ours.name, action), self.pooled(other.name, action), strict=True
                    )
                    yield ours.name, other.name, action, median_interval([a / b for a, b in pairs])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, raw samples too, as JSON-compatible values."""
        sustained = None if self.sustained is None else _sustained_dict(self.sustained)
        return {
            "kind": KIND,
            "format": FORMAT,
            "device": self.device.to_dict(),
            "identity": self.device.identity(),
            "conditions": asdict(self.conditions),
            "images": [asdict(picture) for picture in self.pictures],
            "contenders": [self._contender_dict(c) for c in self.contenders],
            "skipped": self.skipped,
            "summaries": [
                {"codec": codec, "stage": stage, **asdict(summary)}
                for codec, stage, summary in self.summaries()
            ],
            "ratios": [
                {"codec": ours, "against": other, "action": action, **asdict(interval)}
                for ours, other, action, interval in self.ratios()
            ],
            "cold_starts": [asdict(start) for start in self.cold_starts],
            "sustained": sustained,
            "layers": [profile.to_dict(self.peaks) for profile in self.layers],
            "peaks": {kind: asdict(peak) for kind, peak in self.peaks.items()},
            "yardsticks": [
                {**asdict(y), "starts_s": _rounded(y.starts_s), "seconds": _rounded(y.seconds)}
                for y in self.steady.yardsticks
            ],
            "measurements": [self._measurement(c, image) for c, image in self.steady.series],
        }

    def _contender_dict(self, contender: Contender) -> dict[str, Any]:
        name = contender.name
        actions = ("encode", "decode")
        return {
            "codec": name,
            "ours": contender.ours,
            "settings": contender.settings,
            "megapixels_per_second": {a: self.megapixels_per_second(name, a) for a in actions},
            "outside_networks": {a: self.outside_networks(name, a) for a in actions},
            "joules_per_megapixel": self.joules_per_megapixel(name),
        }

    def _measurement(self, codec: str, image: str) -> dict[str, Any]:
        series = self.steady.series[codec, image]
        return {
            "codec": codec,
            "image": image,
            "bytes": series.bytes,
            "joules": series.joules,
            "warm_up_s": _rounded(series.warm_up),
            "starts_s": _rounded(series.starts_s),
            "stages_s": {stage: _rounded(values) for stage, values in series.stages.items()},
        }

    def text(self) -> str:
        """Return tables for a terminal; no trailing newline."""
        parts = [self.device.text(), self._head(), self._table()]
        parts += filter(None, (self._ratio_table(), self._cold_table(), self._sustained_text()))
        parts += [self._peaks_text()] if self.peaks else []
        parts += [profile.text(self.peaks) for profile in self.layers]
        parts += [f"{name}: not here ({reason})" for name, reason in self.skipped.items()]
        return "\n\n".join(parts)

    def _head(self) -> str:
        how = self.conditions
        threads = "left to the runtimes" if how.threads is None else str(how.threads)
        cores = "not pinned" if how.cores is None else "pinned to " + _numbers(how.cores)
        versions = ", ".join(f"{name} {v}" for name, v in self.device.packages.items())
        images = "1 picture" if len(self.pictures) == 1 else f"{len(self.pictures)} pictures"
        return (
            f"model {how.bundle['name']} ({how.bundle['files']}), quality {how.quality}, {images} "
            f"of {sum(p.megapixels for p in self.pictures):.2f} megapixels in all\n"
            f"threads {threads}, {cores}; at least {how.runs} runs each and {how.seconds:g} s "
            f"after warm-up, taking turns\n{versions}"
        )

    def _table(self) -> str:
        head = ("milliseconds", "n", "min", "mean", "p50", "p90", "p99", "MP/s", "bytes")
        rows: list[tuple[str, ...] | str] = [head]
        for contender in self.contenders:
            rows += ["", _described(contender)]
            rows += [self._stage_row(contender.name, s) for s in self.stages(contender.name)]
            shares = [self.outside_networks(contender.name, a) for a in ("encode", "decode")]
            if None not in shares:
                encode, decode = (f"{100 * (share or 0.0):.1f} %" for share in shares)
                rows.append(f"  outside the networks: {encode} of encode, {decode} of decode")
            energy = self.joules_per_megapixel(contender.name)
            known = "unknown" if energy is None else f"{energy:.3f} J per megapixel, by RAPL"
            rows.append(f"  energy of both: {known}")
        return "\n".join(align(rows))

    def _stage_row(self, codec: str, stage: str) -> tuple[str, ...]:
        summary = summarise(self.pooled(codec, stage))
        values = (summary.min_s, summary.mean_s, summary.p50_s, summary.p90_s, summary.p99_s)
        cells = ["-" if v is None else f"{1e3 * v:.2f}" for v in values]
        whole = "/" not in stage
        speed = f"{self.megapixels_per_second(codec, stage):.2f}" if whole else ""
        size = sum(self.steady.series[codec, p.name].bytes for p in self.pictures)
        name = f"  {stage}" if whole else f"    {stage.partition('/')[2]}"
        shown = str(size) if stage == "encode" else ""
        return name, str(summary.n), *cells, speed, shown

    def _ratio_table(self) -> str:
        lines = [
            f"{ours} / {other} {action}: {r.value:.3f} ({r.low:.3f} to {r.high:.3f})"
            for ours, other, action, r in self.ratios()
        ]
        head = "time as a multiple of a classical codec's, paired runs, median and 95 % interval"
        return "\n".join([head, *(f"  {line}" for line in lines)]) if lines else ""

    def _cold_table(self) -> str:
        if not self.cold_starts:
            return ""
        count = len(self.cold_starts[0].total_s)
        title = f"cold start, ms, median of {count} process{'es' if count > 1 else ''}"
        rows: list[tuple[str, ...]] = [(title, *PHASES, "total", "again", "peak MB")]
        for start in self.cold_starts:
            spans = [*(start.phases_s[p] for p in PHASES), start.total_s, start.again_s]
            cells = [f"{1e3 * float(np.median(values)):.1f}" for values in spans]
            peak = max(start.peak_bytes)
            memory = f"{peak / 1e6:.0f}" if peak else "unknown"
            rows.append((f"  {start.codec} {start.action}", *cells, memory))
        return "\n".join(align(rows))

    def _peaks_text(self) -> str:
        found = [f"{kind} {p.gmacs_per_s:.1f} GMAC/s" for kind, p in self.peaks.items()]
        source = next(iter(self.peaks.values())).source
        return f"peak of matrix products here, by {source}: {', '.join(found)}"

    def _sustained_text(self) -> str:
        run = self.sustained
        if run is None:
            return ""
        encode, decode = run.kept()
        windows = run.windows()
        energy = run.joules_per_megapixel
        known = (
            "unknown" if energy is None else f"{energy:.3f} J per megapixel, {run.energy_source}"
        )
        hottest = max((w.hottest_c for w in windows if w.hottest_c is not None), default=None)
        heat = "unknown" if hottest is None else f"up to {hottest:.0f} C"
        return (
            f"sustained, {run.codec}: {len(run.starts_s)} runs in "
            f"{(run.starts_s[-1] + run.encode_s[-1] + run.decode_s[-1]) / 60:.1f} minutes\n"
            f"  speed kept from the first to the last tenth: encode {100 * encode:.0f} %, "
            f"decode {100 * decode:.0f} %\n  temperature {heat}; energy {known}"
        )


def _sustained_dict(run: Sustained) -> dict[str, Any]:
    encode, decode = run.kept()
    return {
        **asdict(run),
        "kept": {"encode": encode, "decode": decode},
        "joules_per_megapixel": run.joules_per_megapixel,
        "windows": [asdict(window) for window in run.windows()],
    }


def _described(contender: Contender) -> str:
    """Return `auto: tflite fp32 / openvino int8`, or the settings of a classical codec."""
    settings = contender.settings
    if not contender.ours:
        return f"{contender.name}: quality {settings['quality']}, {settings['library']}"
    return f"{contender.name}: {used_by(settings)}"


def _numbers(cores: Sequence[int]) -> str:
    return ("core " if len(cores) == 1 else "cores ") + ", ".join(map(str, cores))


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, _DIGITS) for value in values]
