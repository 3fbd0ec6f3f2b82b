"""EXIF, XMP and colour profiles: one form inside, found wherever a file has them."""

from __future__ import annotations

import io
import logging
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from edgecodec.coding.image_files import decode_rgb, image_bytes, open_image
from edgecodec.coding.metadata import resolution, without_claims
from edgecodec.coding.pictures import from_samples, to_picture
from tests.coding.test_pictures import GREY, RGB, opaque
from tests.support.profiles import cmyk_profile, grey_profile, rgb_profile

MAKE, ORIENTATION, GPS, EXIF_IFD, DATE = 0x010F, 0x0112, 0x8825, 0x8769, 0x9003
SIDEWAYS = 6
AVIF = ["AVIF"] if ".avif" in Image.registered_extensions() else []


def exif_of_a_camera() -> bytes:
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Acme", SIDEWAYS
    exif[EXIF_IFD] = {DATE: "2020:01:02 03:04:05"}
    exif[GPS] = {1: "N", 2: (48.0, 6.0, 0.0)}
    return exif.tobytes()


CAMERA = exif_of_a_camera()
PHOTO = Image.fromarray(RGB)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def through(data: bytes, name: str = "x.png") -> bytes:
    """Return what becomes of an image file that is encoded and decoded to another, bar pixels."""
    picture = to_picture(open_image(data, "source"))
    pixels = opaque(np.asarray(picture.pixels))
    return image_bytes(from_samples(pixels, picture.mode, picture.metadata), name)


def upright(data: bytes) -> tuple[int, int]:
    return decode_rgb(data, "x").shape[1::-1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", *AVIF, "TIFF"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", *map(str.lower, AVIF), "tif", "bmp"])
def test_exif_arrives_in_every_format_from_every_format(kind: str, suffix: str) -> None:
    data = saved(PHOTO, kind, exif=CAMERA)
    inside = to_picture(open_image(data, "x")).metadata["exif"]
    assert inside.startswith((b"Exif\0\0MM", b"Exif\0\0II"))
    out = through(data, f"x.{suffix}")
    assert upright(out) == upright(data) == (5, 7)
    if suffix == "bmp":
        return
    exif = open_image(out, "x").getexif()
    assert exif[MAKE] == "Acme"
    assert exif.get_ifd(EXIF_IFD)[DATE] == "2020:01:02 03:04:05"
    assert exif.get_ifd(GPS)[1] == "N"
    if suffix == "jpg":
        assert out.count(b"\xff\xe1") == out.count(b"Exif\0\0") == 1


