"""`edgecodec decode`."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from edgecodec.cli.common import (
    add_backend_options,
    make_codec,
    naming,
    refuse_overwriting,
    show_numbers,
    show_profile,
    tell,
    whole_number,
)


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "decode", help="decompress a file", description="Decompress an .ecx file to a picture."
    )
    parser.add_argument("input", metavar="IN", help="an .ecx file; - is stdin")
    parser.add_argument("output", metavar="OUT", help="format by extension; - is PNG to stdout")
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="show damaged tiles as flat grey instead of refusing the file",
    )
    parser.add_argument(
        "--quality",
        type=whole_number(1, 100),
        metavar="N",
        help="1..100, of lossy formats (default 95, all chroma; WebP 100, which is lossless)",
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace an existing OUT")
    add_backend_options(parser)
    parser.set_defaults(run=run)


_log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Decode."""
    from edgecodec.bundle.embedded import bundles_with_tables
    from edgecodec.coding.image_files import check_output, image_bytes, quality_of
    from edgecodec.coding.profiling import Profile
    from edgecodec.files import read_input, write_output

    refuse_overwriting(args.output, args.force, args.input)
    check_output(args.output, args.quality)
    data = read_input(args.input)
    profile = Profile()
    with make_codec(args) as made:
        with naming(args.input):
            codec = made.for_file(data)
            image = codec.decode(data, keep_going=args.keep_going, profile=profile)
        damaged = image.info.pop("damaged_tiles", [])
        used, path, own = codec.choice("synthesis"), codec.bundle.path, codec.bundle.manifest
    write_output(args.output, image_bytes(image, args.output, args.quality))
    _log.info("decoded with the bundle %s: tables %s, model %s", path, own.tables_id, own.model_id)
    known = bundles_with_tables(own.tables_id)
    if others := [name for name, other in known.items() if other.model_id != own.model_id]:
        tell(
            f"edgecodec: {args.input}: decoded with {path.stem}; of the same tables, with other "
            f"networks: {', '.join(others)} (the file does not say which made it; --bundle chooses)"
        )
    if damaged:
        tell(f"edgecodec: {args.input}: damaged tiles shown in grey: {show_numbers(damaged)}")
    quality = quality_of(args.output, args.quality)
    tell(
        f"{args.output}: {image.width}x{image.height}, "
        f"{f'quality {quality}, ' if quality else ''}{used.backend} {used.precision}: "
        f"{show_profile(profile)}"
    )
    return 0
