"""A benchmark as a page for the browser: no script, no network, made from the JSON report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from statistics import median
from typing import Any

from edgecodec.device_tests.measuring.cold_start import PHASES
from edgecodec.device_tests.measuring.contenders import used
from edgecodec.device_tests.reports.charts import (
    Bar,
    Curve,
    Part,
    Range,
    bar_chart,
    legend,
    line_chart,
    range_chart,
    short,
)
from edgecodec.evaluation.html_page import card, folded, html_page, html_table

Report = Mapping[str, Any]
NETWORK, ENTROPY, PIXELS, CONTAINER, OTHER = range(5)
_COLORS = {
    "analysis": NETWORK, "synthesis": NETWORK, "hyper": ENTROPY, "entropy": ENTROPY,
    "optimisation": ENTROPY, "read": PIXELS, "unpack": PIXELS, "pack": PIXELS,
    "write": CONTAINER, "parse": CONTAINER,
}  # fmt: skip
_KINDS = (
    ("networks", NETWORK), ("entropy coding, hyper-synthesis", ENTROPY), ("pixels", PIXELS),
    ("container", CONTAINER), ("other, or a whole codec", OTHER),
)  # fmt: skip
_PHASE_COLORS = {"interpreter": 4, "import": 3, "read": 2, "load": 1, "first": 0}
_HEAD = ("stage", "n", "min", "mean", "p50", "p90", "p99")


def render_page(report: Report, title: str = "Latency") -> str:
    """Return a self-contained HTML page.

    Args:
        report: what `BenchReport.to_dict` returns.
        title: heading and window title, plain text.
    """
    cards = [
        card("Where the time goes", _stage_bars(report), "median of each stage, milliseconds"),
        card(
            "How steady it is",
            _ranges(report),
            "line from the least to p99 (p90 with under 100 samples), box from p50 to p90",
        ),
        card("Over the run", _drift(report), "each encoding, milliseconds; seconds across"),
        *_cold(report),
        *_sustained(report),
    ]
    tables = "".join(_table(report, contender) for contender in report["contenders"])
    body = (
        f'<p class="soft">{escape(_headline(report))}</p>'
        f"{legend(_KINDS)}"
        f'<div class="grid charts">{"".join(cards)}</div>'
        f"{card('All stages, milliseconds', tables)}<p></p>"
        f"{_layers(report)}"
        f'<section class="card small soft"><h2>Where and how</h2>{_facts(report)}</section>'
    )
    return html_page(title, body)


def _summary(report: Report, codec: str) -> dict[str, Mapping[str, Any]]:
    return {s["stage"]: s for s in report["summaries"] if s["codec"] == codec}


def _stage_bars(report: Report) -> str:
    bars = []
    for contender in report["contenders"]:
        stages = _summary(report, contender["codec"])
        for action in ("encode", "decode"):
            whole = 1e3 * stages[action]["p50_s"]
            parts = [
                Part(
                    name.partition("/")[2], 1e3 * s["p50_s"], _COLORS.get(name.partition("/")[2], 4)
                )
                for name, s in stages.items()
                if name.startswith(action + "/")
            ]
            label = f"{contender['codec']} {action}"
            bars.append(Bar(label, parts or [Part(action, whole, OTHER)], short(whole)))
    return bar_chart("Time of each stage", bars, "ms")


def _ranges(report: Report) -> str:
    rows = []
    for contender in report["contenders"]:
        stages = _summary(report, contender["codec"])
        for action in ("encode", "decode"):
            s = stages[action]
            low, middle, upper = (1e3 * s[key] for key in ("min_s", "p50_s", "p90_s"))
            high = None if s["p99_s"] is None else 1e3 * s["p99_s"]
            color = NETWORK if contender["ours"] else OTHER
            rows.append(Range(f"{contender['codec']} {action}", low, middle, upper, high, color))
    return range_chart("Spread of the samples", rows, "ms, logarithmic")


def _drift(report: Report) -> str:
    curves = []
    for number, contender in enumerate(report["contenders"]):
        points = sorted(
            (start, 1e3 * seconds)
            for m in report["measurements"]
            if m["codec"] == contender["codec"]
            for start, seconds in zip(m["starts_s"], m["stages_s"]["encode"], strict=True)
        )
        curves.append(Curve(f"{contender['codec']} encode", points, number % 5))
    chart = line_chart("Each encoding over the run", curves, "seconds", "ms")
    return chart + legend([(curve.name, curve.color) for curve in curves])


def _cold(report: Report) -> list[str]:
    bars = []
    for start in report["cold_starts"]:
        parts = [Part(p, 1e3 * median(start["phases_s"][p]), _PHASE_COLORS[p]) for p in PHASES]
        total = 1e3 * median(start["total_s"])
        bars.append(Bar(f"{start['codec']} {start['action']}", parts, short(total)))
    if not bars:
        return []
    chart = bar_chart("Cold start", bars, "ms") + legend(list(_PHASE_COLORS.items()))
    return [card("Cold start", chart, "from the start of a process to its first picture")]


def _sustained(report: Report) -> list[str]:
    run = report["sustained"]
    if run is None:
        return []
    windows = run["windows"]
    curves = [
        Curve("encode", [(w["start_s"] / 60, w["encode_mps"]) for w in windows], 0),
        Curve("decode", [(w["start_s"] / 60, w["decode_mps"]) for w in windows], 1),
    ]
    chart = line_chart("Speed over minutes", curves, "minutes", "MP/s")
    chart += legend([(curve.name, curve.color) for curve in curves])
    kept = ", ".join(f"{name} {100 * value:.0f} %" for name, value in run["kept"].items())
    note = f"{run['codec']}, megapixels per second; kept to the end: {kept}"
    cards = [card("Sustained", chart, note)]
    heat = [(w["start_s"] / 60, w["hottest_c"]) for w in windows if w["hottest_c"] is not None]
    if heat:
        chart = line_chart("Temperature", [Curve("hottest sensor", heat, 3)], "minutes", "C")
        cards.append(card("Temperature", chart, "hottest sensor, degrees Celsius"))
    return cards


def _table(report: Report, contender: Mapping[str, Any]) -> str:
    rows = []
    for stage, s in _summary(report, contender["codec"]).items():
        values = [s[key] for key in ("min_s", "mean_s", "p50_s", "p90_s", "p99_s")]
        cells = ["-" if v is None else f"{1e3 * v:.2f}" for v in values]
        rows.append((stage, str(s["n"]), *cells))
    speed = ", ".join(f"{a} {v:.2f} MP/s" for a, v in contender["megapixels_per_second"].items())
    return folded(
        contender["codec"], html_table(_HEAD, rows), speed, unfolded=bool(contender["ours"])
    )


def _layers(report: Report) -> str:
    if not report["layers"]:
        return ""
    peaks = [f"{kind} {p['gmacs_per_s']:.1f} GMAC/s" for kind, p in report["peaks"].items()]
    head = ("layer", "operator", "ms", "share", "GMAC/s", "of peak")
    parts = [f'<p class="soft small">Measured peaks: {escape(", ".join(peaks) or "none")}</p>']
    for profile in report["layers"]:
        title = f"{profile['stage']}, {used(profile)}"
        if profile["reason"]:
            parts.append(f"<p>{escape(title)}: not available ({escape(profile['reason'])})</p>")
            continue
        rows = [
            (
                layer["name"],
                layer["operator"],
                f"{1e3 * layer['median_s']:.3f}",
                f"{100 * layer['share']:.1f} %",
                "-" if layer["gmacs_per_s"] is None else f"{layer['gmacs_per_s']:.1f}",
                "-" if layer["of_peak"] is None else f"{100 * layer['of_peak']:.0f} %",
            )
            for layer in profile["layers"]
        ]
        note = f"{len(rows)} layers, {1e3 * profile['total_s']:.2f} ms"
        parts.append(folded(title, html_table(head, rows), note))
    return f"{card('Layers', ''.join(parts))}<p></p>"


def _headline(report: Report) -> str:
    how = report["conditions"]
    threads = (
        "threads left to the runtimes" if how["threads"] is None else f"{how['threads']} threads"
    )
    count = len(report["images"])
    images = "1 picture" if count == 1 else f"{count} pictures"
    return (
        f"{report['device']['cpu'] or 'unknown processor'}, {images}, quality {how['quality']}, "
        f"{threads}; model {how['bundle']['name']}; {how['created']}"
    )


def _facts(report: Report) -> str:
    device, how = report["device"], report["conditions"]
    lines = [
        f"Machine: {device['cpu'] or 'unknown'}, {device['arch']}, {device['cores']} cores, "
        f"{device['system']}, Python {device['python']}, "
        f"governor {device['governor'] or 'unknown'}",
        ", ".join(f"{name} {version}" for name, version in device["packages"].items()),
        "Cores: " + ("not pinned" if how["cores"] is None else f"pinned to {how['cores']}"),
        f"At least {how['runs']} timed runs of each codec and {how['seconds']:g} s in all, after "
        "warm-up, codecs taking turns on every picture",
        "Model: " + ", ".join(f"{key} {value}" for key, value in how["bundle"].items()),
        *(f"{c['codec']}: {_settings(c['settings'])}" for c in report["contenders"]),
        *(f"{name}: not here ({reason})" for name, reason in report["skipped"].items()),
    ]
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _settings(settings: Mapping[str, Any]) -> str:
    parts = []
    for key, value in settings.items():
        shown = used(value) if isinstance(value, dict) else value
        parts.append(f"{key} {shown}")
    return ", ".join(parts)
