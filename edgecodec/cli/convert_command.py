"""`edgecodec convert`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from edgecodec.cli.common import check_json, name_list, write_json
from edgecodec.errors import ConfigError


def _percent(text: str) -> float:
    """Parse a number; inf is one, nan is none."""
    value = float(text)
    if math.isnan(value):
        raise ValueError(text)
    return value


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "convert",
        help="convert a checkpoint to a bundle",
        description=(
            "Convert a checkpoint to a bundle: graphs for each target and precision, integer "
            "tables, golden vector. Every artefact encodes and decodes real photos; one that "
            "costs too many bits at equal quality is not written (docs/converting.md)."
        ),
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT",
        help="made by `edgecodec train`; or FILE.py:FUNCTION that returns a codec of your own "
        "(docs/own-codec.md)")  # fmt: skip
    add("-o", "--output", required=True, metavar="BUNDLE", help="folder, or a .zip file")
    add("--to", type=name_list, default=("onnx", "openvino", "tflite"), metavar="TARGETS",
        help="default: onnx,openvino,tflite")  # fmt: skip
    add("--precision", type=name_list, default=("fp32",), metavar="LIST",
        help="fp32, fp16, int8 (default: fp32)")  # fmt: skip
    add("--calibration", metavar="DIR",
        help="photos for ranges and losses; 32 are enough (default: the demo photo)")  # fmt: skip
    add("--max-bd-loss", type=_percent, metavar="PERCENT",
        help="most bits at equal quality that an artefact may cost (default: 4)")  # fmt: skip

    add("-f", "--force", action="store_true", help="replace an existing BUNDLE")
    add("--name", default="custom", help="what to call the model")
    add("--json", metavar="FILE", help="write all results; - is stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert."""
    from edgecodec.converters.convert import DEFAULT_MAX_LOSS, convert_checkpoint

    check_json(args.json)
    if ":" not in args.checkpoint and not Path(args.checkpoint).is_file():
        raise ConfigError(f"{args.checkpoint}: no such file")

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    report = convert_checkpoint(
        args.checkpoint,
        Path(args.output),
        targets=args.to,
        precisions=args.precision,
        calibration=Path(args.calibration) if args.calibration else None,
        name=args.name,
        force=args.force,
        progress=progress,
        max_loss=DEFAULT_MAX_LOSS if args.max_bd_loss is None else args.max_bd_loss,
    )
    if args.json:
        write_json(args.json, report.to_dict())
    if args.json != "-":
        print(report.table())
    if report.refused:
        print(f"edgecodec: {report.refusal()}", file=sys.stderr)
        return 1
    return 0
