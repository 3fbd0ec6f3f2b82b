"""Files: what is written is read, what is damaged is refused, what is intact is saved."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecodec.errors import BitstreamError, TruncatedBitstreamError, UnsupportedVersionError
from edgecodec.format.container import (
    MAGIC,
    MAX_PIXELS,
    MAX_SIDE,
    METADATA,
    Header,
    read_container,
    read_header,
    write_container,
)

TABLES_ID = "0123456789abcdef"
META = {"icc_profile": b"profile", "exif": b"Exif\0\0and more", "xmp": b"<x:xmpmeta/>"}


def chunk(kind: bytes, payload: bytes) -> bytes:
    body = kind + struct.pack("<I", len(payload)) + payload
    return body + struct.pack("<I", zlib.crc32(body))


def head(
    version: int = 1,
    mode: int = 0,
    quality: int = 50,
    flags: int = 0,
    width: int = 8,
    height: int = 8,
    tile: int = 32,
) -> bytes:
    fields = (version, mode, quality, flags, width, height, tile)
    return chunk(b"HEAD", struct.pack("<BBBBHHH8s", *fields, bytes.fromhex(TABLES_ID)))


def places(data: bytes) -> dict[str, list[tuple[int, int]]]:
    """Return begin and end of every chunk by kind."""
    found: dict[str, list[tuple[int, int]]] = {}
    at = 8
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        found.setdefault(kind.decode(), []).append((at, at + 12 + length))
        at += 12 + length
    return found


def flipped(data: bytes, byte: int, mask: int = 1) -> bytes:
    return data[:byte] + bytes([data[byte] ^ mask]) + data[byte + 1 :]


def one_line(exc: BaseException) -> bool:
    return bool(str(exc)) and "\n" not in str(exc)


@pytest.fixture(scope="module")
def header() -> Header:
    return Header(70, 50, "RGB", 60, 32, TABLES_ID)


@pytest.fixture(scope="module")
def streams(header: Header) -> list[bytes]:
    return [bytes([n]) * (3 + n) for n in range(header.tile_count)]


@pytest.fixture(scope="module")
def data(header: Header, streams: list[bytes]) -> bytes:
    return write_container(header, streams, META)


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    mode=st.sampled_from(["RGB", "L"]),
    quality=st.integers(1, 100),
    tile=st.integers(1, 128).map(lambda n: 32 * n),
    metadata=st.dictionaries(st.sampled_from(sorted(METADATA.values())), st.binary(min_size=1)),
    keep_going=st.booleans(),
    source=st.randoms(use_true_random=False),
)
def test_container_round_trip(
    width: int,
    height: int,
    mode: str,
    quality: int,
    tile: int,
    metadata: dict[str, bytes],
    keep_going: bool,
    source: object,
) -> None:
    header = Header(width, height, mode, quality, tile, TABLES_ID)
    count = header.tile_count
    streams = [source.randbytes(source.randrange(9)) for _ in range(count)]  # type: ignore[attr-defined]
    data = write_container(header, streams, metadata)
    file = read_container(data, keep_going=keep_going)
    assert read_header(data) == file.header == header
    assert file.substreams == tuple(streams)
    assert file.metadata == metadata
    assert file.size == len(data)


def test_write_container_refuses_a_wrong_number_of_substreams(header: Header) -> None:
    with pytest.raises(ValueError, match="1 substreams for 6 tiles"):
        write_container(header, [b"x"])


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (MAX_SIDE + 1, 1), (MAX_SIDE, MAX_SIDE)])
def test_write_container_refuses_impossible_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(BitstreamError, match="outside the limits"):
        write_container(Header(*size, "RGB", 50, 4096, TABLES_ID), [b"x"])


def test_file_cut_at_every_byte_is_refused(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(TruncatedBitstreamError) as caught:
            read_container(data[:size])
        assert one_line(caught.value)


def test_file_cut_at_every_byte_gives_only_intact_tiles_when_keeping_going(
    data: bytes, streams: list[bytes]
) -> None:
    ends = [end for _, end in places(data)["TILE"]]
    for size in range(places(data)["HEAD"][0][1], len(data)):
        file = read_container(data[:size], keep_going=True)
        expected = [s if end <= size else None for s, end in zip(streams, ends, strict=True)]
        assert list(file.substreams) == expected, size
        assert file.metadata.items() <= META.items()


def test_every_flipped_bit_is_refused(data: bytes) -> None:
    for byte in range(len(data)):
        for bit in range(8):
            with pytest.raises(BitstreamError) as caught:
                read_container(flipped(data, byte, 1 << bit))
            assert one_line(caught.value)


def test_every_flipped_bit_costs_at_most_its_own_chunk_when_keeping_going(
    data: bytes, streams: list[bytes]
) -> None:
    """Behind the header: metadata cost at most metadata, the index nothing, a tile itself."""
    where = places(data)
    for byte in range(where["HEAD"][0][1], len(data)):
        number = next((n for n, (a, b) in enumerate(where["TILE"]) if a <= byte < b), None)
        expected = [None if n == number else s for n, s in enumerate(streams)]
        for bit in range(8):
            file = read_container(flipped(data, byte, 1 << bit), keep_going=True)
            assert list(file.substreams) == expected, (byte, bit)
            assert file.metadata.items() <= META.items()
            if byte >= where["TIDX"][0][0]:
                assert file.metadata == META


@pytest.mark.parametrize("keep_going", [False, True])
def test_flipped_bit_of_signature_or_header_is_always_refused(
    data: bytes, keep_going: bool
) -> None:
    for byte in range(places(data)["HEAD"][0][1]):
        with pytest.raises(BitstreamError):
            read_container(flipped(data, byte), keep_going=keep_going)


def test_damaged_payload_names_the_tile_and_the_option(data: bytes) -> None:
    begin, _ = places(data)["TILE"][2]
    with pytest.raises(BitstreamError, match=r"tile 3 of 6 is damaged.*--keep-going"):
        read_container(flipped(data, begin + 8))


def test_several_damaged_tiles_cost_exactly_themselves(data: bytes, streams: list[bytes]) -> None:
    where = places(data)["TILE"]
    broken = flipped(flipped(data, where[0][0] + 1), where[3][1] - 1)
    found = read_container(broken, keep_going=True).substreams
    assert found == (None, streams[1], streams[2], None, streams[4], streams[5])


def test_single_damaged_tile_of_a_file_is_missing_when_keeping_going() -> None:
    data = write_container(Header(8, 8, "L", 1, 32, TABLES_ID), [b"payload"], META)
    begin, end = places(data)["TILE"][0]
    for byte in range(begin, end):
        file = read_container(flipped(data, byte), keep_going=True)
        assert file.substreams == (None,)
        assert file.metadata == META


@pytest.mark.parametrize(
    "foreign",
    [b"", b"\x89", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\0" * 100, MAGIC[:7] + b"\0"],
)
@pytest.mark.parametrize("keep_going", [False, True])
def test_foreign_bytes_are_refused(foreign: bytes, keep_going: bool) -> None:
    with pytest.raises(BitstreamError) as caught:
        read_container(foreign, keep_going=keep_going)
    assert one_line(caught.value)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_version_is_named(version: int) -> None:
    data = MAGIC + head(version=version) + chunk(b"TILE", b"x")
    with pytest.raises(UnsupportedVersionError, match=f"version {version}.*pip install -U"):
        read_container(data)


def test_later_version_may_have_another_header() -> None:
    data = MAGIC + chunk(b"HEAD", b"\x02short")
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        read_header(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": 2},
        {"quality": 0},
        {"quality": 101},
        {"flags": 1},
        {"width": 0},
        {"height": 0},
        {"tile": 0},
        {"tile": 33},
        {"tile": 4128},
        {"width": 65535, "height": 65535},
    ],
    ids=str,
)
def test_header_with_impossible_values_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BitstreamError) as caught:
        read_container(MAGIC + head(**wrong) + chunk(b"TILE", b"x"))
    assert one_line(caught.value)


def test_empty_header_is_refused() -> None:
    with pytest.raises(BitstreamError):
        read_header(MAGIC + chunk(b"HEAD", b""))


@pytest.mark.parametrize(("width", "height"), [(65535, 65535), (65535, MAX_PIXELS // 65535)])
@pytest.mark.parametrize("keep_going", [False, True])
def test_huge_header_costs_no_memory(width: int, height: int, keep_going: bool) -> None:
    """Neither refused nor allowed sizes make a reader of a tiny file allocate for its tiles."""
    data = MAGIC + head(width=width, height=height, tile=4096) + chunk(b"TILE", b"x")
    tracemalloc.start()
    try:
        if keep_going and width * height <= MAX_PIXELS:
            read_container(data, keep_going=True)
        else:
            with pytest.raises(BitstreamError):
                read_container(data, keep_going=keep_going)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_many_small_tiles_are_counted_not_made() -> None:
    data = MAGIC + head(width=65535, height=8192, tile=32) + chunk(b"TIDX", bytes(4))
    tracemalloc.start()
    try:
        with pytest.raises(BitstreamError, match="index"):
            read_container(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("kind", [b"ABCD", b"Name", b"1abc", b"\xe9abc", b"TEXt"])
@pytest.mark.parametrize("keep_going", [False, True])
def test_unknown_critical_chunk_is_refused(kind: bytes, keep_going: bool) -> None:
    data = MAGIC + head() + chunk(kind, b"?") + chunk(b"TILE", b"x")
    with pytest.raises(UnsupportedVersionError, match="does not know"):
        read_container(data, keep_going=keep_going)


@pytest.mark.parametrize("keep_going", [False, True])
def test_unknown_ancillary_chunk_is_skipped(
    data: bytes, streams: list[bytes], keep_going: bool
) -> None:
    extra = chunk(b"note", b"hello")
    where = places(data)
    for at in (where["ICCP"][0][0], where["TIDX"][0][0], len(data)):
        file = read_container(data[:at] + extra + data[at:], keep_going=keep_going)
        assert file.substreams == tuple(streams)
        assert file.metadata == META


@pytest.mark.parametrize("kind", ["HEAD", "ICCP", "TIDX", "TILE"])
def test_chunk_twice_is_refused(data: bytes, kind: str) -> None:
    begin, end = places(data)[kind][0]
    with pytest.raises(BitstreamError):
        read_container(data[:end] + data[begin:end] + data[end:])


def test_chunk_between_or_behind_tiles_is_refused(data: bytes) -> None:
    where = places(data)["TILE"]
    for kind in (b"note", b"EXIF"):
        at = where[0][1]
        with pytest.raises(BitstreamError, match="between the tiles"):
            read_container(data[:at] + chunk(kind, b"x") + data[at:])
    with pytest.raises(BitstreamError, match="out of place"):
        read_container(MAGIC + head() + chunk(b"TILE", b"x") + chunk(b"EXIF", b"x"))


def test_tiles_without_index_are_refused(data: bytes, streams: list[bytes]) -> None:
    begin, end = places(data)["TIDX"][0]
    without = data[:begin] + data[end:]
    with pytest.raises(BitstreamError, match="do not agree"):
        read_container(without)
    assert read_container(without, keep_going=True).substreams == tuple(streams)


def test_index_of_a_single_tile_is_refused() -> None:
    data = MAGIC + head() + chunk(b"TIDX", struct.pack("<I", 1)) + chunk(b"TILE", b"x")
    with pytest.raises(BitstreamError, match="index"):
        read_container(data)


def test_index_that_lies_is_refused_and_costs_the_tiles_it_hides(
    data: bytes, streams: list[bytes]
) -> None:
    begin, end = places(data)["TIDX"][0]
    lengths = [len(s) for s in streams]
    wrong = struct.pack("<6I", *lengths[:5], 2**32 - 1)
    lying = data[:begin] + chunk(b"TIDX", wrong) + data[end:]
    with pytest.raises(BitstreamError, match="do not agree"):
        read_container(lying)
    assert read_container(lying, keep_going=True).substreams == (*streams[:5], None)


def test_too_many_tiles_are_refused(data: bytes) -> None:
    with pytest.raises(BitstreamError, match="do not agree"):
        read_container(data + chunk(b"TILE", b"x"))


@given(st.binary(max_size=300))
def test_random_bytes_behind_a_header_raise_nothing_else(tail: bytes) -> None:
    for keep_going in (False, True):
        with suppress(BitstreamError):
            read_container(MAGIC + head(width=70) + tail, keep_going=keep_going)
