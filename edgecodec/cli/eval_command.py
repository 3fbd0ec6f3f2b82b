"""`edgecodec eval`: rate and distortion of real files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecodec.cli.common import (
    add_backend_options,
    expand_images,
    make_codec,
    name_list,
    number_list,
    whole_number,
)

if TYPE_CHECKING:
    from edgecodec.evaluation import Evaluation, Row


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "eval",
        help="measure rate and distortion",
        description=(
            "Encode and decode real files at several qualities; PSNR, MS-SSIM, and BD-rate "
            "against classical codecs measured in the same run."
        ),
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="pictures or folders of them")
    add("--qualities", type=number_list, default=(1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100),
        metavar="LIST", help="default: 1,10,20,...,100")  # fmt: skip
    add("--against", type=name_list, default=("jpeg", "webp", "avif"), metavar="LIST",
        help="classical codecs (default: jpeg,webp,avif)")  # fmt: skip
    add("--cache", metavar="FILE", help="keep results of the classical codecs here")
    add("--workers", type=whole_number(1, 64), default=1, help="images at a time")
    add("--json", metavar="FILE")
    add("--csv", metavar="FILE", help="one row per image, codec and quality")
    add("--html", metavar="FILE", help="a page with the curves")
    add_backend_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    from edgecodec.evaluation import evaluate
    from edgecodec.image import check_folder, write_output

    outputs = [name for name in (args.json, args.csv, args.html) if name]
    for name in outputs:
        check_folder(Path(name))
    images = expand_images(args.images)

    def progress(row: Row) -> None:
        psnr = "identical" if row.psnr is None else f"{row.psnr:.2f} dB"
        print(
            f"{row.image} {row.codec} q{row.quality}: {row.bpp:.3f} bpp, {psnr}",
            file=sys.stderr,
            flush=True,
        )

    with make_codec(args) as codec:
        result = evaluate(
            images,
            codec,
            args.qualities,
            against=args.against,
            cache=Path(args.cache) if args.cache else None,
            workers=args.workers,
            progress=progress if args.verbose else None,
        )
    if args.json:
        write_output(args.json, result.to_json().encode())
    if args.csv:
        write_output(args.csv, result.to_csv().encode())
    if args.html:
        from edgecodec.rd_page import render_page

        write_output(args.html, render_page(result).encode())
    print(table(result))
    return 0


def table(result: Evaluation) -> str:
    """Return averages per quality and the BD-rates as text."""
    lines = [f"{'codec':<10}{'q':>4}{'bpp':>9}{'PSNR dB':>10}{'MS-SSIM':>10}{'enc ms':>9}{'dec ms':>9}"]
    for a in sorted(result.averages, key=lambda a: (a.codec != result.codec, a.codec, a.bpp)):
        cells = (_cell(a.psnr, 2), _cell(a.ms_ssim, 4), _ms(a.encode_s), _ms(a.decode_s))
        lines.append(
            f"{a.codec:<10}{a.quality:>4}{a.bpp:>9.4f}{cells[0]:>10}{cells[1]:>10}"
            f"{cells[2]:>9}{cells[3]:>9}"
        )
    names = {"psnr": "PSNR", "ms_ssim": "MS-SSIM"}
    for rate in result.bd_rates:
        value = rate.reason if rate.percent is None else f"{rate.percent:+.1f} %"
        lines.append(f"BD-rate against {rate.anchor}, {names[rate.metric]}: {value}")
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"
