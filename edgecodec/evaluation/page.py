"""An evaluation for people to read: a table for the terminal, a page for the browser.

The page is one file of HTML, CSS and inline SVG: no script, no network, light and dark. Curves
are drawn over the logarithm of the rate, because the BD-rate is the mean horizontal distance
between two of them there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain

from edgecodec.evaluation.crops import SideBySide, render_crops
from edgecodec.evaluation.evaluate import Average, BdRate, Evaluation
from edgecodec.evaluation.html_page import card, folded, html_page, html_table, log_ticks, ticks
from edgecodec.evaluation.metrics import METRICS, format_score, scores_text
from edgecodec.text_table import align

_WIDTH, _HEIGHT = 640, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 50
_MARGIN = 1.5
_MARKERS = (
    '<circle r="4.2"/>',
    '<path d="M-4 -4H4V4H-4Z"/>',
    '<path d="M0 -5L4.8 3.6H-4.8Z"/>',
    '<path d="M0 -5.4L5.4 0L0 5.4L-5.4 0Z"/>',
    '<path d="M0 5L4.8 -3.6H-4.8Z"/>',
)


@dataclass(frozen=True)
class _Axes:
    """Maps rate and quality to the pixels of a chart; the rate is logarithmic."""

    low_bpp: float
    high_bpp: float
    low: float
    high: float

    def x(self, rate: float) -> float:
        span = math.log(self.high_bpp / self.low_bpp)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(rate / self.low_bpp) / span

    def y(self, quality: float) -> float:
        part = (quality - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * part


def text_table(evaluation: Evaluation) -> str:
    """Return averages and BD-rates as text for a terminal, without a final newline."""
    cells = ((average.codec, *_cells(average)) for average in evaluation.averages)
    lines = align([("codec", *_head(evaluation)), *cells])
    if evaluation.bd_rates:
        what = f"BD-rate of {evaluation.codec} over {_images(evaluation)}"
        lines += ["", f"{what}: bits at equal quality (negative: fewer)"]
    rows: list[tuple[str, ...] | str] = []
    for anchor in evaluation.anchors:
        rates = _rates(evaluation, anchor)
        rows.append(_rate_cells(anchor, rates))
        rows += [f"     {reason}" for reason in _reasons(rates)]
    for variant in evaluation.variants:
        rows += ["", f"BD-rate of {variant}"]
        for anchor in (evaluation.codec, *evaluation.anchors):
            rows.append(_rate_cells(anchor, _rates(evaluation, anchor, variant)))
    return "\n".join([*lines, *align(rows)])


def _rate_cells(anchor: str, rates: Iterable[BdRate]) -> tuple[str, ...]:
    cells = ((METRICS[rate.metric].title, _percent(rate)) for rate in rates)
    return (f"  vs {anchor}", *chain.from_iterable(cells))


def render_page(
    evaluation: Evaluation,
    title: str = "Rate and distortion",
    crops: Sequence[SideBySide] = (),
) -> str:
    """Return a self-contained HTML page with curves, BD-rates, crops and all averages.

    Args:
        evaluation: what `evaluate` returned.
        title: heading and window title, plain text.
        crops: what `worst_crops` returned, to be shown side by side.

    Returns:
        HTML text; equal for equal arguments.
    """
    names = _names(evaluation)
    charts = "".join(_chart_card(evaluation, metric) for metric in evaluation.metrics)
    cards = "".join(
        _anchor_card(evaluation, anchor, codec)
        for codec, anchor in [
            *((evaluation.codec, anchor) for anchor in evaluation.anchors),
            *((variant, evaluation.codec) for variant in evaluation.variants),
        ]
    )
    side_by_side = card("Side by side at equal bytes", render_crops(crops)) if crops else ""
    tables = "".join(_codec_table(evaluation, name) for name in names)
    settings = "".join(f"<li>{escape(text)}</li>" for text in evaluation.settings.values())
    body = f"""<p class="soft">{escape(evaluation.codec)} on {_images(evaluation)}: sizes of
