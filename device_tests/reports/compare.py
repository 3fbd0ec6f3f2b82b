"""Two benchmarks compared: which stages became faster or slower, and by how much.

A stage is named only if all of this holds, because two runs of one build differ as well:

- the interval of the ratio of medians (moving-block bootstrap, 99 %) lies outside of a band;
- the band reaches MARGIN to either side of 1: processes differ by a few per cent for as long as
  they live, by where their memory happens to lie, and no number of samples shows that;
- the band is widened to what the yardsticks of the two runs differ by: the machine itself was
  busier, warmer or slower in one of them;
- medians differ by more than RESOLUTION_S.

With several pictures each sample is divided by its picture's median in both runs, so that all of
them count alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.device_tests.measuring.contenders import used_by
from edgecodec.device_tests.measuring.sampling import DRAWS, Interval, resampled_medians
from edgecodec.device_tests.reports.bench_report import FORMAT, KIND
from edgecodec.device_tests.reports.check import check_report
from edgecodec.errors import ConfigError
from edgecodec.files import refuse_device
from edgecodec.text_table import align

LEVEL = 0.99
MARGIN = 0.05
RESOLUTION_S = 20e-6
_LEAST_S = 1e-7
"""Reports round to this: a stage that took nothing takes as much, so that ratios stay numbers."""

FASTER, SLOWER, SAME, INCOMPARABLE = "faster", "slower", "no difference", "not comparable"
Report = Mapping[str, Any]
Samples = dict[str, list[tuple[float, float]]]
"""(start, seconds) by picture."""


@dataclass(frozen=True)
class StageComparison:
    """One stage of one contender.

    Attributes:
        codec: name of the contender.
        stage: as `encode/analysis`.
        a_s: median of the first run over all pictures; None where it has no such stage.
        b_s: of the second run.
        ratio: second over first; None where they do not compare.
        verdict: `faster`, `slower`, `no difference` or `not comparable`.
        reason: why they do not compare.
    """

    codec: str
    stage: str
    a_s: float | None
    b_s: float | None
    ratio: Interval | None
    verdict: str
    reason: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return a row of the table."""
        a, b = ("-" if s is None else f"{1e3 * s:.3f}" for s in (self.a_s, self.b_s))
        r = self.ratio
        ratio = "-" if r is None else f"{r.value:.3f}"
        interval = "" if r is None else f"{r.low:.3f} to {r.high:.3f}"
        verdict = f"{self.verdict}: {self.reason}" if self.reason else self.verdict
        return f"{self.codec} {self.stage}", a, b, ratio, interval, verdict


