"""`edgecodec bench`: where each millisecond goes on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from edgecodec.cli.common import (
    add_bundle_option,
    check_json,
    expand_images,
    name_list,
    whole_number,
    write_json,
)


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "bench",
        help="measure latency per stage and backend",
        description=(
            "Measure encoding and decoding per stage on each backend, and classical codecs "
            "beside them. Candidates take turns, so that a busy machine slows all alike."
        ),
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="default: the demo photo")
    add("--backends", type=name_list, default=("all",), metavar="LIST", help="default: all")
    add("--against", type=name_list, default=(), metavar="LIST", help="such as jpeg,webp,avif")
    add("-q", "--quality", type=whole_number(1, 100), default=60)
    add("--runs", type=whole_number(3, 10000), default=20, help="timed runs (default 20)")
    add_bundle_option(parser)
    add("--threads", type=whole_number(1, 1024), metavar="N")
    add("--json", metavar="FILE", help="all samples; - is stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from edgecodec.device_tests.latency import DEMO_PHOTO, benchmark

    check_json(args.json)
    images = expand_images(args.images) if args.images else [DEMO_PHOTO]
    report = benchmark(
        images,
        bundle=args.bundle,
        backends=None if args.backends == ("all",) else args.backends,
        against=args.against,
        quality=args.quality,
        runs=args.runs,
        threads=args.threads,
    )
    if args.json:
        write_json(args.json, report.to_dict())
    if args.json != "-":
        print(report.text())
    return 0
