"""Crops side by side: which pictures, which places, at which bytes."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.evaluation.classical import AVIF, JPEG
from edgecodec.evaluation.crops import HEIGHT, WIDTH, SideBySide, worst_crops
from edgecodec.evaluation.evaluate import Evaluation, evaluate
from edgecodec.evaluation.page import render_page

DEMO = Path(__file__).parents[2] / "edgecodec" / "data" / "demo.png"


class Spoiling:
    """JPEG whose decoder blackens a square."""

    def encode(self, image: UInt8Array, *, quality: int) -> bytes:
        return JPEG.encode(image, quality)

    def decode(self, data: bytes) -> UInt8Array:
        pixels = JPEG.decode(data).copy()
        pixels[-40:-8, 8:40] = 0
        return pixels


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    boxes = {"large": (100, 90, 500, 360), "small": (400, 100, 520, 200), "tiny": (0, 0, 30, 7)}
    with Image.open(DEMO) as image:
        for name, box in boxes.items():
            image.crop(box).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in boxes]


@pytest.fixture(scope="module")
def evaluation(images: list[Path]) -> Evaluation:
    return evaluate(images, Spoiling(), (20, 60, 95), against=(), metrics=("psnr", "ssimulacra2"))


@pytest.fixture(scope="module")
def crops(evaluation: Evaluation, images: list[Path]) -> tuple[SideBySide, ...]:
    return worst_crops(evaluation, images, Spoiling(), 2)


def test_the_worst_pictures_come_first(
    evaluation: Evaluation, crops: tuple[SideBySide, ...]
) -> None:
    scores = {r.image: r.scores["ssimulacra2"] for r in evaluation.rows if r.quality == 60}
    assert scores["tiny.png"] is None
    assert [c.image for c in crops] == ["small.png", "large.png"]
    assert [c.sides[1].scores["ssimulacra2"] for c in crops] == [
        scores["small.png"], scores["large.png"]
    ]  # fmt: skip


def test_a_crop_is_where_ours_differs_most(crops: tuple[SideBySide, ...]) -> None:
    small, large = crops
    assert (small.x, small.y, small.sides[0].crop.shape) == (0, 0, (100, 120, 3))
    assert {side.crop.shape for side in large.sides} == {(HEIGHT, WIDTH, 3)}
    assert large.x <= 8
    assert large.y + HEIGHT >= 270 - 8
    original, ours = large.sides[:2]
    assert (original.title, ours.title) == ("original", "edgecodec q60")
    with Image.open(DEMO) as image:
        left, top = 100 + large.x, 90 + large.y
        expected = np.asarray(image.convert("RGB").crop((left, top, left + WIDTH, top + HEIGHT)))
    assert np.array_equal(original.crop, expected)
    assert (np.asarray(ours.crop) == 0).all(2).sum() >= 32 * 32


@pytest.mark.skipif(not AVIF.available(), reason="this Pillow has no AVIF")
def test_others_spend_no_more_bytes_and_nearly_as_many(crops: tuple[SideBySide, ...]) -> None:
    ours, avif = crops[1].sides[1:3]
    assert avif.title.startswith("AVIF q")
    assert ours.bytes is not None
    assert avif.bytes is not None
    assert 0.9 * ours.bytes <= avif.bytes <= ours.bytes


def test_page_holds_the_crops_without_loss(
    evaluation: Evaluation, crops: tuple[SideBySide, ...]
) -> None:
    page = render_page(evaluation, crops=crops)
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    sides = [side for comparison in crops for side in comparison.sides]
    assert len(found) == len(sides)
    for text, side in zip(found, sides, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert np.array_equal(np.asarray(image), side.crop)
    assert f"{sides[1].bytes:,} bytes" in page
    assert "Side by side" not in render_page(evaluation)
