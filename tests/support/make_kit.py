"""Make the conformance kit: golden files of a tiny model, with all that must come out of them.

    python -m tests.support.make_kit NEW_FOLDER

The kit is made once per version of the format. Made again it is another kit, and says nothing
about whether today's code still reads yesterday's files; `test_kit.py` fails where the committed
one no longer holds.

The model is small and untrained: principal components of the demo photo, with random residual
branches so that the int8 layers have something to compute.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.converters.convert import convert_checkpoint
from edgecodec.converters.sources.photos import demo_photo, read_photo
from edgecodec.device_tests.conformance.kit import BUNDLE, INDEX, digest_of
from edgecodec.device_tests.conformance.kit_pictures import kit_pictures, noise
from edgecodec.device_tests.conformance.matrix import same_bytes
from edgecodec.errors import ConversionError
from edgecodec.model.checkpoint import export_weights, save_checkpoint
from edgecodec.model.config import CodecConfig
from edgecodec.model.network import NeuralCodec, ResidualBlock
from edgecodec.training.initialisation import start_from_photos

CONFIG = CodecConfig(
    latent_channels=16,
    hyper_channels=8,
    fine_channels=16,
    fine_blocks=1,
    coarse_channels=16,
    coarse_blocks=1,
    hyper_analysis_channels=16,
    hyper_hidden=16,
    hyper_features=12,
    context_features=12,
    lambda_max=5.0,
)
TARGETS = ("onnx", "openvino", "tflite")
PRECISIONS = ("fp32", "fp16", "int8")
EXACT_BACKENDS = ("onnxruntime", "openvino", "tflite")
_SEED = 20
_BRANCH = 0.3
"""Gain of the random branches: enough to change every pixel, not enough to drown the picture."""
_HYPER = 8.0
"""Gain of the hyper-latents, which would otherwise hardly leave zero."""


KIT_TILE = 1536
"""Side of the tiles of files that are one tile: whatever the encoder's default becomes."""


@dataclass(frozen=True)
class Vector:
    """How a golden file is made.

    Attributes:
        picture: name in `kit_pictures`.
        quality: 1..100.
        tile: side of a tile in pixels.
        effort: of the encoder.
        metadata: `icc_profile`, `exif`, `xmp` as far as wanted.
        unknown_chunk: insert a chunk that decoders of this version do not know and must skip.
    """

    picture: str
    quality: int
    tile: int = KIT_TILE
    effort: int = 1
    metadata: dict[str, bytes] = field(default_factory=dict)
    unknown_chunk: bool = False


_ICC = noise(1, 200, 1, 7).tobytes()
_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
VECTORS = {
    "one": Vector("one", 50),
    "row": Vector("row", 80),
    "column": Vector("column", 80),
    "black": Vector("black", 1),
    "white": Vector("white", 100),
    "noise-low": Vector("noise", 1),
    "noise-high": Vector("noise", 100),
    "saturated": Vector("saturated", 95, tile=32),
    "checker": Vector("checker", 100),
    "bars": Vector("bars", 70, tile=64),
    "colours": Vector("colours", 10),
    "colours-high": Vector("colours", 99, tile=96),
    "grey": Vector("grey", 60),
    "grey-tiles": Vector("grey", 60, tile=32),
    "photo-low": Vector("photo", 1),
    "photo": Vector("photo", 60),
    "photo-tiles": Vector("photo", 60, tile=64),
    "photo-high": Vector("photo", 100, tile=32),
    "photo-effort": Vector("photo", 40, effort=9),
    "icc": Vector("one", 30, metadata={"icc_profile": _ICC}),
    "exif": Vector("row", 30, metadata={"exif": _EXIF}),
    "xmp": Vector("column", 30, metadata={"xmp": _XMP}),
    "everything": Vector(
        "bars", 30, tile=32, metadata={"icc_profile": _ICC, "exif": _EXIF, "xmp": _XMP}
    ),
    "unknown-chunk": Vector("one", 20, unknown_chunk=True),
}


