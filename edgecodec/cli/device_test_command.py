"""`edgecodec device-test`: does everything agree on this machine?"""

from __future__ import annotations

import argparse
from typing import Any

from edgecodec.cli.common import (
    add_bundle_option,
    check_json,
    expand_images,
    whole_number,
    whole_numbers,
    write_json,
)


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "device-test",
        help="check every backend of this machine against the others",
        description=(
            "Encode on every backend, decode on every other: latents must be identical, pixels "
            "within one level. Also checks the golden vector and both entropy coders."
        ),
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="default: the demo photo")
    add("--qualities", type=whole_numbers(1, 100), default=(10, 50, 90), metavar="LIST")
    add_bundle_option(parser)
    add("--threads", type=whole_number(1, 1024), metavar="N")
    add("--json", metavar="FILE", help="write the results; - is stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check and print; 1 if anything disagrees."""
    from edgecodec.device_tests.bench import DEMO_PHOTO
    from edgecodec.device_tests.conformance import check_conformance

    check_json(args.json)
    images = expand_images(args.images) if args.images else [DEMO_PHOTO]
    report = check_conformance(images, args.qualities, bundle=args.bundle, threads=args.threads)
    if args.json:
        write_json(args.json, report.to_dict())
    if args.json != "-":
        print(report.text())
    return 0 if report.passed else 1
