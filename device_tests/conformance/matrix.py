"""Do all backends of this machine agree? Files of each are decoded on every other.

    edgecodec device-test IMAGES...

Latents must be identical, whoever made the file and whoever reads it, and so must pixels wherever
the int8 synthesis is used; pixels of float graphs may differ by one level. Both entropy coders, C
and NumPy, must produce and read the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.coding.layout import Layout
from edgecodec.device_tests.measuring.contenders import open_stages
from edgecodec.errors import EdgeCodecError
from edgecodec.format.coder import LatentCoder, core_available
from edgecodec.format.container import read_container
from edgecodec.format.strides import HYPER_STRIDE
from edgecodec.format.tables import CELL_ORDER, SYMBOL_LIMIT
from edgecodec.runtimes.base import STAGES, StageName
from edgecodec.runtimes.device.probe import Device, probe_device
from edgecodec.runtimes.registry import backend_names, get_backend
from edgecodec.runtimes.selection.golden import TOLERANCES
from edgecodec.text_table import align

ALLOWED_LEVELS = {p: TOLERANCES[p].levels for p in ("fp32", "fp16", "bf16")} | {"int8": 0}
"""How far pixels may be from the first decoder's: none at all where the synthesis is exact."""
UInt8Array = npt.NDArray[np.uint8]
Int16Array = npt.NDArray[np.int16]
Shown = npt.NDArray[np.int16]
"""Pixels, or differences of them."""


@dataclass(frozen=True)
class Pair:
    """Files made on one backend, read on another.

    Attributes:
        encoder: backend and precision that made the files.
        decoder: backend and precision that read them.
        files: how many.
        latents: values compared.
        latent_mismatches: values that differ from what the NumPy coder reads, or the C core where
            that alone was wanted; must be 0.
        max_pixel_difference: in levels, from the picture that the first decoder shows which the
            decoder's precision is compared with: int8 with int8, all others with float32.
        differing_pixels: share of pixel values that differ at all.
        allowed: how many levels a pixel may differ by.
    """

    encoder: str
    decoder: str
    files: int
    latents: int
    latent_mismatches: int
    max_pixel_difference: int
    differing_pixels: float
    allowed: int = ALLOWED_LEVELS["fp32"]

    @property
    def passed(self) -> bool:
        """No latent differs and no pixel by more than is allowed."""
        return self.latent_mismatches == 0 and self.max_pixel_difference <= self.allowed

    @property
    def cell(self) -> str:
        """Both differences in short; `!` marks what must not be."""
        return f"{self.latent_mismatches}/{self.max_pixel_difference}{'' if self.passed else '!'}"


@dataclass
class ConformanceReport:
    """What was found.

    Attributes:
        images: names of the pictures.
        qualities: qualities they were coded at.
        device: machine and versions of what ran on it.
        date: when, in UTC.
        pairs: every backend and precision against every other.
        skipped: backends that are not here or were refused, by stage, with the reason.
        coder_files: different files that both entropy coders wrote and read alike; None where one
            of them was not used.
        coders: what read and wrote substreams.
        coder_mismatches: files where they did not.
        golden_mismatches: latents of the bundle's golden file that differ from those the
            converting machine got; must be 0.
    """

    images: list[str]
    qualities: list[int]
    device: Device = field(default_factory=probe_device)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M", time.gmtime()))
    pairs: list[Pair] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    coder_files: int | None = None
    coders: list[str] = field(default_factory=list)
    coder_mismatches: int = 0
    golden_mismatches: int = 0

    @property
    def passed(self) -> bool:
        """Everything that could be compared agrees, and something could."""
        agree = all(p.passed for p in self.pairs)
        return bool(self.pairs) and agree and not self.coder_mismatches + self.golden_mismatches

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {**asdict(self), "device": self.device.to_dict(), "passed": self.passed}

    def text(self) -> str:
        """Return the matrix as a table."""
        packages = ", ".join(f"{name} {v}" for name, v in self.device.packages.items())
        lines = [f"{self.date} UTC", self.device.text(), packages]
        lines += [f"{len(self.images)} images, qualities {', '.join(map(str, self.qualities))}"]
        lines += self._matrix() if self.pairs else ["no backend works"]
        lines += [f"{name}: not used ({reason})" for name, reason in self.skipped.items()]
        if self.coder_files is None:
            lines.append(f"entropy coder: {' and '.join(self.coders)} alone")
        else:
            lines.append(
                f"entropy coders: {self.coder_files} files by C and NumPy, "
                f"{self.coder_mismatches} differ"
            )
        lines.append(f"golden file: {self.golden_mismatches} latents differ")
        lines.append("passed" if self.passed else "FAILED")
        return "\n".join(lines)

    def _matrix(self) -> list[str]:
        """Return a row per encoder, a column per decoder, and what each column may have."""
        encoders = dict.fromkeys(p.encoder for p in self.pairs)
        names = list(dict.fromkeys((*encoders, *(p.decoder for p in self.pairs))))
        cells = {(p.encoder, p.decoder): p.cell for p in self.pairs}
        allowed = {p.decoder: f"0/{p.allowed}" for p in self.pairs}
        first = self.pairs[0]
        numbers = [str(n) for n in range(1, len(names) + 1)]
        rows = [("made on, read on", *numbers)]
        for number, name in zip(numbers, names, strict=True):
            rows.append((f"{number} {name}", *(cells.get((name, other), "-") for other in names)))
        rows.append(("allowed", *(allowed.get(name, "-") for name in names)))
        return [
            f"each cell: {first.files} files, {first.latents} latents; latents that differ / "
            "largest difference of a pixel in levels",
            *align(rows),
        ]