@torch.no_grad()
def tiny_codec(photo: UInt8Array) -> NeuralCodec:
    """Return the model of the kit: components of `photo`, random branches, random hyper nets."""
    torch.manual_seed(_SEED)
    codec = NeuralCodec(CONFIG)
    start_from_photos(codec, [photo], _SEED)
    for net in (codec.g_a, codec.g_s):
        for block in net:
            if isinstance(block, ResidualBlock):
                for layer in (block.leave, block.contract):
                    torch.nn.init.normal_(layer.weight, std=_BRANCH * layer.in_channels**-0.5)
    codec.h_a.get_parameter(f"{len(codec.h_a) - 1}.weight").mul_(_HYPER)
    return codec.eval()


def make_bundle(path: Path) -> None:
    """Convert the tiny model to every target and precision, as a zip file.

    Raises:
        ConversionError: see `convert_checkpoint`.
    """
    photo = demo_photo()
    if photo is None:
        raise ConversionError("the demo photo, from which the tiny model is made, is missing")
    codec = tiny_codec(read_photo(photo))
    with tempfile.TemporaryDirectory() as scratch:
        raw, release = Path(scratch) / "raw.pt", Path(scratch) / "release.pt"
        save_checkpoint(raw, {"config": CONFIG.to_dict(), "weights": codec.state_dict()})
        export_weights(raw, release)
        convert_checkpoint(
            release,
            path,
            targets=TARGETS,
            precisions=PRECISIONS,
            calibration=None,
            name="conformance-kit",
            progress=print,
            max_loss=1e6,  # an untrained model; what counts is that runtimes agree
        )


def _insert_chunk(data: bytes) -> bytes:
    """Insert a chunk of unknown, skippable type behind the header."""
    head = 8 + 8 + 18 + 4
    body = struct.pack("<4sI", b"kitX", 5) + b"skip!"
    return data[:head] + body + struct.pack("<I", zlib.crc32(body)) + data[head:]


def _encode(codec: Codec, vector: Vector, picture: UInt8Array) -> bytes:
    image = Image.fromarray(picture)
    image.info.update(vector.metadata)
    data = codec.encode(image, vector.quality, effort=vector.effort, tile=vector.tile)
    return _insert_chunk(data) if vector.unknown_chunk else data


def make_kit(folder: Path) -> None:
    """Write bundle, files, reference pixels and index into an empty folder.

    Raises:
        ConversionError: runtimes disagree about what must be exact.
    """
    make_bundle(folder / BUNDLE)
    index: dict[str, dict[str, object]] = {}
    with Bundle(folder / BUNDLE) as bundle, Codec(bundle, "torch", "fp32") as reference:
        pictures = kit_pictures(bundle.golden()["x"])
        exact = [Codec(bundle, name, "int8", threads=1) for name in EXACT_BACKENDS]
        for name, vector in VECTORS.items():
            data = _encode(reference, vector, pictures[vector.picture])
            (folder / f"{name}.ecx").write_bytes(data)
            shown = reference.decode(data)
            shown.info.clear()
            shown.save(folder / f"{name}.png", optimize=True)
            pixels = [np.asarray(codec.decode(data)) for codec in exact]
            if any(not np.array_equal(pixels[0], other) for other in pixels[1:]):
                raise ConversionError(f"{name}: int8 pixels differ among {EXACT_BACKENDS}")
            if not same_bytes([reference.coder], data):
                raise ConversionError(f"{name}: its latents do not make its bytes again")
            index[name] = {
                "sha256": digest_of(data),
                "latents": digest_of(reference.decode_latents(data)),
                "int8_pixels": digest_of(pixels[0]),
                "whole_file_reproduced": not vector.unknown_chunk,
            }
        for codec in exact:
            codec.close()
        tables_id = bundle.manifest.tables_id
    content = {"format": 1, "tables_id": tables_id, "files": index}
    (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Make a kit in a folder that is not there yet."""
    parser = argparse.ArgumentParser(description="Make a conformance kit.")
    parser.add_argument("out", type=Path, metavar="NEW_FOLDER")
    out: Path = parser.parse_args().out.resolve()
    if out.exists():
        parser.error(f"{out}: exists; a kit is not made anew lightly, remove it first")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".kit-") as scratch:
        folder = Path(scratch) / "kit"
        folder.mkdir()
        make_kit(folder)
        folder.rename(out)
    total = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {total / 1000:.0f} kB")  # noqa: T201 - a command's own voice


if __name__ == "__main__":
    main()
