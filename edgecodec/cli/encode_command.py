"""`edgecodec encode`."""

from __future__ import annotations

import argparse
from typing import Any

from edgecodec.cli.common import (
    add_backend_options,
    make_codec,
    refuse_overwriting,
    show_profile,
    tell,
    tile_side,
    whole_number,
)


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "encode", help="compress a picture", description="Compress a picture to an .ecx file."
    )
    parser.add_argument("input", metavar="IN", help="any image Pillow reads; - is stdin")
    parser.add_argument("output", metavar="OUT", help="the .ecx file; - is stdout")
    parser.add_argument(
        "-q", "--quality", type=whole_number(1, 100), default=60, help="1..100 (default 60)"
    )
    parser.add_argument(
        "-e",
        "--effort",
        type=whole_number(1, 9),
        default=1,
        help="1 is fast, 9 gives the smallest files; decoding is the same (default 1)",
    )
    parser.add_argument(
        "--tile",
        type=tile_side,
        metavar="PIXELS",
        help="side of independently coded tiles, a multiple of 32 (default 1024; one tile for "
        "pictures of up to 1.5 megapixels)",
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace an existing OUT")
    add_backend_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Encode."""
    from PIL import Image

    from edgecodec.coding.image_files import open_image
    from edgecodec.coding.profiling import Profile
    from edgecodec.files import read_input, write_output

    refuse_overwriting(args.output, args.force, args.input)
    Image.MAX_IMAGE_PIXELS = None  # this process is ours; open_image checks our own limit
    image = open_image(read_input(args.input), args.input)
    profile = Profile()
    with make_codec(args) as codec:
        data = codec.encode(
            image, args.quality, effort=args.effort, tile=args.tile, profile=profile
        )
        choice = codec.choice("analysis")  # now: what ran, chosen for this size alone
    write_output(args.output, data)
    bpp = 8 * len(data) / (image.width * image.height)
    tell(
        f"{args.output}: {image.width}x{image.height}, {len(data)} bytes, {bpp:.3f} bpp, "
        f"{choice.backend} {choice.precision}: {show_profile(profile)}"
    )
    return 0
