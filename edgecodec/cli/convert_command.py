"""`edgecodec convert`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from edgecodec.cli.common import check_outputs, name_list, tell, write_json
from edgecodec.errors import ConfigError
from edgecodec.evaluation.metrics import METRICS


def _percent(text: str) -> float:
    """Parse a number from 0; inf is one, nan is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage from 0")
    return value


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "convert",
        help="convert a checkpoint to a bundle",
        description=(
            "Convert a checkpoint to a bundle: graphs for each target and precision, integer "
            "tables, golden vector. Every artefact encodes and decodes real photos; one that "
            "costs too many bits at equal quality is not written, and the command says which "
            "layers cost most and what to try. Exit code 0: all written; 1: something asked for "
            "is not there, or nothing could be converted; 2: wrong usage. docs/converting.md "
            "explains the table that is printed."
        ),
        epilog=(
            "Example: edgecodec convert codec.pt -o my.bundle --precision fp32,int8 "
            "--calibration photos/"
        ),
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT",
        help="made by `edgecodec train`; or FILE.py:FUNCTION that returns a codec of your own "
        "(docs/own-codec.md)")  # fmt: skip
    add("-o", "--output", required=True, metavar="BUNDLE", help="folder, or a .zip file")
    add("--to", type=name_list, default=("onnx", "openvino", "tflite"), metavar="TARGETS",
        help="default: onnx,openvino,tflite; torch in fp32 always comes with them")  # fmt: skip
    add("--precision", type=name_list, default=("fp32",), metavar="LIST",
        help="fp32, fp16, int8, and for openvino bf16, made on a CPU that has bfloat16; "
        "int8:analysis or int8:synthesis is for that network alone (default: fp32)")  # fmt: skip
    add("--calibration", metavar="DIR",
        help="20 to 40 photos like those of your users: half set the ranges of int8, on the "
        "others losses are measured (default: the demo photo, too little for int8)")  # fmt: skip
    add("--max-bd-loss", type=_percent, metavar="PERCENT",
        help="most bits at equal quality that an artefact may cost, 2.5 times as much on a single "
        "photo; inf writes all (default: 4)")  # fmt: skip
    add("--metric", choices=METRICS, default="psnr",
        help="what losses are measured by: psnr (default), ms-ssim or ssimulacra2 for a codec "
        "trained for it, butteraugli where its program is installed")  # fmt: skip
    add("-f", "--force", action="store_true", help="replace an existing BUNDLE")
    add("--name", default="custom", help="what to call the model")
    add("--json", metavar="FILE",
        help="write all results, also operators and what layers cost; - is stdout")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert."""
    from edgecodec.converters.convert import DEFAULT_MAX_LOSS, convert_checkpoint

    code = args.checkpoint.rpartition(":")[0]
    check_outputs({"--json": args.json}, (args.checkpoint, code, args.output, args.calibration))
    if ":" not in args.checkpoint and not Path(args.checkpoint).is_file():
        what = "not a file" if Path(args.checkpoint).exists() else "no such file"
        raise ConfigError(f"{args.checkpoint}: {what}")

    report = convert_checkpoint(
        args.checkpoint,
        Path(args.output),
        targets=args.to,
        precisions=args.precision,
        calibration=Path(args.calibration) if args.calibration else None,
        name=args.name,
        force=args.force,
        progress=tell,
        max_loss=DEFAULT_MAX_LOSS if args.max_bd_loss is None else args.max_bd_loss,
        metric=args.metric,
    )
    try:
        if args.json:
            write_json(args.json, report.to_dict())
    finally:  # minutes of work are not to be lost with a disk that is full
        if args.json != "-":
            print(report.table(), flush=True)
    if report.refused:
        print(f"edgecodec: {report.refusal()}", file=sys.stderr)
        return 1
    return 0
