"""The `.ecx` file: magic, chunks with CRC-32, one independent substream per tile.

docs/FORMAT.md specifies it to the byte. Everything here works without a model.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgecodec.errors import BitstreamError, TruncatedBitstreamError, UnsupportedVersionError

MAGIC = b"\x89ECX\r\n\x1a\n"
VERSION = 1
EXTENSION = ".ecx"
MIME_TYPE = "image/x-edgecodec"
MODES = ("RGB", "L")
MAX_SIDE = 65535
MAX_PIXELS = 1 << 29
"""Half a gigapixel: what a header may ask for before anything is allocated."""
HYPER_STRIDE = 32
MAX_TILE = 4096
METADATA = {"ICCP": "icc_profile", "EXIF": "exif", "XMP ": "xmp"}
_HEAD = struct.Struct("<BBBBHHH8s")
_CHUNK = struct.Struct("<4sI")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Tile:
    """A rectangle of the padded image, in pixels; all four are multiples of 32.

    Attributes:
        top: first row.
        left: first column.
        height: rows.
        width: columns.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        width: of the image in pixels.
        height: of the image in pixels.
        mode: `RGB` or `L` (decode to grey).
        quality: 1..100.
        tile: side of a tile in pixels, a multiple of 32.
        tables_id: 16 hexadecimal digits that name the tables it was made with.
    """

    width: int
    height: int
    mode: str
    quality: int
    tile: int
    tables_id: str

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width rounded up to a multiple of 32."""
        return (-(-self.height // HYPER_STRIDE) * HYPER_STRIDE,
                -(-self.width // HYPER_STRIDE) * HYPER_STRIDE)  # fmt: skip

    def tiles(self) -> list[Tile]:
        """Return the tiles in the order of the file: rows from the top, each from the left."""
        height, width = self.padded
        return [
            Tile(top, left, min(self.tile, height - top), min(self.tile, width - left))
            for top in range(0, height, self.tile)
            for left in range(0, width, self.tile)
        ]


@dataclass(frozen=True)
class ContainerFile:
    """A parsed file.

    Attributes:
        header: see Header.
        substreams: one per tile; None where it is damaged or missing (`keep_going` only).
        metadata: `icc_profile`, `exif`, `xmp` as far as present.
        size: of the file in bytes.
    """

    header: Header
    substreams: tuple[bytes | None, ...]
    metadata: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


def check_size(width: int, height: int) -> None:
    """Refuse sizes no file can have.

    Raises:
        BitstreamError: empty, or beyond the limits of the format.
    """
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise BitstreamError(
            f"an image of {width}x{height} pixels is outside the limits of the format "
            f"(1 to {MAX_SIDE} per side, {MAX_PIXELS} in all)"
        )


def _chunk(kind: bytes, payload: bytes) -> bytes:
    body = _CHUNK.pack(kind, len(payload)) + payload
    return body + _CRC.pack(zlib.crc32(body))


def write_container(
    header: Header, substreams: Sequence[bytes], metadata: dict[str, bytes] | None = None
) -> bytes:
    """Return the bytes of a file.

    Raises:
        BitstreamError: the size is outside the limits.
        ValueError: the number of substreams is not the number of tiles.
    """
    check_size(header.width, header.height)
    if len(substreams) != len(header.tiles()):
        raise ValueError(f"{len(substreams)} substreams for {len(header.tiles())} tiles")
    head = _HEAD.pack(
        VERSION,
        MODES.index(header.mode),
        header.quality,
        0,
        header.width,
        header.height,
        header.tile,
        bytes.fromhex(header.tables_id),
    )
    parts = [MAGIC, _chunk(b"HEAD", head)]
    for kind, name in METADATA.items():
        value = (metadata or {}).get(name)
        if value:
            parts.append(_chunk(kind.encode(), value))
    if len(substreams) > 1:
        parts.append(_chunk(b"TIDX", struct.pack(f"<{len(substreams)}I", *map(len, substreams))))
    parts += [_chunk(b"TILE", data) for data in substreams]
    return b"".join(parts)


def _parse_header(payload: bytes) -> Header:
    if not payload or payload[0] != VERSION:
        found = payload[0] if payload else "none"
        raise UnsupportedVersionError(
            f"the file has format version {found}, this edgecodec reads {VERSION}; "
            "update it: pip install -U edgecodec"
        )
    if len(payload) != _HEAD.size:
        raise BitstreamError("the header has the wrong length")
    _, mode, quality, flags, width, height, tile, tables_id = _HEAD.unpack(payload)
    check_size(width, height)
    if mode >= len(MODES) or flags or not 1 <= quality <= 100:
        raise BitstreamError("the header holds values this edgecodec does not know; update it")
    if tile % HYPER_STRIDE or not HYPER_STRIDE <= tile <= MAX_TILE:
        raise BitstreamError(f"the header names an impossible tile size ({tile})")
    return Header(width, height, MODES[mode], quality, tile, tables_id.hex())


@dataclass(frozen=True)
class _Chunk:
    kind: str
    payload: bytes
    intact: bool
    next: int


def _read_chunk(data: bytes, at: int) -> _Chunk:
    if len(data) - at < _CHUNK.size + _CRC.size:
        raise TruncatedBitstreamError(f"the file ends inside a chunk at byte {at}")
    kind, length = _CHUNK.unpack_from(data, at)
    begin = at + _CHUNK.size
    end = begin + length
    if end + _CRC.size > len(data):
        raise TruncatedBitstreamError(
            f"the file ends inside a chunk at byte {at}: it needs {end + _CRC.size} bytes, "
            f"there are {len(data)}"
        )
    intact = zlib.crc32(data[at:end]) == _CRC.unpack_from(data, end)[0]
    return _Chunk(kind.decode("latin-1"), data[begin:end], intact, end + _CRC.size)


def _chunks(data: bytes, at: int) -> Iterator[tuple[int, _Chunk]]:
    while at < len(data):
        chunk = _read_chunk(data, at)
        yield at, chunk
        at = chunk.next


def read_header(data: bytes) -> Header:
    """Parse magic and header alone.

    Raises:
        BitstreamError: not one of our files, or its header is damaged.
    """
    return _head(data)[0]


def _head(data: bytes) -> tuple[Header, int]:
    if data[:8] != MAGIC:
        if len(data) < 8 and MAGIC.startswith(data):
            raise TruncatedBitstreamError(f"the file ends after {len(data)} bytes")
        raise BitstreamError("not an edgecodec file (its first bytes are not the .ecx signature)")
    chunk = _read_chunk(data, 8)
    if not chunk.intact or chunk.kind != "HEAD":
        raise BitstreamError("the header is damaged (its checksum does not match)")
    return _parse_header(chunk.payload), chunk.next


def read_container(data: bytes, *, keep_going: bool = False) -> ContainerFile:
    """Parse a whole file.

    Args:
        data: its bytes.
        keep_going: take damaged or missing tiles as None, where the tile index survived, instead
            of refusing the file.

    Raises:
        BitstreamError: not one of our files, damaged, or cut short.
    """
    header, at = _head(data)
    count = len(header.tiles())
    metadata: dict[str, bytes] = {}
    lengths: tuple[int, ...] | None = None
    substreams: list[bytes] = []
    while at < len(data):
        if lengths is not None and keep_going:
            return _by_index(data, at, header, lengths, metadata)
        try:
            chunk = _read_chunk(data, at)
        except TruncatedBitstreamError:
            if keep_going and count == 1:
                break
            raise
        if chunk.kind == "TILE":
            if not chunk.intact and not (keep_going and count == 1):
                raise BitstreamError(_damaged(len(substreams), count))
            if chunk.intact:
                substreams.append(chunk.payload)
        elif not chunk.intact:
            if not (keep_going and chunk.kind in METADATA):
                raise BitstreamError(f"chunk {chunk.kind!r} at byte {at} is damaged")
        elif chunk.kind == "TIDX":
            lengths = _tile_lengths(chunk.payload, count)
        elif chunk.kind in METADATA:
            metadata[METADATA[chunk.kind]] = chunk.payload
        elif chunk.kind[:1].isupper():
            raise UnsupportedVersionError(
                f"the file holds a chunk {chunk.kind!r} that this edgecodec does not know; "
                "update it: pip install -U edgecodec"
            )
        at = chunk.next
    return _complete(data, header, lengths, substreams, metadata, keep_going)


def _complete(
    data: bytes,
    header: Header,
    lengths: tuple[int, ...] | None,
    substreams: list[bytes],
    metadata: dict[str, bytes],
    keep_going: bool,
) -> ContainerFile:
    count = len(header.tiles())
    if keep_going and not substreams and (count == 1 or lengths is not None):
        return ContainerFile(header, (None,) * count, metadata, len(data))
    if len(substreams) < count:
        raise TruncatedBitstreamError(
            f"the file ends after {len(substreams)} of {count} tiles; "
            "decode what is there with --keep-going"
        )
    if len(substreams) > count or (lengths and list(lengths) != [len(s) for s in substreams]):
        raise BitstreamError("the tiles do not agree with the header")
    return ContainerFile(header, tuple(substreams), metadata, len(data))


def _damaged(number: int, count: int) -> str:
    hint = "; decode the rest with --keep-going" if count > 1 else ""
    return f"tile {number + 1} of {count} is damaged (its checksum does not match){hint}"


def _tile_lengths(payload: bytes, count: int) -> tuple[int, ...]:
    if len(payload) != 4 * count:
        raise BitstreamError("the tile index does not agree with the header")
    return struct.unpack(f"<{count}I", payload)


def _by_index(
    data: bytes, at: int, header: Header, lengths: tuple[int, ...], metadata: dict[str, bytes]
) -> ContainerFile:
    """Take the tiles from where the index says they are, whatever lies between."""
    substreams: list[bytes | None] = []
    for length in lengths:
        end = at + _CHUNK.size + length
        whole = data[at : end + _CRC.size]
        good = (
            len(whole) == _CHUNK.size + length + _CRC.size
            and _CHUNK.unpack_from(whole) == (b"TILE", length)
            and zlib.crc32(whole[: -_CRC.size]) == _CRC.unpack_from(whole, len(whole) - 4)[0]
        )
        substreams.append(whole[_CHUNK.size : -_CRC.size] if good else None)
        at = end + _CRC.size
    return ContainerFile(header, tuple(substreams), metadata, len(data))
