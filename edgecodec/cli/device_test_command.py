"""`edgecodec device-test`: does everything agree on this machine?"""

from __future__ import annotations

import argparse
from typing import Any

from edgecodec.cli.common import (
    add_bundle_option,
    check_json,
    expand_images,
    name_list,
    whole_number,
    whole_numbers,
    write_json,
)
from edgecodec.errors import ConfigError


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "device-test",
        help="check every backend of this machine against golden files and the others",
        description=(
            "Read golden files on every backend: bytes, latents and int8 pixels must be what they "
            "were when the files were made. Then encode on every backend and decode on every "
            "other: latents must be identical, pixels within one level. Also checks the golden "
            "vector and both entropy coders."
        ),
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="default: the demo photo")
    add("--qualities", type=whole_numbers(1, 100), default=(10, 50, 90), metavar="LIST")
    add(
        "--matrix",
        action="store_true",
        help="every precision of every backend, int8 pixels identical; without --bundle and "
        "IMAGES with the model and the pictures of the golden files",
    )
    add(
        "--precision",
        type=name_list,
        metavar="LIST",
        help="these alone, such as int8 (default: fp32, with --matrix fp32,fp16,int8)",
    )
    add(
        "--extremes",
        action="store_true",
        help="black, white, noise and noise of full colours beside IMAGES, 768x512",
    )
    add(
        "--fast",
        action="store_true",
        help="one entropy coder: the NumPy one takes seconds for each photo",
    )
    add_bundle_option(parser)
    add("--threads", type=whole_number(1, 1024), metavar="N")
    add("--json", metavar="FILE", help="write the results; - is stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check and print; 1 if anything disagrees."""
    from edgecodec.classical import load_rgb
    from edgecodec.device_tests.bench import DEMO_PHOTO
    from edgecodec.device_tests.conformance import check_conformance
    from edgecodec.device_tests.kit import PRECISIONS, check_kit, kit_model, open_pictures
    from edgecodec.device_tests.kit_pictures import extreme_pictures

    check_json(args.json)
    unknown = set(args.precision or ()) - set(PRECISIONS)
    if unknown:
        raise ConfigError(f"precision {', '.join(sorted(unknown))}: {', '.join(PRECISIONS)} exist")
    paths = expand_images(args.images) if args.images else [DEMO_PHOTO]
    bundle, tile = args.bundle, 1536
    if args.matrix and not args.images and bundle is None:
        images, bundle, tile = open_pictures(), kit_model(), 64
    else:
        images = {path.name: load_rgb(path) for path in paths}
    if args.extremes:
        images |= extreme_pictures(512, 768)
    kit = check_kit(threads=args.threads)
    report = check_conformance(
        images,
        args.qualities,
        bundle=bundle,
        precisions=args.precision or (PRECISIONS if args.matrix else ("fp32",)),
        tile=tile,
        threads=args.threads,
        twin=not args.fast,
    )
    passed = kit.passed and report.passed
    if args.json:
        write_json(args.json, {**report.to_dict(), "kit": kit.to_dict(), "passed": passed})
    if args.json != "-":
        print(f"{kit.text()}\n\n{report.text()}")
    return 0 if passed else 1
