"""The frame of our HTML reports: one file of HTML, CSS and inline SVG, no script, no network.

Light and dark. Classes k0..k4 colour strokes, m0..m4 fills.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

CSS = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1c1e21;--soft:#646a73;--line:#e2e4e8;
--good:#0a7a4b;--bad:#b3401f;--c0:#0b63c5;--c1:#cf5a00;--c2:#0a8f6b;--c3:#a4439b;--c4:#8a919c}
@media (prefers-color-scheme:dark){:root{--bg:#131518;--card:#1b1e22;--ink:#e7e9ec;--soft:#9aa2ad;
--line:#30353c;--good:#4cc38a;--bad:#ff8b63;--c0:#6db1ff;--c1:#ff9b4a;--c2:#45cfa5;--c3:#e08ad8;--c4:#767e89}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:36px 20px 60px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:1.05rem;margin:0 0 8px}h3{font-size:.95rem;margin:20px 0 8px;overflow-wrap:anywhere}
p{margin:0 0 12px}.soft{color:var(--soft)}
.grid{display:grid;gap:16px;margin:20px 0}
.cards{grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr))}
.charts{grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px}
.pair{display:flex;gap:20px;flex-wrap:wrap}.pair>div{flex:1 1 110px}
.big{font-size:1.5rem;white-space:nowrap;font-weight:650;line-height:1.15;font-variant-numeric:tabular-nums}
.good{color:var(--good)}.bad{color:var(--bad)}.small{font-size:.82rem}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:14.5px}
.tick{stroke:var(--line);stroke-width:1}
.curve{fill:none;stroke-width:2;stroke-linejoin:round}.curve.ours{stroke-width:3.4}
.k0{stroke:var(--c0)}.k1{stroke:var(--c1)}.k2{stroke:var(--c2)}.k3{stroke:var(--c3)}.k4{stroke:var(--c4)}
.m0{fill:var(--c0)}.m1{fill:var(--c1)}.m2{fill:var(--c2)}.m3{fill:var(--c3)}.m4{fill:var(--c4)}
.mark{stroke:var(--card);stroke-width:1.2}
.legend{display:flex;gap:6px 22px;flex-wrap:wrap;margin:20px 0 -6px;padding:0;list-style:none}
.legend li{display:flex;align-items:center;gap:8px}.legend svg{width:34px;height:14px}
.crops{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,256px),256px))}
figure{margin:0}figure img{display:block;max-width:100%;height:auto;margin-bottom:6px}
details{border-top:1px solid var(--line);padding:10px 0}details:first-of-type{border-top:0}
summary{cursor:pointer;font-weight:600}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;min-width:440px;margin-top:8px;
font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 7px;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500;font-size:.86rem}tr:last-child td{border-bottom:0}
"""


def html_page(title: str, body: str) -> str:
    """Return a whole page.

    Args:
        title: heading and window title, plain text.
        body: HTML that follows the heading.
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><style>{CSS}</style></head><body><main>
<h1>{escape(title)}</h1>
{body}
</main></body></html>
"""


def card(title: str, body: str, note: str = "") -> str:
    """Return a framed part of a page.

    Args:
        title: heading, plain text.
        body: HTML below it.
        note: small beside the heading, plain text.
    """
    return f'<section class="card"><h2>{escape(title)}{_beside(note)}</h2>{body}</section>'


def folded(title: str, body: str, note: str = "", *, unfolded: bool = False) -> str:
    """Return a part that shows its title alone until it is unfolded; arguments as for `card`."""
    state = " open" if unfolded else ""
    return f"<details{state}><summary>{escape(title)}{_beside(note)}</summary>{body}</details>"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain text."""
    first = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{first}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _beside(note: str) -> str:
    return f' <span class="soft small">{escape(note)}</span>' if note else ""


def ticks(low: float, high: float, count: int = 9) -> list[float]:
    """Round numbers within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, sparser where it spans much."""
    steps = (1, 2, 5) if high / low > 6 else (1, 1.5, 2, 3, 4, 5, 7)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
