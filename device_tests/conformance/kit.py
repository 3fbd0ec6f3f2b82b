"""Golden files, made once: what this version reads in them must be what the first one wrote.

    edgecodec device-test

The kit is a tiny model of its own, files made with it, and for each file its hash, that of its
latents, that of the pixels of the exact int8 synthesis, and the pixels of the float32 reference.
It depends on no model that ships, and needs nothing beside the base install.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgecodec.bundle.manifest import PRECISIONS
from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.device_tests.conformance.kit_pictures import UInt8Array, kit_pictures
from edgecodec.device_tests.conformance.matrix import ALLOWED_LEVELS, open_backends, same_bytes
from edgecodec.errors import EdgeCodecError
from edgecodec.format.coder import core_available
from edgecodec.format.container import read_container, write_container
from edgecodec.text_table import align

KIT = Path(__file__).parents[1] / "kit"
BUNDLE = "model.zip"
INDEX = "kit.json"
BREAK = "format break"


def digest_of(value: bytes | npt.NDArray[Any]) -> str:
    """Return the SHA-256 of bytes; or of an array's type, shape and little-endian C-order values.

    The latter is over `<i2 24x3x5:` and then the values, with the type as NumPy spells it.
    """
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"))
        head = f"{array.dtype.str} {'x'.join(map(str, array.shape))}:"
        value = head.encode() + array.tobytes()
    return hashlib.sha256(value).hexdigest()


def kit_model(folder: Path = KIT) -> Path:
    """Return the path of the kit's bundle."""
    return folder / BUNDLE


def open_pictures() -> dict[str, UInt8Array]:
    """Return the pictures that the golden files were made of, by name.

    Raises:
        BundleError: the kit's model is damaged.
    """
    with Bundle(kit_model()) as bundle:
        return kit_pictures(bundle.golden()["x"])


@dataclass
class KitReport:
    """What was found.

    Attributes:
        files: golden files read.
        coders: entropy coders that read them.
        worst: largest difference of a pixel from the reference in levels, by backend and
            precision; 0 for int8, whose pixels are compared by hash.
        skipped: backends that are not here or were refused, with the reason.
        problems: one line each.
    """

    files: int = 0
    coders: list[str] = field(default_factory=list)
    worst: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing differs, and something was compared."""
        return bool(self.files and self.worst) and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {**asdict(self), "passed": self.passed}

    def text(self) -> str:
        """Return a line per backend, and the problems."""
        coders = " and ".join(self.coders)
        lines = [f"conformance kit: {self.files} golden files, entropy coders {coders}"]
        rows = []
        for name, worst in self.worst.items():
            allowed = ALLOWED_LEVELS[name.split()[-1]]
            what = f"pixels within {worst} levels, allowed {allowed}" if allowed else "exact"
            rows.append((name, what))
        lines += align(rows, left=(0, 1), indent="  ")
        lines += [f"  {name}: not used ({reason})" for name, reason in self.skipped.items()]
        lines += self.problems
        lines.append("kit passed" if self.passed else "kit FAILED")
        return "\n".join(lines)


def check_kit(
    folder: Path = KIT, backends: Sequence[str] | None = None, threads: int | None = None
) -> KitReport:
    """Read every golden file with every coder, backend and precision that works here.

    Args:
        folder: the kit.
        backends: names; None takes all there are.
        threads: for the runtimes; None leaves it to them.

    Raises:
        BundleError: the kit's model is damaged.
        EdgeCodecError: its index cannot be read.
    """
    try:
        files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as exc:
        raise EdgeCodecError(f"{folder}: no conformance kit ({exc}); install it again") from exc
    report = KitReport()
    with ExitStack() as stack:
        bundle = stack.enter_context(Bundle(kit_model(folder)))
        here = open_backends(bundle, stack, backends, threads, PRECISIONS, ("synthesis",))
        report.skipped = here.skipped
        report.worst = dict.fromkeys(here.decoders, 0)
        report.coders = ["c", "numpy"] if core_available() else ["numpy"]
        readers = [
            stack.enter_context(Codec(bundle, entropy_coder=coder)) for coder in report.coders
        ]
        _check_golden_encoding(bundle, readers, report)
        for name, expected in files.items():
            report.files += 1
            try:
                data = (folder / f"{name}.ecx").read_bytes()
                _check_bytes(name, data, expected, readers, report)
                _check_pixels(name, data, expected, here.decoders, report, folder / f"{name}.png")
            except (EdgeCodecError, OSError) as exc:
                report.problems.append(f"{BREAK}: {name}.ecx: {exc}")
    return report


def _check_golden_encoding(bundle: Bundle, readers: Sequence[Codec], report: KitReport) -> None:
    """Compress the analysis that the bundle holds; the bytes must be those it holds, too."""
    golden = bundle.golden()
    substream = read_container(golden["file"].tobytes()).substreams[0]
    for codec in readers:
        made = codec.coder.compress(int(golden["quality"]), golden["y"], golden["z"])
        if made != substream:
            coder = codec.coder.implementation
            report.problems.append(f"{BREAK}: coder {coder} makes other bytes of the same analysis")


def _check_bytes(
    name: str, data: bytes, expected: dict[str, Any], readers: Sequence[Codec], report: KitReport
) -> None:
    """Compare file, latents, and the file that the latents make."""
    if digest_of(data) != expected["sha256"]:
        report.problems.append(f"{BREAK}: {name}.ecx is not the file that was made")
    for codec in readers:
        if digest_of(codec.decode_latents(data)) != expected["latents"]:
            coder = codec.coder.implementation
            report.problems.append(f"{BREAK}: {name}.ecx: other latents, coder {coder}")
    if not same_bytes([codec.coder for codec in readers], data):
        report.problems.append(f"{BREAK}: {name}.ecx: its latents make other bytes")
    file = read_container(data)
    again = write_container(file.header, [s or b"" for s in file.substreams], file.metadata)
    if (again == data) != expected["whole_file_reproduced"]:
        report.problems.append(f"{BREAK}: {name}.ecx: its content makes another file")


def _check_pixels(
    name: str,
    data: bytes,
    expected: dict[str, Any],
    codecs: dict[str, Codec],
    report: KitReport,
    reference: Path,
) -> None:
    with Image.open(reference) as image:
        shown_then = np.asarray(image).astype(np.int16)
    for label, codec in codecs.items():
        shown = np.asarray(codec.decode(data))
        if codec.precision == "int8":
            if digest_of(shown) != expected["int8_pixels"]:
                report.problems.append(f"{BREAK}: {name}.ecx: other int8 pixels, {label}")
            continue
        if shown.shape != shown_then.shape:
            report.problems.append(f"{BREAK}: {name}.ecx: other size or mode, {label}")
            continue
        worst = int(np.abs(shown - shown_then).max())
        report.worst[label] = max(report.worst[label], worst)
        if worst > ALLOWED_LEVELS[codec.precision]:
            report.problems.append(
                f"{name}.ecx: pixels off by {worst} levels, {label}, "
                f"allowed {ALLOWED_LEVELS[codec.precision]}"
            )
