"""SSIMULACRA2 against scores of the `ssimulacra2` package of PyPI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.errors import ConfigError
from edgecodec.evaluation.ssimulacra2 import ssimulacra2

DEMO = Path(__file__).parents[2] / "edgecodec" / "data" / "demo.png"
Damage = Callable[[UInt8Array], UInt8Array]


def poster(image: UInt8Array, step: int) -> UInt8Array:
    return image // step * step + np.uint8(step // 2)


def noisy(image: UInt8Array, sigma: int) -> UInt8Array:
    noise = np.random.default_rng(0).integers(-sigma, sigma + 1, image.shape)
    disturbed: UInt8Array = (image + noise).clip(0, 255).astype(np.uint8)
    return disturbed


def blurred(image: UInt8Array) -> UInt8Array:
    wide = np.pad(image.astype(np.int32), ((2, 2), (2, 2), (0, 0)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(wide, (5, 5), (0, 1))
    mean: UInt8Array = (around.sum((3, 4)) // 25).astype(np.uint8)
    return mean


def tinted(image: UInt8Array) -> UInt8Array:
    moved: UInt8Array = (image + np.array([6, 0, -9])).clip(0, 255).astype(np.uint8)
    return moved


DAMAGES: dict[str, Damage] = {
    "poster 4": lambda image: poster(image, 4),
    "poster 32": lambda image: poster(image, 32),
    "noise 3": lambda image: noisy(image, 3),
    "noise 30": lambda image: noisy(image, 30),
    "blurred": blurred,
    "tinted": tinted,
}
REFERENCE = {
    "poster 4": (93.936, 94.004),
    "poster 32": (1.9192, 18.5315),
    "noise 3": (90.2379, 90.3241),
    "noise 30": (19.5129, 22.9952),
    "blurred": (38.5861, 30.164),
    "tinted": (91.7195, 91.4793),
}
"""Scores by `ssimulacra2` 0.3.0 of PyPI, by damage: of two crops."""


def crops() -> tuple[UInt8Array, UInt8Array]:
    with Image.open(DEMO) as image:
        photo = np.asarray(image.convert("RGB"))
    return photo[100:356, 200:520], photo[201:460, 401:702]


@pytest.mark.parametrize("damage", DAMAGES)
def test_scores_are_those_of_the_reference(damage: str) -> None:
    for image, expected in zip(crops(), REFERENCE[damage], strict=True):
        assert ssimulacra2(image, DAMAGES[damage](image)) == pytest.approx(expected, abs=0.05)


def test_scores_are_those_of_the_installed_reference(tmp_path: Path) -> None:
    reference = pytest.importorskip("ssimulacra2")
    image = crops()[1]
    worse = poster(blurred(image), 16)
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for path, pixels in zip(paths, (image, worse), strict=True):
        Image.fromarray(pixels).save(path)
    expected = reference.compute_ssimulacra2(*paths)
    assert ssimulacra2(image, worse) == pytest.approx(expected, abs=0.05)


def test_identical_pictures_score_a_hundred() -> None:
    image = crops()[1]
    assert ssimulacra2(image, image) == 100.0


def test_small_pictures_have_a_score_and_tiny_ones_none() -> None:
    image = crops()[0]
    assert ssimulacra2(image[:8, :9], noisy(image, 9)[:8, :9]) < 100
    with pytest.raises(ConfigError, match="SSIMULACRA2 needs at least 8 pixels"):
        ssimulacra2(image[:7], image[:7])
    with pytest.raises(ConfigError, match="differ in shape"):
        ssimulacra2(image, image[:-1])
    with pytest.raises(ConfigError, match="uint8"):
        ssimulacra2(image.astype(np.float32), image)