@dataclass(frozen=True)
class Comparison:
    """What two reports say together.

    Attributes:
        names: of the reports.
        differences: what else is not the same: versions, choices, power.
        yardsticks: ratios of fixed work by name, second over first.
        band: ratios that count as no difference.
        rows: one per stage.
    """

    names: tuple[str, str]
    differences: tuple[str, ...]
    yardsticks: dict[str, Interval]
    band: tuple[float, float]
    rows: tuple[StageComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        rules = {"level": LEVEL, "margin": MARGIN, "resolution_s": RESOLUTION_S}
        return {**asdict(self), "rules": rules}

    def text(self) -> str:
        """Return a table for a terminal; no trailing newline."""
        lines = [f"A  {self.names[0]}", f"B  {self.names[1]}"]
        lines += [f"   {line}" for line in self.differences]
        for name, fixed in self.yardsticks.items():
            found = f"{fixed.value:.3f} ({fixed.low:.3f} to {fixed.high:.3f})"
            lines.append(f"fixed work, {name}: B / A {found}")
        low, high = self.band
        lines += [f"no difference: {low:.3f} to {high:.3f}, or under {1e6 * RESOLUTION_S:g} us", ""]
        head = ("", "A ms", "B ms", "B / A", "99 % interval", "verdict")
        lines += align([head, *(row.cells() for row in self.rows)], left=(0, 4, 5))
        counts = {v: sum(row.verdict == v for row in self.rows) for v in (FASTER, SLOWER, SAME)}
        if left := sum(row.verdict == INCOMPARABLE for row in self.rows):
            counts[INCOMPARABLE] = left
        lines += ["", ", ".join(f"{n} {verdict}" for verdict, n in counts.items())]
        return "\n".join(lines)


def load_report(path: str) -> Report:
    """Read a benchmark, or the one inside a report of `edgecodec device-test`.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    refuse_device(Path(path))
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: not a report that can be read ({exc})") from exc
    for found in (report, report.get("bench")) if isinstance(report, dict) else ():
        if isinstance(found, dict) and found.get("kind") == KIND:
            if found.get("format") != FORMAT:
                raise ConfigError(f"{path}: of another version of edgecodec; measure again")
            if problem := check_report(found):
                raise ConfigError(f"{path}: a damaged report: {problem}; measure again")
            return found
    raise ConfigError(f"{path}: not a report of edgecodec bench --json")


def compare(a: Report, b: Report, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compare two benchmarks stage by stage.

    Args:
        a: the first report, as `BenchReport.to_dict` returns it.
        b: the second.
        names: of the reports.
    """
    fixed = _yardsticks(a, b)
    band = (
        min([1.0 - MARGIN, *(r.low for r in fixed.values())]),
        max([1.0 + MARGIN, *(r.high for r in fixed.values())]),
    )
    rows = [
        _row(a, b, codec, stage, band)
        for codec in dict.fromkeys([*_codecs(a), *_codecs(b)])
        for stage in dict.fromkeys([*_stages(a, codec), *_stages(b, codec)])
    ]
    return Comparison(names, tuple(_differences(a, b)), fixed, band, tuple(rows))


def _row(
    a: Report, b: Report, codec: str, stage: str, band: tuple[float, float]
) -> StageComparison:
    of_a, of_b = _samples(a, codec, stage), _samples(b, codec, stage)
    a_s, b_s = _median(of_a), _median(of_b)
    if reason := _obstacle(a, b, codec) or ("" if of_a and of_b else "in one report only"):
        return StageComparison(codec, stage, a_s, b_s, None, INCOMPARABLE, reason)
    ratio = ratio_of(of_a, of_b)
    verdict = SAME
    if a_s is not None and b_s is not None and abs(b_s - a_s) > RESOLUTION_S:
        verdict = FASTER if ratio.high < band[0] else SLOWER if ratio.low > band[1] else SAME
    return StageComparison(codec, stage, a_s, b_s, ratio, verdict)


def ratio_of(a: Samples, b: Samples) -> Interval:
    """Return the ratio of medians, second over first, with its interval.

    Args:
        a: samples by picture, of the first run.
        b: of the second run, on the same pictures.
    """
    references = {name: max(_LEAST_S, _median({"": [*a[name], *b[name]]}) or 0.0) for name in a}
    series = [_in_time(samples, references) for samples in (a, b)]
    generator = np.random.default_rng(0)
    of_a, of_b = (resampled_medians(values, DRAWS, generator) for values in series)
    low, high = np.quantile(of_b / of_a, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    value = float(np.median(series[1]) / np.median(series[0]))
    return Interval(min(low, value), value, max(high, value))


def _in_time(samples: Samples, references: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Return samples of all pictures in the order they were taken, each over its reference."""
    timed = [
        (start, max(_LEAST_S, s) / references[name])
        for name in samples
        for start, s in samples[name]
    ]
    return np.asarray([value for _, value in sorted(timed)])


def _samples(report: Report, codec: str, stage: str) -> Samples:
    """Return samples by the hash of their picture, so that names do not matter."""
    hashes = {image["name"]: image["sha256"] for image in report["images"]}
    return {
        hashes[m["image"]]: list(zip(m["starts_s"], m["stages_s"][stage], strict=True))
        for m in report["measurements"]
        if m["codec"] == codec and stage in m["stages_s"]
    }


def _median(samples: Samples) -> float | None:
    seconds = [s for timed in samples.values() for _, s in timed]
    return float(np.median(seconds)) if seconds else None


def _yardsticks(a: Report, b: Report) -> dict[str, Interval]:
    found = {}
    of_a = {y["name"]: y for y in a["yardsticks"]}
    for other in b["yardsticks"]:
        own = of_a.get(other["name"])
        if own is not None and own["settings"] == other["settings"]:
            series = [
                {"": list(zip(y["starts_s"], y["seconds"], strict=True))} for y in (own, other)
            ]
            found[other["name"]] = ratio_of(series[0], series[1])
    return found


def _yardsticks_left_out(a: Report, b: Report) -> list[str]:
    """Name fixed work that does not compare, each with why."""
    of_a, of_b = ({y["name"]: str(y["settings"]) for y in r["yardsticks"]} for r in (a, b))
    found = []
    for name in dict.fromkeys([*of_a, *of_b]):
        if name not in of_a or name not in of_b:
            found.append(f"{name} (in one report only)")
        elif of_a[name] != of_b[name]:
            one, two = (settings.split(", ") for settings in (of_a[name], of_b[name]))
            gone, come = ([p for p in x if p not in y] for x, y in ((one, two), (two, one)))
            found.append(f"{name} ({', '.join(gone) or 'less'} -> {', '.join(come) or 'less'})")
    return found


def _codecs(report: Report) -> list[str]:
    return [contender["codec"] for contender in report["contenders"]]


def _stages(report: Report, codec: str) -> list[str]:
    return [s["stage"] for s in report["summaries"] if s["codec"] == codec]


def _obstacle(a: Report, b: Report, codec: str) -> str:
    """Say why a contender's times of two reports do not compare, empty where they do."""
    one, two = a["conditions"], b["conditions"]
    of_a, of_b = (next((c for c in r["contenders"] if c["codec"] == codec), None) for r in (a, b))
    if of_a is None or of_b is None:
        return "in one report only"
    images = [sorted(image["sha256"] for image in report["images"]) for report in (a, b)]
    where = [
        (r["conditions"]["threads"], r["conditions"]["cores"] or r["device"].get("usable_cores"))
        for r in (a, b)
    ]
    checks = [
        ("other device", a["identity"], b["identity"]),
        ("other images", images[0], images[1]),
        ("other threads or cores", where[0], where[1]),
        ("other quality", of_a["settings"]["quality"], of_b["settings"]["quality"]),
    ]
    if of_a["ours"]:
        checks.append(("other bundle", one["bundle"]["files"], two["bundle"]["files"]))
    return next((reason for reason, first, second in checks if first != second), "")


def _differences(a: Report, b: Report) -> list[str]:
    """List what may explain a difference without making the reports incomparable."""
    found = []
    for name in ("system", "python", "governor"):
        one, two = a["device"][name], b["device"][name]
        if one != two:
            found.append(f"{name}: {one} -> {two}")
    one, two = a["device"]["packages"], b["device"]["packages"]
    for name in dict.fromkeys([*one, *two]):
        if one.get(name) != two.get(name):
            found.append(f"{name}: {one.get(name, 'absent')} -> {two.get(name, 'absent')}")
    used = [{c["codec"]: _used(c) for c in r["contenders"]} for r in (a, b)]
    found += [
        f"{codec}: {used[0][codec]} -> {used[1][codec]}"
        for codec in used[0]
        if codec in used[1] and used[0][codec] != used[1][codec]
    ]
    if left_out := _yardsticks_left_out(a, b):
        found.append(f"fixed work left out, measured otherwise: {', '.join(left_out)}")
    if not _yardsticks(a, b):
        found.append("no common fixed work: what the machine itself differs by is not known")
    return found


def _used(contender: Mapping[str, Any]) -> str:
    settings = contender["settings"]
    if not contender["ours"]:
        return str(settings["library"])
    return used_by(settings)
