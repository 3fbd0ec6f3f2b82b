"""The command line: one module per command, each with `add_parser` and `run`.

Exit codes: 0 done, 1 the input or the device is at fault (one line on stderr), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from edgecodec._version import __version__
from edgecodec.errors import EdgeCodecError

COMMANDS = (
    "encode",
    "decode",
    "info",
    "devices",
    "convert",
    "bench",
    "eval",
    "train",
    "device-test",
    "demo",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="edgecodec",
        description="Learned image compression on phones and edge devices: convert, run, measure.",
    )
    parser.add_argument("--version", action="version", version=f"edgecodec {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done and why")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"edgecodec.cli.{name.replace('-', '_')}_command")
        module.add_parser(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(name)s: %(message)s"
    )
    try:
        code = int(args.run(args))
        sys.stdout.flush()  # here, where a reader that has gone can still be borne
        return code
    except EdgeCodecError as exc:
        return _fail(str(exc))
    except BrokenPipeError:
        # The reader of our standard output has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted")
    except MemoryError:
        return _fail("out of memory; a smaller --tile needs less")


def _fail(message: str) -> int:
    print(f"edgecodec: {' '.join(message.split())}", file=sys.stderr)
    return 1


def entry_point() -> None:
    """Run the command line of this process."""
    sys.exit(main())
