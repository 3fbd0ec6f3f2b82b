"""The `.ecx` file: magic, chunks with CRC-32, one independent substream per tile.

docs/FORMAT.md specifies it to the byte. Everything here works without a model.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from edgecodec.errors import BitstreamError, TruncatedBitstreamError, UnsupportedVersionError
from edgecodec.format.strides import HYPER_STRIDE

MAGIC = b"\x89ECX\r\n\x1a\n"
VERSION = 1
MIME_TYPE = "image/x-edgecodec"
MODES = ("RGB", "L")
MAX_SIDE = 65535
MAX_PIXELS = 1 << 29
"""Half a gigapixel: what a header may ask for before anything is allocated."""
MAX_TILE = 4096
METADATA = {"ICCP": "icc_profile", "EXIF": "exif", "XMP ": "xmp"}
_HEAD = struct.Struct("<BBBBHHH8s")
_CHUNK = struct.Struct("<4sI")
_CRC = struct.Struct("<I")


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
    def tile_count(self) -> int:
        """How many tiles there are; costs nothing even where a header names a great many."""
        return -(-self.height // self.tile) * -(-self.width // self.tile)


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
    if len(substreams) != header.tile_count:
        raise ValueError(f"{len(substreams)} substreams for {header.tile_count} tiles")
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
        keep_going: take damaged or missing tiles as None, and damaged metadata as absent, instead
            of refusing the file. Its header must be intact.

    Raises:
        BitstreamError: not one of our files, damaged, or cut short.
    """
    header, at = _head(data)
    try:
        return _read_intact(data, at, header)
    except UnsupportedVersionError:
        raise
    except BitstreamError:
        if not keep_going:
            raise
    return _salvage(data, at, header)


def _read_intact(data: bytes, begin: int, header: Header) -> ContainerFile:
    """Take every chunk in the order that docs/FORMAT.md demands."""
    count = header.tile_count
    metadata: dict[str, bytes] = {}
    lengths: tuple[int, ...] | None = None
    substreams: list[bytes] = []
    previous = "HEAD"
    for at, chunk in _chunks(data, begin):
        kind = chunk.kind
        if not chunk.intact:
            raise BitstreamError(_damaged(kind, at, len(substreams), count))
        if substreams and len(substreams) < count and kind != "TILE":
            raise BitstreamError(f"chunk {kind!r} at byte {at} stands between the tiles")
        if kind == "TILE":
            if len(substreams) == count or (count > 1 and not substreams and previous != "TIDX"):
                raise BitstreamError("the tiles do not agree with the header")
            substreams.append(chunk.payload)
        elif kind in ("HEAD", "TIDX", *METADATA):
            name = METADATA.get(kind, "")
            if substreams or name in metadata or (not name and (kind == "HEAD" or lengths)):
                raise BitstreamError(f"chunk {kind!r} at byte {at} is out of place")
            if name:
                metadata[name] = chunk.payload
            else:
                lengths = _tile_lengths(chunk.payload, count)
        elif not "a" <= kind[0] <= "z":
            raise UnsupportedVersionError(
                f"the file holds a chunk {kind!r} that this edgecodec does not know; "
                "update it: pip install -U edgecodec"
            )
        previous = kind
    if len(substreams) < count:
        hint = "; decode what is there with --keep-going" if substreams else ""
        raise TruncatedBitstreamError(
            f"the file ends after {len(substreams)} of {count} tiles{hint}"
        )
    if lengths and list(lengths) != [len(s) for s in substreams]:
        raise BitstreamError("the tiles do not agree with the header")
    return ContainerFile(header, tuple(substreams), metadata, len(data))


def _damaged(kind: str, at: int, number: int, count: int) -> str:
    if kind != "TILE" or number >= count:
        return f"chunk {kind!r} at byte {at} is damaged (its checksum does not match)"
    hint = "; decode the rest with --keep-going" if count > 1 else ""
    return f"tile {number + 1} of {count} is damaged (its checksum does not match){hint}"


def _tile_lengths(payload: bytes, count: int) -> tuple[int, ...]:
    if count == 1 or len(payload) != 4 * count:
        raise BitstreamError("the tile index does not agree with the header")
    return struct.unpack(f"<{count}I", payload)


def _salvage(data: bytes, at: int, header: Header) -> ContainerFile:
    """Take what is intact of a damaged file."""
    count = header.tile_count
    metadata: dict[str, bytes] = {}
    lengths: tuple[int, ...] | None = None
    # What begins the index can hardly occur by chance, so it is found behind damaged metadata too.
    index = data.find(_CHUNK.pack(b"TIDX", 4 * count), at) if count > 1 else -1
    if index >= 0:
        first = index + _CHUNK.size + 4 * count + _CRC.size
    else:
        index = first = data.find(b"TILE", at) % (len(data) + 1)  # the end where there is none
    with suppress(TruncatedBitstreamError):
        for place, chunk in _chunks(data, at):
            if place >= index:
                break
            if chunk.intact and chunk.kind in METADATA:
                metadata[METADATA[chunk.kind]] = chunk.payload
    with suppress(BitstreamError):
        if index < first and (chunk := _read_chunk(data, index)).intact:
            lengths = _tile_lengths(chunk.payload, count)
    return ContainerFile(
        header, tuple(_tiles_from(data, first, count, lengths)), metadata, len(data)
    )


def _tiles_from(
    data: bytes, at: int, count: int, lengths: tuple[int, ...] | None
) -> list[bytes | None]:
    """Take the tiles from where the index, or else each one's own header, says they are."""
    substreams: list[bytes | None] = []
    for number in range(count):
        if len(data) - at < _CHUNK.size:
            break
        kind, length = _CHUNK.unpack_from(data, at)
        expected = lengths[number] if lengths else length
        end = at + _CHUNK.size + expected
        good = (
            (kind, length) == (b"TILE", expected)
            and end + _CRC.size <= len(data)
            and zlib.crc32(data[at:end]) == _CRC.unpack_from(data, end)[0]
        )
        substreams.append(data[at + _CHUNK.size : end] if good else None)
        at = end + _CRC.size
    return substreams + [None] * (count - len(substreams))
