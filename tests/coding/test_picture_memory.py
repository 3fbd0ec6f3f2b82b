"""Pillow takes over the memory of decoded pixels, and nobody else sees or changes it."""

from __future__ import annotations

import sys

import numpy as np
import PIL
import pytest
from PIL import Image

from edgecodec.coding import pictures as image_module
from edgecodec.coding.pictures import from_samples
from tests.coding.test_pictures import RGB, opaque

needs_sharing = pytest.mark.skipif(
    image_module.sharing() is None, reason="needs Pillow 13 and the C core"
)


@needs_sharing
def test_image_takes_over_the_memory_of_samples() -> None:
    samples = opaque(RGB)
    image = from_samples(samples, "RGB", {})
    samples[2, 3, 0] ^= 255
    assert image.getpixel((3, 2)) == tuple(samples[2, 3, :3])


def test_image_outlives_its_samples_and_is_copied_when_written_to() -> None:
    samples = np.concatenate([opaque(RGB)] * 4000)
    expected = samples.copy()
    image = from_samples(samples, "RGB", {})
    del samples
    junk = [np.full(expected.shape, n, np.uint8) for n in range(8)]  # takes memory that was freed
    assert (np.asarray(image) == expected[..., :3]).all()
    other = image.copy()
    image.putpixel((0, 0), (1, 2, 3))
    image.paste((9, 9, 9), (1, 1, 3, 3))
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert (np.asarray(other) == expected[..., :3]).all()
    assert len(junk) == 8


def test_memory_is_given_back_with_the_image() -> None:
    samples = opaque(RGB)
    held = sys.getrefcount(samples)
    for _ in range(50):
        image = from_samples(samples, "RGB", {})
        image.crop((0, 0, 2, 2)).load()
        if image_module._share_core is not None:
            image_module._share_core(samples)  # capsules that nobody takes
    assert sys.getrefcount(samples) <= held + 1
    del image
    assert sys.getrefcount(samples) == held


@pytest.mark.parametrize("missing", ["core", "sharing"])
def test_image_without_shared_memory_is_the_same(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "core":
        monkeypatch.setattr(image_module, "_share_core", None)
    else:
        monkeypatch.setattr(PIL, "__version__", "12.3.0")
    assert image_module.sharing() is None
    samples = opaque(RGB)
    image = from_samples(samples, "RGB", {"icc_profile": b"x"})
    assert (np.asarray(image) == RGB).all()
    assert image.info == {"icc_profile": b"x"}
    assert image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    samples[...] = 0
    assert (np.asarray(image) == RGB).all()


@pytest.mark.parametrize(
    ("version", "shared"),
    [("10.3.0", False), ("11.2.1", False), ("12.3.0", False), ("13.0.0", True), ("14.1", True),
     ("odd", False)],
)  # fmt: skip
def test_memory_is_shared_from_the_first_pillow_that_bears_it(
    version: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PIL, "__version__", version)
    monkeypatch.setattr(
        image_module, "_share_core", image_module._share_core or (lambda _: ((), ()))
    )
    assert (image_module.sharing() is not None) == shared


@needs_sharing
def test_shared_images_can_be_exported_again() -> None:
    image = from_samples(opaque(RGB), "RGB", {})
    again = Image.fromarrow(image, "RGB", image.size)
    further = Image.fromarrow(again, "RGB", image.size)
    del image, again
    assert (np.asarray(further) == RGB).all()


def test_what_cannot_be_shared_is_refused() -> None:
    if image_module._share_core is None:
        pytest.skip("needs the C core")
    with pytest.raises((BufferError, ValueError)):
        image_module._share_core(opaque(RGB)[:, ::2])
    with pytest.raises(TypeError):
        image_module._share_core("no bytes")  # type: ignore[arg-type]
