"""Pictures in and out: modes, metadata, damaged files, outputs that appear whole or not at all."""

from __future__ import annotations

import io
import os
import random
import re
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.coding.layout import Window
from edgecodec.coding.pictures import (
    check_output,
    from_samples,
    image_bytes,
    open_image,
    to_picture,
)
from edgecodec.coding.pixels import read_padded
from edgecodec.errors import ConfigError
from edgecodec.files import read_input, write_output
from tests.support.streams import mutated

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
     ("HSV", False), ("L", True), ("1", True), ("I", True), ("F", True), ("LA", True),
     ("RGBA", False)],
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


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_grey_is_scaled_not_clipped(mode: str) -> None:
    wide = GREY.astype(np.uint16) * 257
    if mode == "I":
        image = Image.fromarray(wide.astype(np.int32))
    else:
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


def test_float_pictures_with_nan_are_taken() -> None:
    values = GREY.astype(np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf
    assert to_picture(Image.fromarray(values)).mode == "L"


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
    image.info.update(exif=b"Exif\0\0x", icc_profile=b"not for RGB")
    assert to_picture(image).metadata == {"exif": b"Exif\0\0x"}


def test_from_samples_gives_grey_for_l() -> None:
    image = from_samples(opaque(np.repeat(GREY[:, :, None], 3, 2)), "L", {})
    assert image.mode == "L"
    assert (np.asarray(image) == GREY).all()


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tif", "x.bmp", "x.ppm", "-"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_image_bytes_writes_the_format_of_the_extension(name: str, mode: str) -> None:
    check_output(name)
    data = image_bytes(from_samples(opaque(RGB), mode, {"exif": EXIF}), name)
    again = open_image(data, name)
    assert again.size == (7, 5)
    if "jp" not in name:
        shown = np.asarray(again.convert("RGB"))
        assert (shown == np.asarray(Image.fromarray(RGB).convert(mode).convert("RGB"))).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_metadata_survive_in_files(suffix: str) -> None:
    metadata = {"exif": EXIF, "icc_profile": b"profile" * 30, "xmp": b"<x:xmpmeta/>"}
    data = image_bytes(from_samples(opaque(RGB), "RGB", metadata), f"x.{suffix}")
    again = open_image(data, "x")
    assert again.getexif()[0x010E] == "a photo"
    assert again.info["icc_profile"] == metadata["icc_profile"]
    assert to_picture(again).metadata.get("xmp", b"").strip(b"\0") == metadata["xmp"]


@pytest.mark.parametrize("name", ["x.ecx", "x", "x.txt", "x.png.", "x.pn g"])
def test_check_output_refuses_what_pillow_cannot_write(name: str) -> None:
    with pytest.raises(ConfigError, match="no such format"):
        check_output(name)


def test_check_output_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        check_output(str(tmp_path / "absent" / "x.png"))


def damaged_files() -> dict[str, bytes]:
    files: dict[str, bytes] = {"empty": b"", "text": b"hello\n" * 9}
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for suffix in ("png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, suffix)
        files[f"half a {suffix}"] = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    return files


@pytest.mark.parametrize("data", damaged_files().values(), ids=damaged_files().keys())
def test_open_image_refuses_what_is_no_image(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^photo\.x: "):
        open_image(data, "photo.x")


def test_open_image_refuses_bombs() -> None:
    head = b"P6 30000 30000 255\n"
    with pytest.raises(ConfigError, match="too"):
        open_image(head, "bomb.ppm")


def test_open_image_raises_nothing_else_on_mutations(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (16, 16, 3), np.uint8)
    for suffix in ("png", "jpeg", "tiff", "gif", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, suffix)
        for _ in range(60):
            data = bytearray(buffer.getvalue())
            for at in rng.integers(0, min(len(data), 200), 3):
                data[at] = int(rng.integers(0, 256))
            with suppress(ConfigError):
                to_picture(open_image(bytes(data), "x"))


def test_read_input_names_what_it_cannot_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_input(str(path))


def test_write_output_replaces_whole_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.bin"
    write_output(str(target), b"first")
    assert target.read_bytes() == b"first"

    def fail(self: Path, other: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(ConfigError, match="No space left"):
            write_output(str(target), b"second")

    def interrupt(self: Path, mode: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_output(str(target), b"third")
    assert target.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_write_output_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_output(str(tmp_path / "x"), b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.parametrize("where", ["absent/x.bin", "."])
def test_write_output_reports_impossible_places(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_output(str(tmp_path / where), b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_write_output_writes_into_pipes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_output(str(pipe), b"through")
    reader.join(30)
    assert got == [b"through"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_open_image_refuses_animations(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), (40 * k, 0, 0)) for k in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ConfigError, match="holds 3 pictures"):
        open_image(buffer.getvalue(), "moving")


def test_image_bytes_applies_an_orientation_that_the_format_cannot_keep() -> None:
    image = Image.new("RGB", (30, 20), "red")
    image.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    image.info["exif"] = exif.tobytes()
    turned = Image.open(io.BytesIO(image_bytes(image, "x.bmp")))
    assert turned.size == (20, 30)
    assert turned.getpixel((19, 0)) == (0, 0, 255)
    kept = Image.open(io.BytesIO(image_bytes(image, "x.png")))
    assert kept.size == (30, 20)
    assert kept.getexif()[0x0112] == 6


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp", ".gif"])
def test_damaged_metadata_of_a_file_end_in_one_line_or_a_picture(
    suffix: str, recwarn: pytest.WarningsRecorder
) -> None:
    """What a file says of its picture is not to be trusted: EXIF that is none, and worse."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    good = exif.tobytes()
    source = random.Random(1)
    damaged = [b"|\xd4\x02\x00\x01\xc0\xf8\x05", b"Exif\0\0", *(good[:n] for n in range(len(good)))]
    damaged += [mutated(good, source) for _ in range(100)]
    told = set()
    for content in damaged:
        image = Image.new("RGB", (3, 2))
        image.info.update(exif=content, xmp=content, icc_profile=content)
        try:
            image_bytes(image, f"x{suffix}")
        except ConfigError as exc:
            told.add(str(exc))
    assert all(re.fullmatch(r"x\.\w+: cannot be written as \w+ \(.+\)", line) for line in told)
    assert not recwarn.list


def test_picture_too_wide_for_jpeg_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="65500 pixels per side"):
        image_bytes(Image.new("RGB", (65501, 1)), "x.jpg")
    assert image_bytes(Image.new("RGB", (65500, 1)), "x.jpg")
    assert capfd.readouterr() == ("", "")
