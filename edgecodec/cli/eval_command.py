"""`edgecodec eval`: rate and distortion of real files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecodec.arrays import UInt8Array
from edgecodec.cli.common import (
    add_backend_options,
    check_outputs,
    make_codec,
    name_list,
    tell,
    whole_number,
    whole_numbers,
)
from edgecodec.evaluation.metrics import DEFAULT_METRICS, METRICS, scores_text

if TYPE_CHECKING:
    from PIL import Image

    from edgecodec.codec import Codec
    from edgecodec.evaluation.evaluate import ImageResult


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "eval",
        help="measure rate and distortion",
        description=(
            "Encode and decode real files at several qualities; PSNR, MS-SSIM, SSIMULACRA2, and "
            "BD-rate against classical codecs measured in the same run. Pictures that cannot be "
            "read are left out and named at the end, with exit code 1."
        ),
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="pictures or folders of them")
    add("--qualities", type=whole_numbers(1, 100), metavar="LIST",
        default=(1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100),
        help="default: 1,10,20,...,100")  # fmt: skip
    add("--against", type=name_list, default=("jpeg", "webp", "avif"), metavar="LIST",
        help="classical codecs (default: jpeg,webp,avif)")  # fmt: skip
    add("--metrics", type=name_list, default=DEFAULT_METRICS, metavar="LIST",
        help=f"of {','.join(METRICS)}; butteraugli takes a program of libjxl's development tools "
        f"(default: {','.join(DEFAULT_METRICS)})")  # fmt: skip
    add("-e", "--effort", type=whole_numbers(1, 9), default=(1,), metavar="LIST",
        help="encoder efforts to measure, the first as the codec itself (default: 1)")  # fmt: skip
    add("--cache", metavar="FILE", help="keep results of the classical codecs here")
    add("--workers", type=whole_number(1, 64), default=1, help="images at a time")
    add("--json", metavar="FILE")
    add("--csv", metavar="FILE", help="one row per image, codec and quality")
    add("--html", metavar="FILE",
        help="a page with the curves, and with crops of the worst pictures beside AVIF and JPEG XL "
        "of the same bytes")  # fmt: skip
    add("--crops", type=whole_number(0, 100), default=6, metavar="N",
        help="of how many pictures the page has crops (default: 6)")  # fmt: skip
    add_backend_options(parser)
    parser.set_defaults(run=run)


class _AtEffort:
    """A codec with the encoder's effort settled."""

    def __init__(self, codec: Codec, effort: int) -> None:
        self.codec, self.effort = codec, effort

    def encode(self, image: UInt8Array, *, quality: int) -> bytes:
        """Compress (H, W, 3) uint8."""
        return self.codec.encode(image, quality, effort=self.effort)

    def decode(self, data: bytes) -> Image.Image:
        """Decompress a file."""
        return self.codec.decode(data)


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    from edgecodec.coding.image_files import expand_images
    from edgecodec.evaluation.crops import worst_crops
    from edgecodec.evaluation.evaluate import evaluate
    from edgecodec.evaluation.page import render_page, text_table
    from edgecodec.files import write_output

    images = expand_images(args.images)
    targets = {"--json": args.json, "--csv": args.csv, "--html": args.html}
    check_outputs(targets, [*images, args.cache])

    def progress(row: ImageResult) -> None:
        print(
            f"{row.image} {row.codec} q{row.quality}: {row.bpp:.3f} bpp, {scores_text(row.scores)}",
            file=sys.stderr,
            flush=True,
        )

    with make_codec(args) as codec:
        first, *others = (_AtEffort(codec, effort) for effort in args.effort)
        result = evaluate(
            images,
            first,
            args.qualities,
            variants={f"effort {other.effort}": other for other in others},
            against=args.against,
            metrics=args.metrics,
            cache=Path(args.cache) if args.cache else None,
            workers=args.workers,
            progress=progress if args.verbose else None,
        )
        if "-" not in targets.values():  # first: whatever becomes of the files, work is not lost
            print(text_table(result), flush=True)
        crops = worst_crops(result, images, first, args.crops) if args.html else ()
    if args.json:
        write_output(args.json, result.to_json().encode())
    if args.csv:
        write_output(args.csv, result.to_csv().encode())
    if args.html:
        write_output(args.html, render_page(result, crops=crops).encode())
    for name, reason in result.failures.items():
        tell(f"edgecodec: left out: {reason if name in reason else f'{name}: {reason}'}")
    return 1 if result.failures else 0
