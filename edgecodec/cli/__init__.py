"""The command line: one module per command, each with `add_parser` and `run`.

Exit codes: 0 done, 1 the input or the device is at fault (one line on stderr), 2 wrong usage,
130 interrupted, 143 told to end (SIGTERM).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import io
import logging
import math
import os
import signal
import sys
import time
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

INTERRUPTED, TERMINATED = 130, 143
"""As shells have it: 128 and the number of the signal."""

REPEAT_S = 5.0
"""A second SIGTERM within so many seconds would only disturb the cleaning up: `timeout` tells a
process and then its group. Later ones count, as code in C may have dropped the first."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what an interruption leaves in order, this does, too."""


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
    try:
        args = build_parser().parse_args(argv)
        logging.basicConfig(
            level=logging.INFO if args.verbose else logging.WARNING, format="%(name)s: %(message)s"
        )
        code = int(args.run(args))
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that has gone can still be borne
        return code
    except EdgeCodecError as exc:
        return _fail(str(exc))
    except BrokenPipeError:
        _drop_output()  # its reader has gone; nothing more can be said to it
        return 1
    except OSError as exc:  # files have errors of their own: this is what is printed
        _drop_output()
        return _fail(f"{exc.filename or 'standard output'}: {exc.strerror or exc}")
    except Terminated:
        return _fail("terminated", TERMINATED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except MemoryError:
        return _fail("out of memory; a smaller --tile needs less")


def _fail(message: str, code: int = 1) -> int:
    with contextlib.suppress(OSError):  # where stderr is full or gone the code says it
        print(f"edgecodec: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _drop_output() -> None:
    """Let what is left of the output go nowhere, so that the interpreter can end in peace."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Give numbers 0 to 2 to the null device where they are closed; let stdout take any name.

    Otherwise the next file to be opened gets such a number, and with it what runtimes say on
    stderr; and messages for a stderr that is not there would go to stdout, among the result.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")
    # Names of files need not be text of the terminal's encoding, or of any; what is done is done.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _end_in_order_on_sigterm() -> None:
    """Let SIGTERM interrupt, unless whoever began this process had it ignored."""
    told_s = -math.inf

    def terminate(*_: object) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > REPEAT_S:
            told_s = time.monotonic()
            raise Terminated

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)


def entry_point() -> None:
    """Run the command line of this process."""
    _open_standard_streams()
    _end_in_order_on_sigterm()
    code = main()
    if code in (INTERRUPTED, TERMINATED):
        # A runtime may be at work in another thread, and would complain of what is taken from it.
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)
