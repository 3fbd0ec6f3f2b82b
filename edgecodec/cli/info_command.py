"""`edgecodec info`: what a file says of itself, without a model."""

from __future__ import annotations

import argparse
import json
from typing import Any

from edgecodec.cli.common import naming, show_numbers
from edgecodec.text_table import align


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "info", help="describe a file", description="Describe an .ecx file; needs no model."
    )
    parser.add_argument("file", metavar="FILE", help="an .ecx file; - is stdin")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def describe(data: bytes) -> dict[str, Any]:
    """Return the facts of a file as JSON-compatible values."""
    from edgecodec.bundle.embedded import bundles_with_tables
    from edgecodec.format.container import MIME_TYPE, read_container

    file = read_container(data, keep_going=True)
    h = file.header
    return {
        "format": MIME_TYPE,
        "width": h.width,
        "height": h.height,
        "mode": h.mode,
        "quality": h.quality,
        "tables_id": h.tables_id,
        "bundles": list(bundles_with_tables(h.tables_id)),
        "tile": h.tile,
        "tiles": len(file.substreams),
        "damaged_tiles": [n + 1 for n, s in enumerate(file.substreams) if s is None],
        "bytes": file.size,
        "bpp": 8 * file.size / (h.width * h.height),
        "metadata": {name: len(value) for name, value in file.metadata.items()},
    }


def _whose(bundles: list[str]) -> str:
    """Say which embedded bundles can read a file."""
    if len(bundles) < 2:
        return f"of the embedded bundle {bundles[0]}" if bundles else "of no embedded bundle"
    return f"of the embedded bundles {', '.join(bundles)}; whose networks made it, no file says"


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    from edgecodec.files import read_input

    data = read_input(args.file)
    with naming(args.file):
        facts = describe(data)
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    meta = ", ".join(f"{name} ({size} bytes)" for name, size in facts["metadata"].items())
    damaged = show_numbers(facts["damaged_tiles"])
    rows = [
        ("size", f"{facts['width']} x {facts['height']} pixels, {facts['mode']}"),
        ("file", f"{facts['bytes']} bytes, {facts['bpp']:.3f} bits per pixel"),
        ("quality", str(facts["quality"])),
        ("model", f"tables {facts['tables_id']}, {_whose(facts['bundles'])}"),
        ("tiles", f"{facts['tiles']} of at most {facts['tile']} x {facts['tile']} pixels"),
        ("metadata", meta or "none"),
    ]
    rows += [("damaged", f"tile {damaged}")] if damaged else []
    print("\n".join(align(rows, left=(0, 1))))
    return 0
