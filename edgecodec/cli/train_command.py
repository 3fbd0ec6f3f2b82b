"""`edgecodec train`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgecodec.cli.common import whole_number


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "train",
        help="train a codec",
        description=(
            "Train a codec for all qualities at once. Interrupt it at any time and continue with "
            "--resume: optimiser, schedule, crops and noise go on where they stopped."
        ),
    )
    add = parser.add_argument
    add("--images", required=True, action="append", metavar="DIR",
        help="folder or tar file of photos; may be repeated")  # fmt: skip
    add("--valid", action="append", metavar="DIR", default=[],
        help="photos to report on, never trained on; may be repeated")  # fmt: skip
    add("--out", required=True, metavar="CKPT", help="checkpoint to write")
    add("--resume", metavar="CKPT", help="checkpoint to continue from")
    add("--restart", action="store_true",
        help="with --resume: take its weights, begin the schedule anew")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--minutes", type=float, help="stop after this time; continue with --resume")
    add("--steps", type=whole_number(1, 10**9), default=100_000, help="length of the schedule")
    add("--batch", type=whole_number(1, 4096), default=8, help="crops per step")
    add("--size", type=whole_number(64, 1024), default=128, help="side of a crop in pixels")
    add("--learning-rate", type=float, default=1e-3)
    add("--seed", type=whole_number(0, 2**31), default=0)
    add("--export", metavar="CKPT",
        help="also write configuration and weights alone in half precision")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train."""
    from edgecodec.errors import ConfigError, MissingDependencyError

    for name in (*args.images, *args.valid):
        if not Path(name).exists():
            raise ConfigError(f"{name}: no such folder or tar file")
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as exc:
        raise MissingDependencyError("torch", "train") from exc
    from edgecodec.model.checkpoint import export_weights
    from edgecodec.model.training import TrainingOptions, train

    if args.size % 64:
        raise ConfigError(f"--size must be a multiple of 64, not {args.size}")
    options = TrainingOptions(
        steps=args.steps,
        batch=args.batch,
        size=args.size,
        final_size=2 * args.size,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    try:
        train(
            [Path(p) for p in args.images],
            [Path(p) for p in args.valid],
            Path(args.out),
            options,
            device=args.device,
            resume=Path(args.resume) if args.resume else None,
            restart=args.restart,
            minutes=args.minutes,
            log=sys.stdout,
        )
        if args.export:
            export_weights(Path(args.out), Path(args.export))
    except (ValueError, OSError) as exc:
        raise ConfigError(str(exc)) from exc
    return 0
