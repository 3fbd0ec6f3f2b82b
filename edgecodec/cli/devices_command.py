"""`edgecodec devices`: what this machine has, what was measured, what is chosen and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

from edgecodec.cli.common import add_bundle_option, whole_number

VARIABLES = """environment:
  EDGECODEC_BACKEND=NAME     the backend to use wherever none is named
  EDGECODEC_DISABLE=NAME,..  backends never to use
  EDGECODEC_TRUST=NAME,..    backends to run without a trial in a process of their own
  EDGECODEC_CACHE=FOLDER     where measurements are kept; empty keeps none
"""


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "devices",
        help="list runtimes, measure them, show the choice",
        description="List the runtimes of this machine, measure them, show the choice and why.",
        epilog=VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--refresh", action="store_true", help="measure again and replace what is in the cache"
    )
    add_bundle_option(parser)
    parser.add_argument("--threads", type=whole_number(1, 1024), metavar="N")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from edgecodec.bundle.reading import Bundle
    from edgecodec.runtimes.selection.report import devices_report

    with Bundle(args.bundle) as bundle:
        report = devices_report(bundle, args.threads, refresh=args.refresh)
    print(json.dumps(report.to_dict(), indent=1) if args.json else report.text())
    return 0