class _Tally:
    """Sums over the files of one pair."""

    def __init__(self) -> None:
        self.files = self.latents = self.mismatches = self.worst = self.differing = self.values = 0

    def add(self, latents: Int16Array, expected: Int16Array, shown: Shown) -> None:
        self.files += 1
        self.latents += latents.size
        self.mismatches += int((latents != expected).sum())
        self.worst = max(self.worst, int(shown.max(initial=0)))
        self.differing += int((shown > 0).sum())
        self.values += shown.size

    def pair(self, encoder: str, decoder: str, allowed: int) -> Pair:
        share = self.differing / max(1, self.values)
        return Pair(
            encoder, decoder, self.files, self.latents, self.mismatches, self.worst, share, allowed
        )


@dataclass(frozen=True)
class OpenBackends:
    """What works here, by backend and precision such as `onnxruntime fp32`.

    Attributes:
        encoders: codecs whose analysis works.
        decoders: codecs whose synthesis works; a codec may be in both.
        skipped: why others do not, by backend, precision and stage.
    """

    encoders: dict[str, Codec]
    decoders: dict[str, Codec]
    skipped: dict[str, str]


def open_backends(
    bundle: Bundle,
    stack: ExitStack,
    names: Sequence[str] | None = None,
    threads: int | None = None,
    precisions: Sequence[str] = ("fp32",),
    stages: Sequence[StageName] = STAGES,
) -> OpenBackends:
    """Open every backend in every precision that the bundle holds for it.

    Args:
        bundle: the model.
        stack: closes the codecs.
        names: backends; None takes all there are.
        threads: for the runtimes; None leaves it to them.
        precisions: those wanted.
        stages: those wanted.
    """
    found = OpenBackends({}, {}, {})
    for name in names or backend_names():
        target = get_backend(name).target
        held = {e.precision for e in bundle.manifest.artefacts if e.target == target}
        for precision in (p for p in precisions if p in held or p == "fp32"):
            codec = stack.enter_context(Codec(bundle, name, precision, threads))
            label, problems = f"{name} {precision}", open_stages(codec, stages)
            for stage in stages:
                if stage in problems:
                    found.skipped[f"{label} {stage}"] = problems[stage]
                else:
                    working = found.encoders if stage == "analysis" else found.decoders
                    working[label] = codec
    return found


def check_conformance(
    images: Mapping[str, UInt8Array],
    qualities: Sequence[int],
    *,
    bundle: str | Path | Bundle | None = None,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
    tile: int = 1536,
    threads: int | None = None,
    twin: bool = True,
) -> ConformanceReport:
    """Encode on every backend, decode on every backend, compare.

    Args:
        images: pictures by name, (H, W, 3) or (H, W) uint8.
        qualities: qualities to code each at.
        bundle: the model; None takes the shipped one.
        backends: names; None takes all there are.
        precisions: those to take, as far as the bundle has them.
        tile: side of a tile in pixels.
        threads: for the runtimes; None leaves it to them.
        twin: let the NumPy coder read and write every file, too: seconds for each megapixel.
    """
    with ExitStack() as stack:
        opened = bundle
        if not isinstance(opened, Bundle):
            opened = stack.enter_context(Bundle(opened))
        here = open_backends(opened, stack, backends, threads, precisions)
        report = ConformanceReport(list(images), list(qualities), skipped=here.skipped)
        report.golden_mismatches = _golden_mismatches(opened)
        kind = "numpy" if twin else "auto"
        slow = stack.enter_context(Codec(opened, entropy_coder=kind))
        coders = [slow.coder]
        if twin and core_available():
            coders.append(LatentCoder(opened.tables(), "c"))
            report.coder_files = 0
        report.coders = [coder.implementation for coder in coders]
        tallies = {(a, b): _Tally() for a in here.encoders for b in here.decoders}
        for pixels in images.values():
            for quality in qualities:
                _exchange(pixels, quality, tile, here, slow, coders, tallies, report)
    report.pairs = [
        tally.pair(a, b, ALLOWED_LEVELS[here.decoders[b].precision])
        for (a, b), tally in tallies.items()
    ]
    return report


