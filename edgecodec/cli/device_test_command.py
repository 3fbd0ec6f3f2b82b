"""`edgecodec device-test`: does everything agree on this machine?"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from edgecodec.cli.common import (
    add_bundle_option,
    check_outputs,
    name_list,
    tell,
    whole_number,
    whole_numbers,
    write_json,
)
from edgecodec.errors import ConfigError, EdgeCodecError


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "device-test",
        help="check every backend of this machine against golden files and the others",
        description=(
            "Read golden files on every backend: bytes, latents and int8 pixels must be what they "
            "were when the files were made. Then encode on every backend and decode on every "
            "other: latents must be identical, pixels within one level. Also checks the golden "
            "vector and both entropy coders, offers damaged files, and measures shortly. With "
            "--host all of it happens on another machine."
        ),
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="default: the demo photo")
    add("--qualities", type=whole_numbers(1, 100), default=(10, 50, 90), metavar="LIST")
    add(
        "--matrix",
        action="store_true",
        help="every precision of every backend, int8 pixels identical; without --bundle and "
        "IMAGES with the model and the pictures of the golden files",
    )
    add(
        "--precision",
        type=name_list,
        metavar="LIST",
        help="these alone, such as int8 (default: fp32, with --matrix fp32,fp16,bf16,int8)",
    )
    add(
        "--extremes",
        action="store_true",
        help="black, white, noise and noise of full colours beside IMAGES, 768x512",
    )
    add(
        "--fast",
        action="store_true",
        help="one entropy coder: the NumPy one takes seconds for each photo",
    )
    add_bundle_option(parser)
    add("--threads", type=whole_number(1, 1024), metavar="N")
    add("--runs", type=whole_number(0, 10**6), default=20, metavar="N",
        help="timed runs of the first image on each backend (default 20; 0: none)")  # fmt: skip
    add("--json", metavar="FILE", help="write the results; - is stdout")
    far = parser.add_argument_group("on another machine, over ssh").add_argument
    far("--host", metavar="USER@BOARD", help="as ssh takes it; ~/.ssh/config counts")
    far("--ssh", type=shlex.split, default=["ssh"], metavar="COMMAND",
        help="with options of its own, as 'ssh -p 2222 -i KEY'")  # fmt: skip
    far("--extras", type=name_list, default=(), metavar="LIST",
        help="runtimes to install there beside onnxruntime, as openvino,tflite")  # fmt: skip
    far("--wheels", metavar="DIR", help="install from these wheels alone: the board has no index")
    far(
        "--remote-python", default="", metavar="PROG", help="3.11 or later (default: looks for one)"
    )
    far("--remote-dir", metavar="DIR",
        help="keeps the environment there (default ~/.cache/edgecodec/device-test)")  # fmt: skip
    parser.set_defaults(run=run, wrong_usage=parser.error)


def run(args: argparse.Namespace) -> int:
    """Check and print; 1 if anything disagrees."""
    check_outputs({"--json": args.json}, args.images)
    if args.host is not None:
        return _run_there(args)
    if args.ssh != ["ssh"] or args.extras or args.wheels or args.remote_python or args.remote_dir:
        args.wrong_usage("--ssh, --extras, --wheels and --remote-* need --host")
    return _run_here(args)


def _run_here(args: argparse.Namespace) -> int:
    from edgecodec.coding.image_files import expand_images
    from edgecodec.device_tests.conformance.suite import SuiteOptions, run_suite

    options = SuiteOptions(
        qualities=args.qualities,
        matrix=args.matrix,
        precisions=args.precision,
        extremes=args.extremes,
        twin=not args.fast,
        bundle=args.bundle,
        threads=args.threads,
        runs=args.runs,
    )
    report = run_suite(expand_images(args.images) if args.images else (), options)
    if args.json:
        write_json(args.json, report.to_dict())
    if args.json != "-":
        print(report.text())
    return 0 if report.passed else 1


def _run_there(args: argparse.Namespace) -> int:
    from edgecodec.device_tests.remote.remote import REMOTE_FOLDER, Board, RemoteJob, run_there

    quiet = args.json == "-"
    target = Board(args.host, tuple(args.ssh), args.remote_python, args.remote_dir or REMOTE_FOLDER)
    wheels = None
    if args.wheels is not None:
        wheels = Path(args.wheels)
        if not wheels.is_dir():
            raise ConfigError(f"{args.wheels}: no such folder")
    arguments, files = _arguments_there(args)
    job = RemoteJob(arguments, files, args.extras, wheels)
    report = run_there(target, job, tell, (lambda line: None) if quiet else print)
    if args.json:
        write_json(args.json, report)
    if not report["passed"]:
        raise EdgeCodecError(f"{args.host}: the device test failed there; the report says where")
    return 0


def _arguments_there(args: argparse.Namespace) -> tuple[tuple[str, ...], dict[str, Path]]:
    """Return the arguments of the command there, and the files they name."""
    from edgecodec.coding.image_files import expand_images

    files: dict[str, Path] = {}
    arguments = ["--qualities", ",".join(map(str, args.qualities)), "--runs", str(args.runs)]
    flags = ("matrix", "extremes", "fast")
    arguments += [f"--{flag}" for flag in flags if getattr(args, flag)]
    arguments += ["--precision", ",".join(args.precision)] if args.precision else []
    arguments += [] if args.threads is None else ["--threads", str(args.threads)]
    if args.bundle is not None:
        path = Path(args.bundle)
        name = args.bundle
        if path.exists():
            name = f"bundle/{path.name}"
            files[name] = path.resolve()
        arguments += ["--bundle", name]
    for number, path in enumerate(expand_images(args.images) if args.images else ()):
        name = f"images/{number:04d}/{path.name}"
        files[name] = path
        arguments.append(name)
    return tuple(arguments), files
