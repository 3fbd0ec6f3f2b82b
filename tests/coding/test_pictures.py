"""Pictures in and out: modes, metadata, damaged files, outputs that appear whole or not at all."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, TiffImagePlugin, TiffTags

from edgecodec.arrays import UInt8Array
from edgecodec.coding.layout import Window
from edgecodec.coding.pictures import (
    from_samples,
    to_picture,
)
from edgecodec.coding.pixels import read_padded
from edgecodec.errors import ConfigError

GREY = np.linspace(0, 255, 35).round().astype(np.uint8).reshape(5, 7)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], 2)


def opaque(pixels: UInt8Array) -> UInt8Array:
    """Return (H, W, 3) with the fourth byte of `samples.pack`."""
    return np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 255, np.uint8)], 2)


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a photo"
    return exif.tobytes()


EXIF = _exif()


@pytest.mark.parametrize(("array", "mode"), [(RGB, "RGB"), (GREY, "L")])
def test_arrays_are_taken_as_they_are(array: UInt8Array, mode: str) -> None:
    picture = to_picture(array)
    assert picture.mode == mode
    assert (np.asarray(picture.pixels) == (array if array.ndim == 3 else array[:, :, None])).all()
    assert picture.pixels.shape == (5, 7, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        RGB.astype(np.float32),
        RGB.astype(np.uint16),
        RGB[:, :, :2],
        np.zeros((5, 7, 4), np.uint8),
        np.zeros((1, 5, 7, 3), np.uint8),
        np.zeros((0, 7, 3), np.uint8),
        np.zeros((7, 0), np.uint8),
        np.zeros((1, 65536), np.uint8),
        np.zeros((), np.uint8),
        [[1, 2], [3, 4]],
        b"bytes",
        None,
    ],
    ids=lambda w: f"{type(w).__name__}{getattr(w, 'shape', '')}",
)
def test_wrong_arrays_are_config_errors(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        to_picture(wrong)


def test_non_contiguous_arrays_are_taken() -> None:
    wide = np.zeros((10, 14, 3), np.uint8)
    wide[::2, ::-2] = RGB
    assert (np.asarray(to_picture(wide[::2, ::-2]).pixels) == RGB).all()


@pytest.mark.parametrize(
    ("mode", "grey"),
    [("RGB", False), ("RGBX", False), ("P", False), ("CMYK", False), ("YCbCr", False),
     ("HSV", False), ("L", True), ("1", True), ("LA", True), ("RGBA", False)],
)  # fmt: skip
def test_modes_of_pillow_come_out_near_what_pillow_shows(mode: str, grey: bool) -> None:
    image = Image.fromarray(GREY if grey else RGB).convert(mode)
    picture = to_picture(image)
    assert picture.mode == ("L" if grey else "RGB")
    found, expected = np.asarray(picture.pixels), np.asarray(image.convert("RGB"))
    assert found.dtype == np.uint8
    assert (found == expected).all()
    assert (picture.pixels[1:4, 2:7] == expected[1:4, 2:7]).all()


@pytest.mark.parametrize("part", [(0, 5, 0, 7), (1, 4, 2, 5), (3, 64, 4, 64), (0, 1, 0, 64)])
def test_parts_of_an_image_are_those_of_its_array(part: tuple[int, int, int, int]) -> None:
    image = Image.fromarray(RGB)
    slices = slice(*part[:2]), slice(*part[2:])
    pixels = to_picture(image).pixels
    assert pixels.shape == RGB.shape
    assert (pixels[slices] == RGB[slices]).all()
    found = read_padded(pixels, Window(0, 0, 32, 32, 0, 0))
    assert (found == read_padded(RGB, Window(0, 0, 32, 32, 0, 0))).all()


def test_parts_are_given_below_any_limit_that_pillow_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = to_picture(Image.fromarray(RGB)).pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    assert (pixels[1:4, 2:5] == RGB[1:4, 2:5]).all()
    assert (pixels[0:5, 0:7] == RGB).all()


def test_file_that_ends_too_soon_is_a_config_error_before_anything_is_coded(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with Image.open(path) as image, pytest.raises(ConfigError, match="cannot be converted"):
        to_picture(image)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_grey_is_scaled_not_clipped(mode: str) -> None:
    wide = GREY.astype(np.uint16) * 257
    kind = "<u2" if mode == "I;16" else ">u2"
    image = Image.frombytes(mode, (7, 5), wide.astype(kind).tobytes())
    assert image.mode == mode
    picture = to_picture(image)
    assert picture.mode == "L"
    assert (np.asarray(picture.pixels)[:, :, 0] == GREY).all()


def test_16_bit_png_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert (np.asarray(to_picture(image).pixels)[:, :, 1] == GREY).all()


def tiff(values: npt.NDArray[Any], **tags: Any) -> Image.Image:
    """Return what Pillow reads of a TIFF file with one strip of such values.

    Args:
        values: (H, W), of any type.
        tags: to add or to change, by the names that Pillow has for them.
    """
    kinds = {"u": 1, "i": 2, "f": 3}
    entries = {
        "ImageWidth": values.shape[1], "ImageLength": values.shape[0], "Compression": 1,
        "BitsPerSample": values.itemsize * 8, "PhotometricInterpretation": 1,
        "SampleFormat": kinds[values.dtype.kind], "RowsPerStrip": values.shape[0],
        "StripByteCounts": values.nbytes, "SamplesPerPixel": 1,
    } | tags  # fmt: skip
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for name, value in entries.items():
        directory[TAGS[name]] = value
    directory[TAGS["StripOffsets"]] = 0  # Pillow adds where the directory ends
    return Image.open(io.BytesIO(b"II*\0\x08\0\0\0" + directory.tobytes(8) + values.tobytes()))


TAGS = {tag.name: number for number, tag in ((n, TiffTags.lookup(n)) for n in range(256, 348))}


def shown(image: Image.Image) -> UInt8Array:
    return np.asarray(to_picture(image).pixels)[:, :, 0]


@pytest.mark.parametrize(
    ("scale", "kind", "tags"),
    [
        (1 / 255, "<f4", {}),
        (1.0, "<f4", {"SMinSampleValue": 0.0, "SMaxSampleValue": 255.0}),
        (257, "<u2", {}),
        (16843009, "<u4", {}),
        (100, "<i2", {"SMinSampleValue": 0, "SMaxSampleValue": 25500}),
    ],
)
def test_range_of_grey_is_what_the_tags_of_a_tiff_file_say(
    scale: float, kind: str, tags: dict[str, float]
) -> None:
    values = (GREY[:3, :4] * np.float64(scale)).astype(kind)
    assert (shown(tiff(values, **tags)) == GREY[:3, :4]).all()


@pytest.mark.parametrize("kind", ["<f4", "<u2"])
def test_white_may_be_zero(kind: str) -> None:
    values = (GREY * np.float64(1 / 255 if kind == "<f4" else 257)).astype(kind)
    assert (shown(tiff(values, PhotometricInterpretation=0)) == 255 - GREY).all()


def test_grey_of_12_bits_is_bright() -> None:
    rows = np.array([[0, 4095, 2048, 4095]] * 2)
    pairs = rows.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1
    )
    data = packed.astype(np.uint8).reshape(2, 6)
    image = tiff(data, BitsPerSample=12, ImageWidth=4)
    assert shown(image).tolist() == [[0, 255, 128, 255]] * 2


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY.astype(np.int32)),
        Image.fromarray(GREY.astype(np.float32)),
        tiff(GREY.astype("<i2")),
        tiff(GREY.astype("<i4")),
    ],
)
def test_grey_of_unknown_range_is_refused(image: Image.Image) -> None:
    with pytest.raises(ConfigError, match=r"nothing says what is white .* convert it to mode L"):
        to_picture(image)


def test_values_outside_of_the_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"reach from 0 to 255, but black is 0 and white 1"):
        to_picture(tiff(GREY.astype("<f4")))


def test_float_pictures_with_nan_are_taken() -> None:
    values = (GREY / 255).astype("<f4")
    values[0, 0], values[0, 1] = np.nan, np.inf
    assert shown(tiff(values))[0, :2].tolist() == [0, 255]


def test_16_bit_pgm_is_scaled() -> None:
    data = b"P5 7 5 65535 " + (GREY.astype(">u2") * 257).tobytes()
    assert (shown(Image.open(io.BytesIO(data))) == GREY).all()


def test_picture_that_pillow_cannot_convert_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def convert(self: Image.Image, mode: str) -> Image.Image:
        raise ValueError("conversion from LAB to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(ConfigError, match="conversion from LAB"):
        to_picture(Image.new("LAB", (4, 4)))


def test_invisible_alpha_is_dropped() -> None:
    rgba = Image.fromarray(RGB).convert("RGBA")
    assert (np.asarray(to_picture(rgba).pixels) == RGB).all()
    palette = Image.fromarray(RGB).convert("P")
    palette.info["transparency"] = b"\xff" * 256
    assert to_picture(palette).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB"])
def test_visible_transparency_is_refused(mode: str) -> None:
    image = Image.fromarray(RGB).convert("RGBA")
    image.putpixel((2, 2), (1, 2, 3, 254))
    if mode in ("P", "RGB"):
        image = image.convert(mode)
        image.info["transparency"] = b"\0" * 256 if mode == "P" else image.getpixel((2, 2))
    else:
        image = image.convert(mode)
    with pytest.raises(ConfigError, match="transparent"):
        to_picture(image)


def deep_png(values: npt.NDArray[Any], hidden: tuple[int, ...]) -> Image.Image:
    """Return what Pillow reads of a PNG file of 16 bits, one colour of which is transparent.

    Args:
        values: (H, W, 1) or (H, W, 3) uint16.
        hidden: the colour.
    """
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in {
        b"IHDR": struct.pack(">2I5B", width, height, 16, channels - 1, 0, 0, 0),
        b"tRNS": struct.pack(f">{channels}H", *hidden),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }.items():
        crc = zlib.crc32(kind + content)
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_of_16_bits_is_refused_where_it_is_used(channels: int) -> None:
    values = (RGB[:, :, :channels].astype(np.uint16) * 257) | 3
    used = tuple(values[2, 2].tolist())
    with pytest.raises(ConfigError, match="transparent"):
        to_picture(deep_png(values, used))
    kept = to_picture(deep_png(values, used), drop_alpha=True)
    assert (np.asarray(kept.pixels) == RGB[:, :, :channels]).all()
    # One of 16 bits that is next to a grey that is there; of RGB Pillow keeps 8 bits.
    unused = (used[0] ^ 1,) if channels == 1 else (used[0] ^ 256, *used[1:])
    assert to_picture(deep_png(values, unused)).pixels.shape == (5, 7, 3)


def test_metadata_travel() -> None:
    image = Image.fromarray(RGB)
    image.info.update(exif=b"Exif\0\0x", icc_profile=b"icc", xmp="<x/>", gamma=2.2, comment=b"no")
    picture = to_picture(image)
    assert picture.metadata == {"exif": b"Exif\0\0x", "icc_profile": b"icc", "xmp": b"<x/>"}
    again = from_samples(opaque(np.asarray(picture.pixels)), picture.mode, picture.metadata)
    assert again.info == picture.metadata


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr"])
def test_profile_of_other_colours_does_not_travel(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    image.info.update(exif=b"Exif\0\0x", icc_profile=bytes(16) + b"CMYK")
    assert to_picture(image).metadata == {"exif": b"Exif\0\0x"}


def test_from_samples_gives_grey_for_l() -> None:
    image = from_samples(opaque(np.repeat(GREY[:, :, None], 3, 2)), "L", {})
    assert image.mode == "L"
    assert (np.asarray(image) == GREY).all()
