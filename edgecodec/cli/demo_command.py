"""`edgecodec demo`: the whole story on the photo that ships with the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecodec.bundle.embedded import default_bundle_path
from edgecodec.errors import ConfigError

if TYPE_CHECKING:
    from edgecodec.bundle.reading import Bundle

DATA = default_bundle_path().parent
CHECKPOINT = DATA / "default.pt"
TARGETS = ("onnx", "openvino", "tflite")
QUALITIES = (20, 60, 90)


def add_parser(sub: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = sub.add_parser(
        "demo",
        help="convert, select, encode, decode, on a photo that ships with the package",
        description=(
            "Convert the trained checkpoint to the three targets, measure which backend is "
            "fastest here, then encode and decode a photo. An installation without the "
            "checkpoint, which wheels leave out, goes on with the shipped bundle."
        ),
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="keep files and bundle here")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tell the story."""
    if args.output:
        from edgecodec.files import check_folder

        output = Path(args.output)
        check_folder(output)
        if output.exists() and not output.is_dir():
            raise ConfigError(f"{output}: is a file; give a folder")
        output.mkdir(exist_ok=True)
        return _story(output)
    with tempfile.TemporaryDirectory(prefix="edgecodec-demo-") as folder:
        return _story(Path(folder))


def _story(folder: Path) -> int:
    from edgecodec.bundle.reading import Bundle
    from edgecodec.runtimes.selection.report import devices_report

    with Bundle(_convert(folder)) as bundle:
        print("\n2. Which backend is fastest here?")
        print(devices_report(bundle, None).text())
        print("\n3. A photo through all of it")
        _photo(bundle, folder)
    return 0


def _convert(folder: Path) -> Path:
    """Return the bundle to go on with: converted here, or shipped where no checkpoint is."""
    if not CHECKPOINT.is_file():
        print("1. Taking the shipped bundle: the checkpoint it was converted from is no part of")
        print("   this installation (it is in the repository, edgecodec/data/default.pt)")
        return default_bundle_path()
    from edgecodec.converters.convert import convert_checkpoint
    from edgecodec.converters.writers.targets import TARGETS as TARGET_PLUGINS
    from edgecodec.converters.writers.targets import require

    for target in ("torch", *TARGETS):
        require(TARGET_PLUGINS[target].requires)
    print(f"1. Converting the trained checkpoint to {', '.join(TARGETS)}")
    report = convert_checkpoint(
        CHECKPOINT,
        folder / "demo.bundle",
        targets=TARGETS,
        precisions=("fp32",),
        calibration=None,
        name="demo",
        force=True,
        progress=lambda line: print(f"   {line}", file=sys.stderr, flush=True),
    )
    print(report.table())
    return folder / "demo.bundle"


def _photo(bundle: Bundle, folder: Path) -> None:
    import numpy as np
    from PIL import Image

    from edgecodec.cli.common import show_profile
    from edgecodec.codec import Codec
    from edgecodec.coding.image_files import image_bytes
    from edgecodec.coding.profiling import Profile
    from edgecodec.evaluation.metrics import ms_ssim, psnr_rgb
    from edgecodec.files import write_output

    with Image.open(DATA / "demo.png") as image:
        original = np.asarray(image.convert("RGB"))
    height, width = original.shape[:2]
    with Codec(bundle) as codec:
        codec.decode(codec.encode(original))  # load and warm up, so that the times below are steady
        for quality in QUALITIES:
            coding, decoding = Profile(), Profile()
            data = codec.encode(original, quality, profile=coding)
            decoded = codec.decode(data, profile=decoding)
            again = np.asarray(decoded)
            write_output(str(folder / f"demo.q{quality}.ecx"), data)
            write_output(str(folder / f"demo.q{quality}.png"), image_bytes(decoded, "x.png"))
            print(
                f"   quality {quality}: {width}x{height}, {original.nbytes} -> {len(data)} bytes "
                f"({8 * len(data) / (width * height):.3f} bpp), "
                f"PSNR {psnr_rgb(original, again):.2f} dB, MS-SSIM {ms_ssim(original, again):.4f}"
            )
            used = codec.choice("analysis")
            print(f"      encode on {used.backend}: {show_profile(coding)}")
            used = codec.choice("synthesis")
            print(f"      decode on {used.backend}: {show_profile(decoding)}")
