"""Do all backends of this machine agree? Files of each are decoded on every other.

    edgecodec device-test IMAGES...

Latents must be identical, whoever made the file and whoever reads it; pixels of float graphs may
differ by one level. Both entropy coders, C and NumPy, must produce and read the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.bundle import Bundle
from edgecodec.classical import load_rgb
from edgecodec.codec import Codec
from edgecodec.container import HYPER_STRIDE, read_container
from edgecodec.entropy import LatentCoder, core_available
from edgecodec.errors import BackendError, BundleError, EdgeCodecError
from edgecodec.runtimes.registry import backend_names
from edgecodec.tables import CELL_ORDER, SYMBOL_LIMIT

PIXEL_TOLERANCE = 1
UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """Files made on one backend, read on another.

    Attributes:
        encoder: backend that made the files.
        decoder: backend that read them.
        files: how many.
        latents: values compared.
        latent_mismatches: values that differ from the encoder's own; must be 0.
        max_pixel_difference: in levels, from the picture the encoder's backend decodes.
        differing_pixels: share of pixel values that differ at all.
    """

    encoder: str
    decoder: str
    files: int
    latents: int
    latent_mismatches: int
    max_pixel_difference: int
    differing_pixels: float

    @property
    def passed(self) -> bool:
        """No latent differs and no pixel by more than a level."""
        return self.latent_mismatches == 0 and self.max_pixel_difference <= PIXEL_TOLERANCE


@dataclass
class ConformanceReport:
    """What was found.

    Attributes:
        images: names of the pictures.
        qualities: qualities they were coded at.
        pairs: every backend against every other.
        skipped: backends that are not here, with the reason.
        coder_files: files that both entropy coders wrote and read alike; None without a C core.
        coder_mismatches: files where they did not.
        golden_mismatches: latents of the bundle's golden file that differ from those the
            converting machine got; must be 0.
    """

    images: list[str]
    qualities: list[int]
    pairs: list[Pair] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    coder_files: int | None = None
    coder_mismatches: int = 0
    golden_mismatches: int = 0

    @property
    def passed(self) -> bool:
        """Everything that could be compared agrees, and something could."""
        agree = all(p.passed for p in self.pairs)
        return bool(self.pairs) and agree and not self.coder_mismatches + self.golden_mismatches

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {**asdict(self), "passed": self.passed}

    def text(self) -> str:
        """Return the matrix as a table."""
        lines = [
            f"{len(self.images)} images, qualities {', '.join(map(str, self.qualities))}",
            f"{'made on':<14}{'read on':<14}{'files':>6}{'latents that differ':>22}"
            f"{'worst pixel':>13}{'pixels that differ':>20}",
        ]
        lines += [
            f"{p.encoder:<14}{p.decoder:<14}{p.files:>6}{p.latent_mismatches:>12} of {p.latents:<9}"
            f"{p.max_pixel_difference:>10}{100 * p.differing_pixels:>18.4f} %"
            + ("" if p.passed else "  FAILED")
            for p in self.pairs
        ]
        lines += [f"{name}: not here ({reason})" for name, reason in self.skipped.items()]
        if self.coder_files is None:
            lines.append("the C core is not built: the NumPy coder alone was used")
        else:
            lines.append(
                f"entropy coders: {self.coder_files} files by C and NumPy, "
                f"{self.coder_mismatches} differ"
            )
        lines.append(f"golden file: {self.golden_mismatches} latents differ")
        lines.append("passed" if self.passed else "FAILED")
        return "\n".join(lines)


class _Tally:
    """Sums over the files of one pair."""

    def __init__(self) -> None:
        self.files = self.latents = self.mismatches = self.worst = self.differing = self.values = 0

    def add(
        self,
        latents: npt.NDArray[np.int16],
        expected: npt.NDArray[np.int16],
        pixels: UInt8Array,
        reference: UInt8Array,
    ) -> None:
        difference = np.abs(pixels.astype(np.int16) - reference)
        self.files += 1
        self.latents += latents.size
        self.mismatches += int((latents != expected).sum())
        self.worst = max(self.worst, int(difference.max()))
        self.differing += int((difference > 0).sum())
        self.values += difference.size

    def pair(self, encoder: str, decoder: str) -> Pair:
        return Pair(
            encoder,
            decoder,
            self.files,
            self.latents,
            self.mismatches,
            self.worst,
            self.differing / max(1, self.values),
        )


def open_backends(
    bundle: Bundle, names: Sequence[str] | None = None, threads: int | None = None
) -> tuple[dict[str, Codec], dict[str, str]]:
    """Return a codec per backend that works here, and why the others do not."""
    codecs, skipped = {}, {}
    for name in names or backend_names():
        codec = Codec(bundle, name, "fp32", threads)
        try:
            codec.choice("analysis")
            codec.choice("synthesis")
        except (BackendError, BundleError) as exc:
            codec.close()
            skipped[name] = str(exc)
        else:
            codecs[name] = codec
    return codecs, skipped


def check_conformance(
    images: Sequence[Path],
    qualities: Sequence[int],
    *,
    bundle: str | Path | Bundle | None = None,
    backends: Sequence[str] | None = None,
    tile: int = 1536,
    threads: int | None = None,
) -> ConformanceReport:
    """Encode on every backend, decode on every backend, compare.

    Args:
        images: pictures.
        qualities: qualities to code each at.
        bundle: the model; None takes the shipped one.
        backends: names; None takes all there are.
        tile: side of a tile in pixels.
        threads: for the runtimes; None leaves it to them.
    """
    pictures = [load_rgb(path) for path in images]  # before the long part, which they could spoil
    with ExitStack() as stack:
        opened = bundle
        if not isinstance(opened, Bundle):
            opened = stack.enter_context(Bundle(opened))
        codecs, skipped = open_backends(opened, backends, threads)
        for codec in codecs.values():
            stack.enter_context(codec)
        report = ConformanceReport([p.name for p in images], list(qualities), skipped=skipped)
        report.golden_mismatches = _golden_mismatches(opened)
        slow = stack.enter_context(Codec(opened, entropy_coder="numpy"))
        coders = [slow.coder]
        if core_available():
            coders.append(LatentCoder(opened.tables(), "c"))
            report.coder_files = 0
        tallies = {(a, b): _Tally() for a in codecs for b in codecs}
        for pixels in pictures:
            for quality in qualities:
                _exchange(pixels, quality, tile, codecs, slow, coders, tallies, report)
    report.pairs = [tally.pair(a, b) for (a, b), tally in tallies.items()]
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
    codecs: dict[str, Codec],
    slow: Codec,
    coders: Sequence[LatentCoder],
    tallies: dict[tuple[str, str], _Tally],
    report: ConformanceReport,
) -> None:
    """Encode a picture on every backend and decode each file on every other."""
    for made_on, encoder in codecs.items():
        data = encoder.encode(pixels, quality, tile=tile)
        expected = slow.decode_latents(data)
        if report.coder_files is not None:
            report.coder_files += 1
            report.coder_mismatches += not _same_bytes(coders, data)
        reference = np.asarray(encoder.decode(data))
        for read_on, decoder in codecs.items():
            tallies[made_on, read_on].add(
                decoder.decode_latents(data),
                expected,
                np.asarray(decoder.decode(data)),
                reference,
            )


def _same_bytes(coders: Sequence[LatentCoder], data: bytes) -> bool:
    """Say whether each coder turns the symbols of a file back into exactly its substreams."""
    file = read_container(data)
    quality = file.header.quality
    for tile, substream in zip(file.header.tiles(), file.substreams, strict=True):
        if substream is None:
            return False
        for coder in coders:
            try:
                z, y_hat = coder.decode(
                    quality, tile.height // HYPER_STRIDE, tile.width // HYPER_STRIDE, substream
                )
                s, index = _symbols(coder, quality, z, y_hat)
                if coder.encode(quality, z, index, s) != substream:
                    return False
            except EdgeCodecError:
                return False
    return True


def _symbols(
    coder: LatentCoder,
    quality: int,
    z: npt.NDArray[np.int16],
    y_hat: npt.NDArray[np.int16],
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
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