@pytest.mark.parametrize("stored", [CAMERA, CAMERA[6:], b"Exif\0\0" + CAMERA])
def test_exif_of_older_files_is_brought_to_the_one_form(stored: bytes) -> None:
    image = from_samples(opaque(RGB), "RGB", {"exif": stored})
    assert image.info["exif"] == CAMERA
    assert image.getexif()[ORIENTATION] == SIDEWAYS


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("exif", CAMERA),
        ("APP1", CAMERA),
        ("xmp", b"<x/>"),
        ("APP1", b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        ("icc", rgb_profile()),
        ("icm", rgb_profile()),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_raw_profiles_of_imagemagick_are_found(kind: str, content: bytes, zipped: bool) -> None:
    digits = content.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    info = PngImagePlugin.PngInfo()
    info.add_text(f"Raw profile type {kind}", f"\n{kind}\n{len(content):8}\n{lines}\n", zipped)
    metadata = to_picture(open_image(saved(PHOTO, "PNG", pnginfo=info), "x")).metadata
    assert list(metadata.values()) == [content.removeprefix(b"http://ns.adobe.com/xap/1.0/\0")]


def test_damaged_raw_profile_is_left_out() -> None:
    image = PHOTO.copy()
    image.info["Raw profile type exif"] = "\nexif\n 3\nnot hexadecimal"
    assert to_picture(image).metadata == {}


def test_text_behind_the_pixels_of_a_png_file_is_found() -> None:
    data = saved(PHOTO, "PNG")
    text = b"eXIf" + CAMERA[6:]
    chunk = (len(text) - 4).to_bytes(4) + text + zlib.crc32(text).to_bytes(4)
    end = data.index(b"IEND") - 4
    late = Image.open(io.BytesIO(data[:end] + chunk + data[end:]))
    assert to_picture(late).metadata["exif"] == CAMERA


def test_tags_of_a_tiff_file_that_is_not_loaded_yet_are_found(tmp_path: Any) -> None:
    (tmp_path / "x.tif").write_bytes(saved(PHOTO, "TIFF", exif=CAMERA))
    with Image.open(tmp_path / "x.tif") as image:
        picture = to_picture(image)
    exif = Image.Exif()
    exif.load(picture.metadata["exif"])
    assert set(exif) == {MAKE, EXIF_IFD, GPS}  # nothing of strips; it was turned when loaded
    assert exif.get_ifd(GPS)[1] == "N"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
def test_resolution_travels(kind: str, suffix: str) -> None:
    out = open_image(through(saved(PHOTO, kind, dpi=(300, 150)), f"x.{suffix}"), "x")
    assert out.info["dpi"] == pytest.approx((300, 150), abs=0.1)


def test_resolution_that_says_nothing_costs_nothing() -> None:
    assert to_picture(open_image(saved(PHOTO, "PNG", dpi=(72, 72)), "x")).metadata == {}
    assert resolution(b"") is None
    assert resolution(b"Exif\0\0nonsense") is None


PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta
 xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"
 xmlns:Container="http://ns.google.com/photos/1.0/container/"
 xmlns:Item="http://ns.google.com/photos/1.0/container/item/"
 xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"
 xmlns:xmpNote="http://ns.adobe.com/xmp/note/"{claims}>{inside}</rdf:Description></rdf:RDF>
 </x:xmpmeta><?xpacket end="w"?>"""
DIRECTORY = """<Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource"><Container:Item
 Item:Semantic="GainMap" Item:Mime="image/jpeg" Item:Length="1500"/></rdf:li></rdf:Seq>
 </Container:Directory>"""
TITLE = "<dc:title>K\u00e4fer &amp; Co</dc:title>"


@pytest.mark.parametrize(
    ("claims", "inside", "told"),
    [
        (' hdrgm:Version="1.0"', DIRECTORY, "attached files, gain map"),
        (' GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1"', "", "video"),
        (' xmpNote:HasExtendedXMP="0123456789ABCDEF"', "", "extended XMP"),
    ],
)
def test_claims_on_what_does_not_travel_are_dropped(
    claims: str, inside: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    packet = PACKET.format(claims=claims, inside=inside + TITLE).encode()
    kept = without_claims(packet + b"\0").decode()
    assert TITLE in kept
    assert kept.startswith("<?xpacket begin=")
    assert not any(word in kept for word in ("Version", "Container:", "MotionPhoto", "HasExt"))
    assert [r.message for r in caplog.records] == [
        f"left out of the XMP: {told}, which .ecx does not store"
    ]
    assert without_claims(PACKET.format(claims=claims, inside=inside).encode()) == b""


def test_xmp_without_claims_is_kept_to_the_byte() -> None:
    for packet in (PACKET.format(claims="", inside=TITLE), "<x/>", "no XML", "<\u00e4"):
        plain = packet.replace("hdrgm", "other").replace("ns.adobe.com/hdr", "example.com/x")
        plain = plain.replace("ns.google.com", "example.com").replace("ns.adobe.com", "example.com")
        assert without_claims(plain.encode()) == plain.encode()


@pytest.mark.parametrize("content", ["<", "<!DOCTYPE a [<!ENTITY b 'b'>]><a>&b;</a>"])
def test_claims_in_what_cannot_be_read_go_with_it(content: str) -> None:
    assert without_claims(f"{content} http://ns.adobe.com/hdr-gain-map/1.0/".encode()) == b""


def test_gain_map_of_a_jpeg_file_goes_with_its_claim(caplog: pytest.LogCaptureFixture) -> None:
    packet = PACKET.format(claims=' hdrgm:Version="1.0"', inside=DIRECTORY).encode()
    assert to_picture(open_image(saved(PHOTO, "JPEG", xmp=packet), "x")).metadata == {}
    assert "gain map" in caplog.text


@pytest.mark.parametrize("name", ["exif", "xmp"])
def test_metadata_too_long_for_jpeg_are_left_out_with_a_line(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E] = SIDEWAYS, "long " * 20000
    value = exif.tobytes() if name == "exif" else b"<x/>" * 20000
    source = saved(PHOTO, "PNG", exif=value) if name == "exif" else saved(PHOTO, "WEBP", xmp=value)
    out = through(source, "x.jpg")
    word = {"exif": "EXIF", "xmp": "XMP"}[name]
    assert f"x.jpg: left out of the JPEG file: {word} of {len(value)} bytes" in caplog.text
    if name == "exif":  # but not how it is to be turned
        assert open_image(out, "x").getexif()[ORIENTATION] == SIDEWAYS
    caplog.clear()
    assert name in open_image(through(source, "x.png"), "x").info
    assert not caplog.text


def test_profile_of_grey_travels_with_grey_and_is_applied_where_grey_becomes_rgb(
    caplog: pytest.LogCaptureFixture,
) -> None:
    profile = grey_profile(1.0)
    source = saved(Image.fromarray(GREY), "PNG", icc_profile=profile)
    again = open_image(through(source, "x.png"), "x")
    assert (again.mode, again.info["icc_profile"]) == ("L", profile)
    assert not caplog.text
    out = open_image(through(source, "x.webp"), "x")
    assert "icc_profile" not in out.info
    assert "converted to sRGB" in caplog.text
    linear = GREY / 255.0
    expected = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(out)[:, :, 1] - 255 * expected).max() < 1.5


def test_cmyk_is_converted_through_its_profile(caplog: pytest.LogCaptureFixture) -> None:
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    picture = to_picture(open_image(saved(ink, "TIFF", icc_profile=cmyk_profile()), "x"))
    assert (picture.mode, picture.metadata) == ("RGB", {})
    shown = np.asarray(picture.pixels)[0, 0].astype(int)
    assert np.abs(shown - 185).max() <= 3  # L* = 75, no hue: not the cyan of the plain formula
    assert [r.message for r in caplog.records] == [
        "the colours were converted from CMYK to sRGB through their profile"
    ]
    source, srgb = io.BytesIO(cmyk_profile()), ImageCms.createProfile("sRGB")
    expected = ImageCms.profileToProfile(ink, source, srgb, outputMode="RGB")
    assert (np.asarray(picture.pixels) == np.asarray(expected)).all()


@pytest.mark.parametrize("profile", [b"", bytes(16) + b"CMYK" + bytes(200), rgb_profile()])
def test_cmyk_without_a_profile_that_is_one_is_told(
    profile: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    ink.info["icc_profile"] = profile
    picture = to_picture(ink)
    assert np.asarray(picture.pixels)[0, 0].tolist() == [0, 255, 255]
    assert picture.metadata == {}
    assert "without a profile" in caplog.text


@pytest.mark.parametrize(("mode", "profile"), [("L", rgb_profile()), ("RGB", grey_profile(2.2))])
def test_profile_for_other_colours_is_left_out_with_a_line(
    mode: str, profile: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    image = PHOTO.convert(mode)
    image.info["icc_profile"] = profile
    assert to_picture(image).metadata == {}
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
