"""Pictures of tests/data/field: each comes back by its right value, told in the README there."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.codec import Codec
from edgecodec.coding.image_files import decode_rgb, image_bytes, open_image
from edgecodec.coding.pictures import to_srgb
from edgecodec.evaluation.metrics import psnr_rgb

FOLDER = Path(__file__).parents[1] / "data" / "field"
MAKE = 0x010F
NEAR = 30.0
"""dB of what came back from what is right; what was wrong was 12 to 20 dB off, or on its side."""
TOLD = {
    "cw.webp": "",
    "rawexif.png": "",
    "meta.tif": "",
    "f01.tif": "",
    "grey_gray.png": "",
    "uhdr.jpg": "left out of the XMP: ",
}


def as_shown(image: Image.Image) -> UInt8Array:
    """Return (H, W, 3) uint8 as a viewer that knows colour profiles shows it."""
    profile = image.info.get("icc_profile")
    shown = to_srgb(image, profile) if profile else None
    return np.asarray((shown or image).convert("RGB"))


def right(name: str) -> UInt8Array:
    """Return what is to be seen, (H, W, 3) uint8, from Pillow and NumPy alone."""
    with Image.open(FOLDER / name) as image:
        image.load()
        if name == "f01.tif":
            return np.repeat(np.rint(np.asarray(image) * 255.0).astype(np.uint8)[:, :, None], 3, 2)
        pixels = as_shown(image)
    # Of a TIFF file Pillow turns the pixels itself.
    return np.rot90(pixels, -1) if name in ("cw.webp", "rawexif.png") else pixels


def test_all_are_tested() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {"README.md", *TOLD}


@pytest.mark.parametrize("name", sorted(TOLD))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_picture_from_the_field_comes_back_right(
    name: str, suffix: str, codec: Codec, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = codec.encode(open_image((FOLDER / name).read_bytes(), name), quality=90)
    assert ("".join(r.message for r in caplog.records)).startswith(TOLD[name])
    assert len(caplog.records) == bool(TOLD[name])
    data = image_bytes(codec.decode(encoded), f"x.{suffix}")
    out = open_image(data, "out")
    profile = out.info.get("icc_profile")
    pixels = as_shown(out) if profile else decode_rgb(data, "out")
    expected = right(name)
    assert pixels.shape == expected.shape
    assert psnr_rgb(pixels, expected) > NEAR
    if name == "grey_gray.png":
        assert bool(profile) == (suffix in ("jpg", "png"))
    if name in ("cw.webp", "rawexif.png", "meta.tif") and suffix != "bmp":
        assert out.getexif()[MAKE] == "Acme"
    if name == "meta.tif" and suffix != "bmp":
        assert b"Hallo" in out.info["xmp"]
    if name == "uhdr.jpg":
        assert b"hdrgm" not in data
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 1