def _golden_mismatches(bundle: Bundle) -> int:
    """Decode the file that the converting machine made; every machine must get its latents."""
    golden = bundle.golden()
    if "file" not in golden:
        return 0
    data, expected = golden["file"].tobytes(), golden["y_hat"]
    with Codec(bundle) as codec:
        return int((codec.decode_latents(data) != expected).sum())


def _exchange(
    pixels: UInt8Array,
    quality: int,
    tile: int,
    here: OpenBackends,
    slow: Codec,
    coders: Sequence[LatentCoder],
    tallies: dict[tuple[str, str], _Tally],
    report: ConformanceReport,
) -> None:
    """Encode a picture on every backend and decode each file on every other."""
    made = {name: codec.encode(pixels, quality, tile=tile) for name, codec in here.encoders.items()}
    for data in dict.fromkeys(made.values()):  # many backends make the same file
        expected = slow.decode_latents(data)
        found = {name: codec.decode_latents(data) for name, codec in here.decoders.items()}
        shown = _differences(here.decoders, data)
        for encoder in (name for name, own in made.items() if own == data):
            for decoder in here.decoders:
                tallies[encoder, decoder].add(found[decoder], expected, shown[decoder])
        if report.coder_files is not None:
            report.coder_files += 1
            report.coder_mismatches += not same_bytes(coders, data)


def _differences(codecs: dict[str, Codec], data: bytes) -> dict[str, Shown]:
    """Return how far each decoder's pixels are from those of the first of its kind, fp32 first."""
    references: dict[str, Shown] = {}
    differences = {}
    for name, codec in sorted(codecs.items(), key=lambda item: item[1].precision != "fp32"):
        shown = np.asarray(codec.decode(data)).astype(np.int16)
        kind = "int8" if codec.precision == "int8" else "float"
        differences[name] = np.abs(shown - references.setdefault(kind, shown))
    return differences


def same_bytes(coders: Sequence[LatentCoder], data: bytes) -> bool:
    """Say whether each coder turns the symbols of a file back into exactly its substreams."""
    file = read_container(data)
    header = file.header
    tiles = Layout(header.height, header.width, header.tile).tiles()
    for tile, substream in zip(tiles, file.substreams, strict=True):
        if substream is None:
            return False
        for coder in coders:
            try:
                cells = tile.height // HYPER_STRIDE, tile.width // HYPER_STRIDE
                z, y_hat = coder.decode(header.quality, *cells, substream)
                s, index = _symbols(coder, header.quality, z, y_hat)
                if coder.encode(header.quality, z, index, s) != substream:
                    return False
            except EdgeCodecError:
                return False
    return True


def _symbols(
    coder: LatentCoder,
    quality: int,
    z: Int16Array,
    y_hat: Int16Array,
) -> tuple[Int16Array, npt.NDArray[np.uint8]]:
    """Undo `y_hat = (s * step + 32 >> 6) + mu`; return s and scale index.

    Exact because a step is more than one unit. mu of a latent depends on the symbols of its cell
    that were coded before it, so they are found in that order.
    """
    step = coder.tables.step_y[quality - 1]
    s = np.zeros(y_hat.shape, np.int16)
    for dy, dx in CELL_ORDER:
        mu, _ = coder.predict(quality, z, s)
        here = (slice(dy, None, 2), slice(dx, None, 2))
        residual = y_hat[here].astype(np.float64) - mu[here]
        s[here] = np.rint(residual * 64.0 / step).clip(-SYMBOL_LIMIT, SYMBOL_LIMIT)
    return s, coder.predict(quality, z, s)[1]