whole files, distortion of decoded 8-bit pictures, averaged over the images.</p>
<div class="grid cards">{cards}</div>
{_legend(names)}
<div class="grid charts">{charts}</div>
{side_by_side}<p></p>
{card("All averages", tables)}
<p></p><section class="card small soft"><h2>How this was measured</h2>
<p>BD-rate: percent of bits at equal quality, negative is fewer; log-rate interpolated by a
piecewise-cubic (PCHIP) over the range of quality that both codecs cover. MS-SSIM is compared on
the scale -10 log10(1 - MS-SSIM) dB. Times are the median over the images of single calls
without warm-up; a dash stands for results from the cache.</p><ul>{settings}</ul></section>"""
    return html_page(title, body)


def _points(curve: Iterable[Average], metric: str) -> list[tuple[float, float, Average]]:
    """Finite points (bpp, quality) of a curve with the averages they come from."""
    points = []
    for average in curve:
        quality = average.level(metric)
        if quality is not None and average.bpp > 0:
            points.append((average.bpp, quality, average))
    return points


def _axes(ours: Sequence[tuple[float, float, Average]], metric: str) -> _Axes:
    """Frame the codec under test; of the others, whatever falls into that frame is drawn."""
    rates, qualities = [p[0] for p in ours], [p[1] for p in ours]
    step = METRICS[metric].least_rise
    room = max(step, 0.14 * (max(qualities) - min(qualities)))
    return _Axes(
        min(rates) / _MARGIN,
        max(rates) * _MARGIN,
        math.floor((min(qualities) - room) / step) * step,
        math.ceil((max(qualities) + room) / step) * step,
    )


def _chart_card(evaluation: Evaluation, metric: str) -> str:
    name, unit = METRICS[metric].title, METRICS[metric].unit
    ours = _points(evaluation.curve(evaluation.codec), metric)
    if not ours:
        body = f'<p class="soft">No {name}: the images are too small or the results lossless.</p>'
    else:
        body = _chart(evaluation, metric, _axes(ours, metric))
    better = "higher" if METRICS[metric].higher_is_better else "lower (drawn higher)"
    return card(name, body, f"{unit}, {better} is better")


def _chart(evaluation: Evaluation, metric: str, axes: _Axes) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{METRICS[metric].title} '
        f'over bits per pixel for {escape(evaluation.codec)} and other codecs">',
        f'<clipPath id="frame-{metric}"><path d="M{_LEFT} {_TOP}H{right}V{bottom}H{_LEFT}Z"/>'
        "</clipPath>",
    ]
    for value in ticks(axes.low, axes.high):
        y = axes.y(value)
        parts.append(f'<path class="tick" d="M{_LEFT} {y:.1f}H{right}"/>')
        label = f"{_shown(metric, value):g}"
        parts.append(f'<text x="{_LEFT - 9}" y="{y + 4.5:.1f}" text-anchor="end">{label}</text>')
    for value in log_ticks(axes.low_bpp, axes.high_bpp):
        x = axes.x(value)
        parts.append(f'<path class="tick" d="M{x:.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{value:g}</text>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">'
        "bits per pixel, logarithmic</text>"
    )
    parts.append(f'<g clip-path="url(#frame-{metric})">')
    names = _names(evaluation)
    # Ours last, so that it lies on top.
    for index in reversed(range(len(names))):
        parts.append(_series(index, _points(evaluation.curve(names[index]), metric), axes))
    return "".join(parts) + "</g></svg>"


def _series(index: int, points: Sequence[tuple[float, float, Average]], axes: _Axes) -> str:
    if not points:
        return ""
    line = "L".join(f"{axes.x(rate):.1f} {axes.y(quality):.1f}" for rate, quality, _ in points)
    color = index % len(_MARKERS)
    marks = []
    for rate, quality, average in points:
        scores = scores_text(average.scores)
        note = f"{average.codec} quality {average.quality}: {rate:.3f} bpp, {scores}"
        marks.append(
            f'<g transform="translate({axes.x(rate):.1f} {axes.y(quality):.1f})">'
            f"<title>{escape(note)}</title>{_MARKERS[color]}</g>"
        )
    ours = "" if index else " ours"
    return (
        f'<path class="curve k{color}{ours}" d="M{line}"/>'
        f'<g class="mark m{color}">{"".join(marks)}</g>'
    )


def _legend(names: Sequence[str]) -> str:
    items = []
    for index, name in enumerate(names):
        color, ours = index % len(_MARKERS), "" if index else " ours"
        label = f"<b>{escape(name)}</b>" if index == 0 else escape(name)
        items.append(
            '<li><svg viewBox="-17 -7 34 14" aria-hidden="true">'
            f'<path class="curve k{color}{ours}" d="M-17 0H17"/>'
            f'<g class="mark m{color}">{_MARKERS[color]}</g></svg>{label}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _anchor_card(evaluation: Evaluation, anchor: str, codec: str) -> str:
    rates = _rates(evaluation, anchor, codec)
    title = f"bits vs {anchor}" if codec == evaluation.codec else f"bits of {codec} vs {anchor}"
    values = []
    for rate in rates:
        tone = "" if rate.percent is None else " good" if rate.percent < 0 else " bad"
        covered = ""
        if rate.low is not None and rate.high is not None:
            low, high = (_shown(rate.metric, level) for level in (rate.low, rate.high))
            covered = f"<br>{low:.1f} to {high:.1f} {METRICS[rate.metric].unit}"
        values.append(
            f'<div><div class="big{tone}">{_percent(rate).replace("-", "&minus;")}</div>'
            f'<div class="small soft">at equal {METRICS[rate.metric].title}{covered}</div></div>'
        )
    reasons = "".join(f'<p class="small soft">{escape(r)}</p>' for r in _reasons(rates))
    return card(title, f'<div class="pair">{"".join(values)}</div>{reasons}')


def _codec_table(evaluation: Evaluation, name: str) -> str:
    table = html_table(_head(evaluation), map(_cells, evaluation.curve(name)))
    return folded(name, table, unfolded=name == evaluation.codec)


def _head(evaluation: Evaluation) -> tuple[str, ...]:
    titles = (METRICS[metric].title for metric in evaluation.metrics)
    return ("quality", "bpp", *titles, "enc ms", "dec ms")


def _shown(metric: str, level: float) -> float:
    """Return what to show of a place on the scale where higher is better."""
    return level if METRICS[metric].higher_is_better else 0.0 - level


def _cells(average: Average) -> tuple[str, ...]:
    """Format the columns of `_head`; a dash where there is no value."""
    times = (None if t is None else t * 1e3 for t in (average.encode_s, average.decode_s))
    return (
        str(average.quality),
        f"{average.bpp:.3f}",
        *(format_score(metric, score) for metric, score in average.scores.items()),
        *("-" if ms is None else f"{ms:.1f}" for ms in times),
    )


def _images(evaluation: Evaluation) -> str:
    count = len(evaluation.images)
    return f"{count} image" if count == 1 else f"{count} images"


def _names(evaluation: Evaluation) -> tuple[str, ...]:
    return (evaluation.codec, *evaluation.anchors, *evaluation.variants)


def _rates(evaluation: Evaluation, anchor: str, codec: str | None = None) -> list[BdRate]:
    """Return the rates against an anchor of a variant, or of the codec itself."""
    codec = codec or evaluation.codec
    return [rate for rate in evaluation.bd_rates if (rate.codec, rate.anchor) == (codec, anchor)]


def _percent(rate: BdRate) -> str:
    return "-" if rate.percent is None else f"{rate.percent:+.1f} %"


def _reasons(rates: Iterable[BdRate]) -> list[str]:
    return list(dict.fromkeys(rate.reason for rate in rates if rate.reason))
