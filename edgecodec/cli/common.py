"""What several commands share: options, formatting, loading of pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecodec.bundle.manifest import PRECISIONS
from edgecodec.errors import BitstreamError, ConfigError, EdgeCodecError

if TYPE_CHECKING:
    from edgecodec.codec import Codec
    from edgecodec.coding.profiling import Profile


def whole_number(low: int, high: int) -> Any:
    """Return an argparse type for whole numbers in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {low}..{high}")
        return value

    return parse


def number_from(low: float) -> Any:
    """Return an argparse type for finite numbers of at least `low`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= low):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g}")
        return value

    return parse


def tile_side(text: str) -> int:
    """Parse the side of a tile."""
    side: int = whole_number(32, 4096)(text)
    if side % 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a multiple of 32")
    return side


def whole_numbers(low: int, high: int) -> Any:
    """Return an argparse type for lists such as `10,20,50` of whole numbers in a range."""
    one = whole_number(low, high)
    return lambda text: tuple(dict.fromkeys(one(part) for part in text.split(",")))


def name_list(text: str) -> tuple[str, ...]:
    """Parse `a,b` into names."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise argparse.ArgumentTypeError("names nothing")
    return names


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Add --backend, --precision, --bundle and --threads."""
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="auto (measure and take the fastest), onnxruntime, openvino, tflite or torch",
    )
    parser.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS))
    add_bundle_option(parser)
    parser.add_argument("--threads", type=whole_number(1, 1024), metavar="N")


def add_bundle_option(parser: argparse.ArgumentParser) -> None:
    """Add --bundle."""
    parser.add_argument(
        "--bundle",
        metavar="NAME_OR_PATH",
        help="a shipped model, or a folder or zip file (default: default, or what a file needs)",
    )


def make_codec(args: argparse.Namespace) -> Codec:
    """Return the codec that the backend options ask for."""
    from edgecodec.codec import Codec

    return Codec(args.bundle, args.backend, args.precision, args.threads)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of a file before what is wrong with it."""
    try:
        yield
    except BitstreamError as exc:
        raise EdgeCodecError(f"{name}: {exc}") from exc


def show_numbers(numbers: Sequence[int]) -> str:
    """Return ascending numbers as `1-3, 7`, cut off after ten runs."""
    runs: list[list[int]] = []
    if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
        # A hostile file has half a million tiles, all of them damaged.
        runs, numbers = [[numbers[0], numbers[-1]]], ()
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:10]]
    return ", ".join([*parts, "..."] if len(runs) > 10 else parts)


def show_profile(profile: Profile) -> str:
    """Return `analysis 31.2 ms, entropy 2.1 ms, total 40.0 ms`."""
    parts = [f"{name} {1e3 * s:.1f} ms" for name, s in profile.seconds.items()]
    return ", ".join([*parts, f"total {1e3 * sum(profile.seconds.values()):.1f} ms"])


def refuse_overwriting(name: str, force: bool, source: str = "-") -> None:
    """Stop before work is done whose result could not be written, or would replace a file.

    Args:
        name: of the output.
        force: whether an existing file may go.
        source: the input, which may not.

    Raises:
        ConfigError: the file is there and `force` is not given, or it is the input; or its folder
            is missing or cannot be written.
    """
    from edgecodec.files import check_folder

    if name == "-":
        return
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"{name}: is a folder; give a file name")
    check_folder(path)
    if path.is_file() and not force:
        raise ConfigError(f"{name}: exists already; add --force to replace it")
    if path.is_file() and source != "-" and Path(source).exists() and path.samefile(source):
        raise ConfigError(f"{name}: is the input; give another name")


def tell(line: str) -> None:
    """Say on stderr what was done; where that is full or gone, it was done all the same."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def check_outputs(
    targets: Mapping[str, str | None], inputs: Iterable[str | Path | None] = ()
) -> None:
    """Stop before work is done whose result could not be written.

    Args:
        targets: what each option names, None where it is not given.
        inputs: what the command reads, and writes besides, which none of them may replace.

    Raises:
        ConfigError: the folder of one is missing, or it is one, or an input, or that of another.
    """
    taken = {os.path.realpath(name): str(name) for name in inputs if name}
    for option, target in targets.items():
        if not target:
            continue
        refuse_overwriting(target, force=True)
        place = target if target == "-" else os.path.realpath(target)
        if place in taken:
            raise ConfigError(f"{option} {target}: would replace {taken[place]}; give another name")
        taken[place] = f"that of {option}"


def write_json(target: str, value: Any) -> None:
    """Write JSON to a file whole or not at all; `-` is standard output."""
    from edgecodec.files import write_output

    write_output(target, (json.dumps(value, indent=1) + "\n").encode())
