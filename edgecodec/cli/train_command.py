"""`edgecodec train`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecodec.cli.common import whole_number

if TYPE_CHECKING:
    from edgecodec.training.options import SavedRun, TrainingOptions


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "train",
        help="train a codec",
        description=(
            "Train a codec for all qualities at once. Interrupt it at any time and continue with "
            "--resume: options, optimiser, schedule, crops and noise go on where they stopped. "
            "Only --steps and --objective may be given anew then, the former until "
            "blocks begin to round as their int8 form does, in the last quarter of the steps. To "
            "fine-tune a codec for another objective, add --restart: its weights, a new schedule, "
            "new options. To make a codec that never rounded lose less as int8, give it to --qat "
            "instead: a short run that rounds all along."
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
        help="with --resume: take its weights, begin anew with new options")  # fmt: skip
    add("--qat", metavar="CKPT",
        help="quantization-aware training: take this checkpoint's weights and tune them with "
        "activations rounded as in int8; what comes out converts as any other")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--compile", action="store_true",
        help="compile with torch.compile first, which takes a minute or two and needs a C++ "
        "compiler; long runs on a CPU gain up to 1.4 times the speed")  # fmt: skip
    add("--minutes", type=float, help="stop after this time; continue with --resume")
    # No defaults here: what is not given comes from the checkpoint or from TrainingOptions.
    add("--objective", choices=("mse", "msssim", "visual"),
        help="distortion to weigh against rate: mse (default), 1 - MS-SSIM, or visual, what eyes "
        "see: SSIMULACRA2 with a share of the MSE")  # fmt: skip
    add("--steps", type=whole_number(1, 10**9),
        help="length of the schedule (default 100000; with --qat 6500)")  # fmt: skip
    add("--batch", type=whole_number(1, 4096),
        help="crops per step (default 4; with msssim 2)")  # fmt: skip
    add("--size", type=whole_number(64, 1024),
        help="side of a crop in pixels (default 192, and 64 more in the last tenth of the "
        "steps; with msssim 256 all along; with msssim and visual at least 192)")  # fmt: skip
    add("--synthetic", type=float,
        help="share of the crops that are drawn: text, flat areas (default 0.2)")  # fmt: skip
    add("--shape", choices=("first", "second"), help="channels and layers of a new codec")
    add("--from", dest="grow_from", metavar="CKPT",
        help="with --shape: begin with this trained codec of a smaller shape, grown")  # fmt: skip
    add("--learning-rate", type=float,
        help="at its highest (default 0.001; with --from 0.0005, with --restart or --qat "
        "0.0002)")  # fmt: skip
    add("--seed", type=whole_number(0, 2**31), help="default 0")
    add("--export", metavar="CKPT",
        help="also write configuration and weights alone in half precision")  # fmt: skip
    add("--slim", metavar="CKPT",
        help="also write the run, to be resumed elsewhere, in 10 instead of 16 bytes per weight: "
        "averages and moments with 8 significant bits")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train."""
    from edgecodec.errors import ConfigError, MissingDependencyError

    if args.size is not None and args.size % 64:
        raise ConfigError(f"--size must be a multiple of 64, not {args.size}")
    if args.qat and args.resume:
        raise ConfigError("--qat begins a new run; continue one that stopped with --resume alone")
    if args.restart and not args.resume:
        raise ConfigError("--restart needs --resume, whose weights it takes")
    if args.grow_from and not args.shape:
        raise ConfigError("--from needs --shape, what to grow to")
    for name in (*args.images, *args.valid):
        if not Path(name).exists():
            raise ConfigError(f"{name}: no such folder or tar file")
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as exc:
        raise MissingDependencyError("torch", "train") from exc
    from edgecodec.model.checkpoint import check_target, export_weights, slim_checkpoint
    from edgecodec.model.config import SHAPES
    from edgecodec.training.options import SavedRun
    from edgecodec.training.train import train

    if args.shape and (args.qat or args.resume):
        raise ConfigError("--shape is of a new codec; a checkpoint has its own")
    try:
        for target in (args.export, args.slim):
            if target:
                check_target(Path(target))
        start = args.qat or args.resume
        saved = SavedRun.load(Path(start)) if start else None
        train(
            [Path(p) for p in args.images],
            [Path(p) for p in args.valid],
            Path(args.out),
            _options(args, saved),
            device=args.device,
            resume=saved,
            restart=bool(args.restart or args.qat),
            grow_from=SavedRun.load(Path(args.grow_from)) if args.grow_from else None,
            minutes=args.minutes,
            config=SHAPES[args.shape] if args.shape else None,
            compiled=args.compile,
            log=sys.stdout,
        )
        if args.export:
            export_weights(Path(args.out), Path(args.export))
        if args.slim:
            slim_checkpoint(Path(args.out), Path(args.slim))
    except (ValueError, OSError) as exc:
        raise ConfigError(str(exc)) from exc
    return 0


def _options(args: argparse.Namespace, run: SavedRun | None) -> TrainingOptions:
    """Return the options of a new run, or those of the run to resume.

    Raises:
        ValueError: an option differs from the run to resume, or cannot be.
    """
    from edgecodec.training.options import TrainingOptions

    names = ("steps", "batch", "size", "learning_rate", "seed", "objective", "synthetic")
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if args.qat:
        before = (run.entries.get("options") or {}) if run else {}
        given.setdefault("objective", before.get("objective", "mse"))
        return TrainingOptions.for_new_run(rounded=True, **given)
    if run is None or args.restart:
        return TrainingOptions.for_new_run(
            fine_tuning=args.restart, grown=bool(args.grow_from), **given
        )
    saved, step = run.progress()
    new = {n: given.pop(n) for n in ("steps", "objective") if n in given}
    for name, value in given.items():
        if value != getattr(saved, name):
            raise ValueError(
                f"--{name.replace('_', '-')} {value}: {args.resume} was trained with "
                f"{getattr(saved, name)}; leave it out, or add --restart to begin anew"
            )
    return saved.changed(step, **new)
