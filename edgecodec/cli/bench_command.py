"""`edgecodec bench`: where each millisecond goes on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgecodec.cli.common import (
    add_bundle_option,
    check_outputs,
    name_list,
    number_from,
    tell,
    whole_number,
    write_json,
)

_MEASURING = (
    "images", "backends", "against", "quality", "runs", "seconds", "cold_starts", "minutes",
    "layers", "bundle", "threads", "html", "trace",
)  # fmt: skip
"""What says how to measure, and means nothing to a comparison."""


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "bench",
        help="measure latency per stage and backend",
        description=(
            "Measure encoding and decoding per stage on each backend, and classical codecs "
            "beside them. Everybody takes turns, so that a busy machine slows all alike."
        ),
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="default: the demo photo")
    add("--backends", type=name_list, default=("auto",), metavar="LIST",
        help="auto (default), all, or names, also with a precision: tflite:int8")  # fmt: skip
    add("--against", type=name_list, default=(), metavar="LIST", help="of jpeg,webp,avif,jxl")
    add("-q", "--quality", type=whole_number(1, 100), default=60)
    add("--runs", type=whole_number(3, 10**6), default=100,
        help="least number of timed runs each (default 100)")  # fmt: skip
    add("--seconds", type=number_from(0), default=10.0, help="least time of them all (default 10)")
    add("--cold-starts", type=whole_number(0, 1000), default=3, metavar="N",
        help="processes per codec from start to first picture (default 3)")  # fmt: skip
    add("--minutes", type=number_from(0), default=0.0, metavar="M",
        help="then work without a pause, to see a machine throttle")  # fmt: skip
    add("--layers", action="store_true", help="then profile each network by layer")
    add_bundle_option(parser)
    add("--threads", type=whole_number(1, 1024), metavar="N", help="and as many pinned cores")
    add("--json", metavar="FILE", help="everything with all samples; - is stdout")
    add("--html", metavar="FILE", help="a page with charts")
    add("--trace", metavar="FILE", help="one picture as a Chrome trace, for ui.perfetto.dev")
    add("--compare", nargs=2, metavar=("A", "B"),
        help="measure nothing: compare two JSON reports stage by stage")  # fmt: skip
    parser.set_defaults(run=run, wrong_usage=parser.error, default_of=parser.get_default)


def run(args: argparse.Namespace) -> int:
    """Measure and print, or compare and print."""
    from edgecodec.coding.image_files import expand_images

    images = expand_images(args.images) if args.images and not args.compare else []
    targets = {"--json": args.json, "--html": args.html, "--trace": args.trace}
    check_outputs(targets, [*images, *(args.compare or ())])
    return _compare(args) if args.compare else _measure(args, images)


def _compare(args: argparse.Namespace) -> int:
    from edgecodec.device_tests.reports.compare import compare, load_report

    if any((getattr(args, n) or None) != (args.default_of(n) or None) for n in _MEASURING):
        args.wrong_usage("--compare takes two reports and --json, nothing else")
    a, b = (load_report(path) for path in args.compare)
    comparison = compare(a, b, tuple(args.compare))
    if args.json:
        write_json(args.json, comparison.to_dict())
    if args.json != "-":
        print(comparison.text())
    return 0


def _measure(args: argparse.Namespace, images: list[Path]) -> int:
    from edgecodec.device_tests.bench import DEMO_PHOTO, Options, benchmark
    from edgecodec.device_tests.measuring.steady import Limits
    from edgecodec.device_tests.reports.page import render_page
    from edgecodec.files import write_output

    options = Options(
        bundle=args.bundle,
        backends=args.backends,
        against=args.against,
        quality=args.quality,
        threads=args.threads,
        limits=Limits(args.runs, args.seconds),
        cold_starts=args.cold_starts,
        minutes=args.minutes,
        layers=args.layers,
    )
    outcome = benchmark(
        images or [DEMO_PHOTO], options, tell if args.verbose else lambda line: None
    )
    # First: whatever becomes of the files, minutes of work are not lost.
    if "-" not in (args.json, args.html, args.trace):
        print(outcome.report.text())
    if args.json:
        write_json(args.json, outcome.report.to_dict())
    if args.html:
        write_output(args.html, render_page(outcome.report.to_dict()).encode())
    if args.trace:
        write_output(args.trace, (json.dumps(outcome.trace()) + "\n").encode())
    return 0
