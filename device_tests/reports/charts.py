"""SVG charts of a benchmark: stacked bars, ranges of samples, curves. Colours as in html_page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from edgecodec.evaluation.html_page import log_ticks, ticks

WIDTH = 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 176, 60, 6, 44
_ROW = 30
_CURVE_HEIGHT, _CURVE_LEFT = 260, 56
_Scale = Callable[[float], float]


@dataclass(frozen=True)
class Part:
    """A piece of a bar.

    Attributes:
        name: for the tooltip and the legend.
        value: its length, in the unit of the axis.
        color: 0..4.
    """

    name: str
    value: float
    color: int


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: its label, its pieces, and what stands at its end."""

    label: str
    parts: Sequence[Part]
    end: str


@dataclass(frozen=True)
class Range:
    """A row of a range chart; values ascend, `high` is None where it is not known."""

    label: str
    low: float
    middle: float
    upper: float
    high: float | None
    color: int


@dataclass(frozen=True)
class Curve:
    """A curve of a line chart."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int


def short(value: float) -> str:
    """Return a number with three digits or as a whole one.

    >>> short(1.2345), short(0.04567), short(5083.1)
    ('1.23', '0.0457', '5083')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Return a legend of (name, colour)."""
    items = "".join(
        '<li><svg viewBox="-17 -7 34 14" aria-hidden="true">'
        f'<path class="m{color}" d="M-9 -6H9V6H-9Z"/></svg>{escape(name)}</li>'
        for name, color in names
    )
    return f'<ul class="legend">{items}</ul>'


def bar_chart(title: str, bars: Sequence[Bar], unit: str) -> str:
    """Return stacked horizontal bars over a linear axis from zero."""
    most = max(sum(part.value for part in bar.parts) for bar in bars) or 1.0
    bottom = _TOP + _ROW * len(bars)

    def x(value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / most

    out = [_svg(title, bottom + _BOTTOM), *_vertical(ticks(0.0, most, 6), x, bottom, unit)]
    for number, bar in enumerate(bars):
        top, begin = _TOP + _ROW * number, 0.0
        out.append(_label(bar.label, top))
        for part in bar.parts:
            out.append(
                f'<path class="m{part.color} mark" d="M{x(begin):.1f} {top + 5}H'
                f'{x(begin + part.value):.1f}v20H{x(begin):.1f}Z"><title>{escape(part.name)}: '
                f"{part.value:.3g} {escape(unit)}</title></path>"
            )
            begin += part.value
        out.append(f'<text x="{x(begin) + 6:.1f}" y="{top + 20}">{escape(bar.end)}</text>')
    return "".join(out) + "</svg>"


def range_chart(title: str, ranges: Sequence[Range], unit: str) -> str:
    """Return ranges over a logarithmic axis: a line from end to end, a box from middle to upper."""
    values = [v for r in ranges for v in (r.low, r.high or r.upper) if v > 0]
    low, high = min(values) / 1.1, max(values) * 1.1
    bottom = _TOP + _ROW * len(ranges)

    def x(value: float) -> float:
        part = math.log(max(value, low) / low) / math.log(high / low)
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * part

    out = [_svg(title, bottom + _BOTTOM), *_vertical(_few(log_ticks(low, high)), x, bottom, unit)]
    for number, row in enumerate(ranges):
        top = _TOP + _ROW * number
        last = row.upper if row.high is None else row.high
        said = f"min {row.low:.3g}, p50 {row.middle:.3g}, p90 {row.upper:.3g}"
        said += "" if row.high is None else f", p99 {row.high:.3g}"
        out.append(_label(row.label, top))
        out.append(
            f"<g><title>{said} {escape(unit)}</title>"
            f'<path class="curve k{row.color}" d="M{x(row.low):.1f} {top + 15}H{x(last):.1f}"/>'
            f'<path class="m{row.color}" d="M{x(row.middle):.1f} {top + 8}H'
            f'{max(x(row.upper), x(row.middle) + 2):.1f}v14H{x(row.middle):.1f}Z"/></g>'
            f'<text x="{x(last) + 6:.1f}" y="{top + 20}">{short(row.middle)}</text>'
        )
    return "".join(out) + "</svg>"


def line_chart(title: str, curves: Sequence[Curve], across: str, unit: str) -> str:
    """Return curves over a common axis; the vertical one begins at zero."""
    points = [point for curve in curves for point in curve.points]
    most_x = max(x for x, _ in points) or 1.0
    most_y = 1.08 * max(y for _, y in points) or 1.0
    right, bottom = WIDTH - 14, _CURVE_HEIGHT - _BOTTOM

    def x(value: float) -> float:
        return _CURVE_LEFT + (right - _CURVE_LEFT) * value / most_x

    def y(value: float) -> float:
        return bottom - (bottom - _TOP) * value / most_y

    out = [_svg(title, _CURVE_HEIGHT), *_vertical(ticks(0.0, most_x, 8), x, bottom, across)]
    for value in ticks(0.0, most_y, 5):
        out.append(f'<path class="tick" d="M{_CURVE_LEFT} {y(value):.1f}H{right}"/>')
        out.append(
            f'<text x="{_CURVE_LEFT - 8}" y="{y(value) + 5:.1f}" text-anchor="end">{value:g}</text>'
        )
    for curve in curves:
        line = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in curve.points)
        out.append(f'<path class="curve k{curve.color}" d="M{line}"><title>{escape(curve.name)}, ')
        out.append(f"{escape(unit)}</title></path>")
    return "".join(out) + "</svg>"


def _svg(title: str, height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'


def _label(text: str, top: float) -> str:
    shown = text if len(text) <= 24 else text[:23] + "."
    return (
        f'<text x="{_LEFT - 8}" y="{top + 20}" text-anchor="end">{escape(shown)}'
        f"<title>{escape(text)}</title></text>"
    )


def _vertical(values: Sequence[float], x: _Scale, bottom: float, unit: str) -> list[str]:
    """Return lines with numbers below them, and what the axis counts."""
    out = []
    for value in values:
        out.append(f'<path class="tick" d="M{x(value):.1f} {_TOP}V{bottom}"/>')
        out.append(
            f'<text x="{x(value):.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>'
        )
    out.append(
        f'<text x="{WIDTH / 2}" y="{bottom + 38}" text-anchor="middle">{escape(unit)}</text>'
    )
    return out


def _few(values: Sequence[float]) -> list[float]:
    """Thin out numbers that would overlap, keeping powers of ten."""
    if len(values) <= 9:
        return list(values)
    return [value for value in values if math.isclose(math.log10(value) % 1.0, 0.0, abs_tol=1e-9)]
