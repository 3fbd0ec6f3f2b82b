"""Image files: opened, checked, written, and read as photos."""

from __future__ import annotations

import io
import random
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.coding import image_files
from edgecodec.coding.image_files import (
    check_output,
    expand_images,
    image_bytes,
    load_rgb,
    open_image,
    quality_of,
)
from edgecodec.coding.pictures import from_samples, to_picture
from edgecodec.converters.sources.photos import read_photo
from edgecodec.errors import ConfigError
from edgecodec.training.photos import load_photos
from tests.coding.test_pictures import EXIF, RGB, opaque
from tests.support.streams import mutated


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
def test_damaged_metadata_keep_no_picture_back(
    suffix: str, recwarn: pytest.WarningsRecorder
) -> None:
    """What a file says of its picture is not to be trusted: EXIF that is none, and worse."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    good = exif.tobytes()
    source = random.Random(1)
    damaged = [b"|\xd4\x02\x00\x01\xc0\xf8\x05", b"Exif\0\0", *(good[:n] for n in range(len(good)))]
    damaged += [mutated(good, source) for _ in range(100)]
    made = []
    for content in damaged:
        image = Image.new("RGB", (3, 2), (10, 200, 30))
        image.info.update(exif=content, xmp=content, icc_profile=content)
        made.append(image_bytes(image, f"x{suffix}"))
    assert not recwarn.list
    warnings.simplefilter("ignore")
    assert {tuple(sorted(Image.open(io.BytesIO(data)).size)) for data in made} == {(2, 3)}


def test_picture_too_wide_for_jpeg_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="65500 pixels per side"):
        image_bytes(Image.new("RGB", (65501, 1)), "x.jpg")
    assert image_bytes(Image.new("RGB", (65500, 1)), "x.jpg")
    assert capfd.readouterr() == ("", "")


def test_load_rgb_turns_upright_and_drops_alpha(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert load_rgb(tmp_path / "turned.png").shape == (4, 2, 3)
    Image.new("RGBA", (3, 2), (1, 2, 3, 0)).save(tmp_path / "alpha.png")
    assert load_rgb(tmp_path / "alpha.png")[0, 0].tolist() == [1, 2, 3]


def test_load_rgb_names_the_file_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "absent.png"):
        with pytest.raises(ConfigError, match=name):
            load_rgb(tmp_path / name)


def test_every_command_reads_a_photo_as_encode_does(tmp_path: Path) -> None:
    """Turned by EXIF, 16-bit grey: what `train`, `--calibration` and `eval` get of it."""
    levels = np.tile(np.arange(64, dtype=np.uint8), (32, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png", exif=exif)
    data = (tmp_path / "deep.png").read_bytes()
    taken = np.asarray(to_picture(open_image(data, "deep.png")).pixels)
    assert (taken[:, :, 0] == levels).all()
    expected = np.rot90(taken, -1)
    assert (load_rgb(tmp_path / "deep.png") == expected).all()
    assert (load_photos([tmp_path])[0] == expected).all()
    assert (read_photo(tmp_path / "deep.png") == expected).all()


def near(data: bytes) -> float:
    with Image.open(io.BytesIO(data)) as image:
        return float(np.abs(np.asarray(image.convert("RGB"), np.float64) - NOISE).max())


LOSSY = [s for s in (".jpg", ".webp", ".avif") if s in Image.registered_extensions()]
NOISE = np.kron(np.random.default_rng(5).integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1)))


@pytest.mark.parametrize("suffix", LOSSY)
def test_lossy_formats_lose_little_unless_asked_to(suffix: str) -> None:
    image = Image.fromarray(NOISE.astype(np.uint8))
    usual, small = image_bytes(image, f"x{suffix}"), image_bytes(image, f"x{suffix}", 20)
    assert near(usual) < 40 < near(small)  # with chroma of half the size it would be above 100
    assert len(small) < len(usual)
    assert quality_of(f"x{suffix}") == (100 if suffix == ".webp" else 95)
    assert quality_of(f"x{suffix}", 20) == 20
    assert quality_of("-") is None


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
JXL = b"\xff\x0a" + bytes(100)


@pytest.mark.parametrize(
    ("data", "suffix", "package"),
    [(HEIC, ".heic", "pillow-heif"), (JXL, ".jxl", "pillow-jxl-plugin")],
)
def test_format_of_a_plug_in_that_is_missing_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes, suffix: str, package: str
) -> None:
    monkeypatch.setattr(image_files, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"^photo: needs a plug-in .* pip install {package}$"):
        open_image(data, "photo")
    with pytest.raises(ConfigError, match=f"pip install {package}$"):
        check_output(f"x{suffix}")
    (tmp_path / f"x{suffix}").write_bytes(data)
    with pytest.raises(ConfigError, match="no images"):
        expand_images([str(tmp_path)])


def test_plug_in_that_is_installed_is_loaded_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that reads `ftypheic` as red and writes it, in the way of the real one."""
    (tmp_path / "edgecodec_test_heif.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = image_files.Plugin("edgecodec_test_heif", "x", "register")
    monkeypatch.setattr(image_files, "HEIF", plugin)
    monkeypatch.setitem(image_files.PLUGINS, ".heic", plugin)
    for table in ("ID", "OPEN", "SAVE", "EXTENSION"):
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())
    (tmp_path / "x.heic").write_bytes(HEIC)
    assert expand_images([str(tmp_path)]) == [tmp_path / "x.heic"]
    assert "edgecodec_test_heif" not in sys.modules
    assert (load_rgb(tmp_path / "x.heic") == (255, 0, 0)).all()
    check_output("out.heic", 50)
    assert image_bytes(Image.new("RGB", (4, 4)), "out.heic") == b"quality 95"


PLUGIN = """
from PIL import Image, ImageFile

class Heif(ImageFile.ImageFile):
    format = "HEIF"
    def _open(self):
        self._size, self._mode = (4, 4), "RGB"
    def load(self):
        self.im = Image.new("RGB", (4, 4), "red").im

def save(image, file, name):
    file.write(b"quality %d" % image.encoderinfo["quality"])

def register():
    Image.register_open("HEIF", Heif, lambda prefix: prefix[4:12] == b"ftypheic")
    Image.register_save("HEIF", save)
    Image.register_extension("HEIF", ".heic")
"""


def test_folder_that_is_named_like_a_picture_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b.png").write_bytes(b"")
    assert expand_images([str(tmp_path)]) == [tmp_path / "b.png"]
