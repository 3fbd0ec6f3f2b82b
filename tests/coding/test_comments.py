"""Comments of files travel in EXIF, which is otherwise as it was."""

from __future__ import annotations

import io

import pytest
from PIL import Image, PngImagePlugin

from edgecodec.coding.image_files import decode_rgb, open_image
from edgecodec.coding.pictures import to_picture
from tests.coding.test_metadata import CAMERA, EXIF_IFD, GPS, MAKE, PHOTO, saved, through

DESCRIPTION, ARTIST, COPYRIGHT, COMMENT, DATE = 270, 315, 33432, 0x9286, 0x9003
TEXTS = {
    "Title": "K\u00e4fer",
    "Description": "on a leaf",
    "Author": "Ada",
    "Copyright": "\u00a9 A",
}


def png(texts: dict[str, str], exif: bytes = b"") -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    return saved(PHOTO, "PNG", pnginfo=info, exif=exif)


def exif_of(data: bytes) -> Image.Exif:
    return open_image(data, "x").getexif()


def utf8(text: object) -> str:
    return str(text).encode("latin-1").decode()  # as Pillow reads what EXIF holds


@pytest.mark.parametrize("exif", [b"", CAMERA])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_texts_of_a_png_file_travel(exif: bytes, suffix: str) -> None:
    data = png({**TEXTS, "Comment": "said \u00fc", "Software": "Pen 1"}, exif)
    found = exif_of(through(data, f"x.{suffix}"))
    if suffix != "tif":  # Pillow takes what a TIFF file is given apart and keeps ASCII
        assert utf8(found[DESCRIPTION]) == "K\u00e4fer\non a leaf"
        assert utf8(found[COPYRIGHT]) == "\u00a9 A"
    assert found[ARTIST] == "Ada"
    assert found.get_ifd(EXIF_IFD)[COMMENT] == b"UNICODE\0" + "said \u00fc".encode("utf-16-be")
    if exif:
        assert found[MAKE] == "Acme"
        assert found.get_ifd(EXIF_IFD)[DATE] == "2020:01:02 03:04:05"
        assert found.get_ifd(GPS)[1] == "N"


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_comment_of_a_jpeg_or_gif_file_travels(kind: str) -> None:
    data = saved(PHOTO.convert("P") if kind == "GIF" else PHOTO, kind, comment=b"hello")
    if kind == "JPEG":  # of several all
        data = data[:2] + b"\xff\xfe\0\7first" + data[2:]
    found = exif_of(through(data)).get_ifd(EXIF_IFD)[COMMENT]
    assert found == b"ASCII\0\0\0" + (b"first\n" if kind == "JPEG" else b"") + b"hello"


def test_what_was_in_exif_stays_to_the_byte_and_blanks_are_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exif = Image.Exif()
    exif[DESCRIPTION], exif[ARTIST], exif[COPYRIGHT] = "   ", "Bob", "\0"
    exif[EXIF_IFD] = {COMMENT: b"ASCII\0\0\0" + b" " * 9, 0x927C: b"note of a camera"}
    old = exif.tobytes()
    new = to_picture(open_image(png({**TEXTS, "Comment": "said"}, old), "x")).metadata["exif"]
    assert new[14 : len(old)] == old[14:]  # behind the prefix and the header
    found = Image.Exif()
    found.load(new)
    assert utf8(found[DESCRIPTION]) == "K\u00e4fer\non a leaf"
    assert found[ARTIST] == "Bob"
    assert found.get_ifd(EXIF_IFD)[COMMENT] == b"ASCII\0\0\0said"
    assert found.get_ifd(EXIF_IFD)[0x927C] == b"note of a camera"
    assert [r.message for r in caplog.records] == [
        "comments were left out: the EXIF is damaged or says another Artist"
    ]
    caplog.clear()
    again = to_picture(open_image(png({"Author": "Bob"}, old), "x")).metadata["exif"]
    assert (again, caplog.text) == (old, "")


@pytest.mark.parametrize("damaged", [b"Exif\0\0x", b"Exif\0\0MM\0*\0\0\xff\xff"])
def test_damaged_exif_is_left_alone(damaged: bytes, caplog: pytest.LogCaptureFixture) -> None:
    image = PHOTO.copy()
    image.info |= {"exif": damaged, "Author": "Ada"}
    assert to_picture(image).metadata == {"exif": damaged}
    assert "another Artist" in caplog.text


@pytest.mark.parametrize("texts", [{}, {"Software": "Pen 1", "Comment": " ", "date": "x"}])
def test_picture_without_a_comment_gets_no_exif(texts: dict[str, str]) -> None:
    assert to_picture(open_image(png(texts), "x")).metadata == {}
    assert to_picture(open_image(saved(PHOTO, "JPEG"), "x")).metadata == {}


@pytest.mark.parametrize(
    ("content", "told"), [(b"\x1c\2\0\0\2\0\4", False), (b"\x1c\2\0\0\2\0\4\x1c\2\x78\0\1x", True)]
)
def test_iptc_is_told(content: bytes, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    block = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0" + len(content).to_bytes(4) + content
    block += bytes(len(content) % 2)
    data = saved(PHOTO, "JPEG")
    data = data[:2] + b"\xff\xed" + (len(block) + 2).to_bytes(2) + block + data[2:]
    assert to_picture(open_image(data, "x")).metadata == {}
    assert ("left out: captions in the form of IPTC" in caplog.text) == told
    with io.BytesIO(data) as file, Image.open(file) as image:
        assert "photoshop" in image.info
    caplog.clear()
    decode_rgb(data, "x")  # who asks for pixels is told nothing of what goes with them
    assert not caplog.text


def test_description_of_a_tiff_file_need_not_be_ascii() -> None:
    exif = Image.Exif()
    exif[DESCRIPTION] = "K\u00e4fer".encode()
    found = exif_of(through(saved(PHOTO, "TIFF", exif=exif)))
    assert utf8(found[DESCRIPTION]) == "K\u00e4fer"
