"""Fuzz what reads `.ecx` files: `info`, `decode_latents`, `decode` and writing the picture.

    nice python -m tests.fuzzing.files --executions 500000 --state DIR

Files are taken apart into chunks, changed, and put together again with lengths, index and checksums
that are right or, now and then, wrong. Pixels come from a network of a few hundred weights.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from edgecodec.cli.info_command import describe
from edgecodec.codec import Codec
from edgecodec.coding.image_files import image_bytes
from edgecodec.errors import BitstreamError, ConfigError
from edgecodec.format.container import MAGIC
from tests.fuzzing.campaign import Outcome, Target, main
from tests.support.streams import mutated
from tests.support.tiny_codec import write_tiny_codec

KINDS = (b"HEAD", b"ICCP", b"EXIF", b"XMP ", b"TIDX", b"TILE", b"note", b"Crit", b"\xff\0\0\0")
EDGES = (0, 1, 2, 31, 32, 33, 64, 255, 256, 4095, 4096, 4097, 8191, 8192, 65534, 65535)
FORMATS = (".png", ".jpg", ".webp", ".tiff", ".bmp")
PIXELS_MOST = 1 << 18
"""Pictures beyond this are not shown, only their latents: time is for the unusual."""


@dataclass(frozen=True)
class Ecx:
    """A file in pieces.

    Attributes:
        chunks: kind and payload of each.
        magic: first bytes.
        lies: places and masks of bytes that change once all checksums are right.
        cut: bytes that are left; None leaves all.
        tail: bytes behind the last chunk.
    """

    chunks: tuple[tuple[bytes, bytes], ...]
    magic: bytes = MAGIC
    lies: tuple[tuple[int, int], ...] = ()
    cut: int | None = None
    tail: bytes = b""

    def to_bytes(self) -> bytes:
        parts = [self.magic]
        for kind, payload in self.chunks:
            body = kind + struct.pack("<I", len(payload)) + payload
            parts += [body, struct.pack("<I", zlib.crc32(body))]
        data = bytearray(b"".join(parts) + self.tail)
        for place, mask in self.lies:
            data[place % len(data)] ^= mask
        return bytes(data[: self.cut])

    @classmethod
    def parse(cls, data: bytes) -> Ecx:
        chunks, at = [], len(MAGIC)
        while at < len(data):
            kind, length = struct.unpack_from("<4sI", data, at)
            chunks.append((kind, data[at + 8 : at + 8 + length]))
            at += 12 + length
        return cls(tuple(chunks))


def _header(source: random.Random, payload: bytes) -> bytes:
    """Change one field of a header to something near the edge of what may be."""
    if len(payload) != 18:
        return mutated(payload, source)
    fields = list(struct.unpack("<BBBBHHH8s", payload))
    which = source.choice([0, 1, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7])
    if which < 4:
        fields[which] = source.choice([0, 1, 2, 50, 99, 100, 101, 255])
    elif which < 7:
        value = source.choice([*EDGES, fields[which] + source.randint(-33, 33)])
        fields[which] = max(0, min(65535, value // 32 * 32 if which == 6 else value))
    else:
        fields[7] = source.choice([bytes(8), fields[7][::-1], source.randbytes(8)])
    return struct.pack("<BBBBHHH8s", *fields)


def _index(chunks: list[tuple[bytes, bytes]]) -> None:
    """Make the index say what is true."""
    lengths = [len(payload) for kind, payload in chunks if kind == b"TILE"]
    for number, (kind, _) in enumerate(chunks):
        if kind == b"TIDX":
            chunks[number] = (kind, struct.pack(f"<{len(lengths)}I", *lengths))


def mutate(pool: list[bytes], source: random.Random, file: Ecx) -> Ecx:
    """Return a changed file; `pool` holds substreams that decode somewhere."""
    chunks = list(file.chunks)
    at = source.randrange(len(chunks)) if chunks else 0
    move = source.randrange(12)
    if not chunks or move == 0:
        payload = source.randbytes(source.choice([0, 1, 4, 18, 99]))
        chunks.insert(at, (source.choice(KINDS), payload))
    elif move == 1:
        del chunks[at]
    elif move == 2:
        chunks.insert(source.randrange(len(chunks) + 1), chunks[at])
    elif move == 3:
        other = source.randrange(len(chunks))
        chunks[at], chunks[other] = chunks[other], chunks[at]
    elif move == 4:
        chunks[at] = (source.choice(KINDS), chunks[at][1])
    elif move == 5:
        chunks[at] = (chunks[at][0], source.choice(pool))
    elif move in (6, 7):
        chunks[0] = (chunks[0][0], _header(source, chunks[0][1]))
    elif move == 8:
        place = (source.randrange(1 << 16), 1 << source.randrange(8))
        return replace(file, lies=(*file.lies[-3:], place))
    elif move == 9:
        return replace(file, cut=source.choice([None, source.randrange(400)]))
    elif move == 10:
        tail = source.choice([b"", source.randbytes(source.randrange(40))])
        return replace(file, tail=tail, lies=(), cut=None)
    else:
        chunks[at] = (chunks[at][0], mutated(chunks[at][1], source))
    if source.random() < 0.9:
        _index(chunks)
    return replace(file, chunks=tuple(chunks[:40]))


def run(codec: Codec, file: Ecx) -> Outcome:
    """Do with a file what can be done with it; give what it was.

    Raises:
        BitstreamError: the file is refused.
    """
    data = file.to_bytes()
    facts = describe(data)
    json.dumps(facts)
    try:
        latents = codec.decode_latents(data)
    except BitstreamError:
        if facts["width"] * facts["height"] > PIXELS_MOST:
            raise
        image = codec.decode(data, keep_going=True)  # what can be saved, or this error instead
    else:
        assert not facts["damaged_tiles"]
        assert latents.dtype == np.int16
        assert latents.shape == (-(-facts["height"] // 32) * 2, -(-facts["width"] // 32) * 2, 4)
        if facts["width"] * facts["height"] > PIXELS_MOST:
            return ("large", facts["tiles"] > 1)
        image = codec.decode(data)
    assert image.size == (facts["width"], facts["height"])
    assert image.mode == facts["mode"]
    suffix = FORMATS[len(data) % len(FORMATS)]
    told = ("damaged_tiles" in image.info, facts["tiles"] > 1, image.mode, len(facts["metadata"]))
    return ("shown", *told, suffix, _written(image, suffix))


def _written(image: Image.Image, suffix: str) -> bool:
    try:
        image_bytes(image, f"x{suffix}")
    except ConfigError:  # the format cannot hold it
        return False
    return True


def save(path: Path, file: Ecx) -> None:
    """Write an input that found something."""
    path.with_suffix(".ecx").write_bytes(file.to_bytes())


def targets_in(folder: Path) -> list[Target[Ecx]]:
    codec = Codec(write_tiny_codec(folder), "onnxruntime", threads=1)
    rng = np.random.default_rng(1)
    seeds, pool = [], [b""]
    for number, (height, width, tile) in enumerate(
        [(8, 8, 32), (40, 70, 32), (64, 64, 4096), (33, 100, 64), (1, 1, 32)]
    ):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        if number % 2:
            exif = Image.Exif()
            exif[0x0112], exif[0x010E] = 6, "a picture"
            image.info.update(icc_profile=b"profile" * 9, exif=exif.tobytes(), xmp=b"<x:xmpmeta/>")
        file = Ecx.parse(codec.encode(image.convert("L") if number == 2 else image, 30, tile=tile))
        seeds.append(file)
        pool += [payload for kind, payload in file.chunks if kind == b"TILE"]
    return [
        Target(
            "files",
            seeds,
            partial(mutate, pool),
            partial(run, codec),
            (BitstreamError,),
            save,
        )
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(lambda: targets_in(Path(scratch)))
        sys.stdout.flush()
