"""Which photos a conversion is checked on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

from edgecodec.converters.sources.photos import (
    ENOUGH_PHOTOS,
    MAX_PHOTOS,
    load_calibration,
    read_photo,
    telling,
)
from edgecodec.errors import ConversionError


def save(path: Path, height: int, width: int, value: int = 0) -> Path:
    """Write a ramp that begins with a value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.broadcast_to(np.arange(width) % 128 + value, (height, width))
    Image.fromarray(ramp.astype(np.uint8)).save(path)
    return path


def quiet(line: str) -> None:
    """Take no notice."""


def test_photos_are_spread_over_the_folder_and_named_after_it(tmp_path: Path) -> None:
    for i in range(40):
        save(tmp_path / "set" / f"{i % 2}" / f"{i:02}.png", 32, 64, i)
    (tmp_path / "set" / "readme.txt").write_text("no photo")
    found = load_calibration(tmp_path / "set", quiet)
    assert (len(found.photos), found.source) == (MAX_PHOTOS, "set")
    values = [int(photo[0, 0, 0]) for photo in found.photos]
    assert len(set(values)) == MAX_PHOTOS
    assert {value % 2 for value in values} == {0, 1}
    description = found.describe()
    assert description["photos"] == MAX_PHOTOS
    assert description == load_calibration(tmp_path / "set", quiet).describe()
    assert str(tmp_path) not in str(description)


def test_photos_are_cut_to_the_middle_and_to_multiples_of_32(tmp_path: Path) -> None:
    assert read_photo(save(tmp_path / "a.png", 70, 1000)).shape == (64, 512, 3)
    assert read_photo(save(tmp_path / "b.png", 32, 32)).shape == (32, 32, 3)


def test_one_photo_may_be_named(tmp_path: Path) -> None:
    assert len(load_calibration(save(tmp_path / "a.png", 64, 64), quiet).photos) == 1


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no such folder"):
        load_calibration(tmp_path / "none", quiet)
    with pytest.raises(ConversionError, match="holds no photos"):
        load_calibration(tmp_path, quiet)
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    with pytest.raises(ConversionError, match=r"bad\.jpg: not an image"):
        load_calibration(tmp_path, quiet)
    with pytest.raises(ConversionError, match=r"small\.png: smaller than 32 pixels"):
        read_photo(save(tmp_path / "small.png", 31, 100))


def test_a_corrupt_photo_among_good_ones_is_named_and_left_out(tmp_path: Path) -> None:
    for name in "ac":
        save(tmp_path / f"{name}.png", 32, 32)
    (tmp_path / "b.jpg").write_bytes(b"nonsense")
    save(tmp_path / "small.png", 8, 8)
    told: list[str] = []
    assert len(load_calibration(tmp_path, told.append).photos) == 2
    assert [line.split(":")[0] for line in told[:2]] == ["LEFT OUT", "LEFT OUT"]
    assert "b.jpg: not an image" in told[0]
    assert "small.png: smaller" in told[1]
    assert told[2].startswith("read 2 of 4 photos")
    for name in "ac":
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(ConversionError, match="no photo that can be used"):
        load_calibration(tmp_path, quiet)


@pytest.mark.parametrize("error", [RuntimeError("Missing image item"), KeyError(), EOFError()])
def test_whatever_a_damaged_photo_raises_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A damaged AVIF file raises RuntimeError, whatever its suffix."""

    def load(self: Image.Image) -> None:
        raise error

    path = save(tmp_path / "a.png", 32, 32)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ConversionError, match=r"a\.png: the image is damaged \([A-Z]"):
        read_photo(path)


def test_ranges_and_losses_see_different_photos(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png", 32, 32, i)
    found = load_calibration(tmp_path, quiet)
    assert [int(p[0, 0, 0]) for p in found.for_ranges] == [0, 2, 4]
    assert [int(p[0, 0, 0]) for p in found.held_out[:2]] == [1, 3]


def test_few_photos_are_joined_by_the_demo_photo_where_losses_are_measured(tmp_path: Path) -> None:
    for i in range(ENOUGH_PHOTOS):
        save(tmp_path / f"{i:02}.png", 32, 32, i)
    assert len(load_calibration(tmp_path, quiet).held_out) == ENOUGH_PHOTOS // 2
    (tmp_path / "00.png").unlink()
    few = load_calibration(tmp_path, quiet)
    assert few.held_out[:-1] == few.photos[1::2]
    assert few.held_out[-1] is few.demo
    one = load_calibration(tmp_path / "03.png", quiet)
    assert one.for_ranges == one.photos
    assert one.held_out == (one.demo,)
    assert replace(one, demo=None).held_out == one.photos
    none = load_calibration(None, quiet)
    assert none.for_ranges == none.held_out == (none.demo,)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((64, 64, 3)), "black.png: of a single colour, which tells nothing about photos"),
        (np.full((64, 64, 3), [9, 99, 199]), "of a single colour"),
        (np.random.default_rng(0).integers(0, 256, (64, 64, 3)), "noise, which tells nothing"),
    ],
)
def test_photos_that_tell_nothing_are_named_and_left_out(
    pixels: npt.NDArray[np.int64], reason: str, tmp_path: Path
) -> None:
    save(tmp_path / "a.png", 64, 64)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "black.png")
    told: list[str] = []
    assert len(load_calibration(tmp_path, told.append).photos) == 1
    assert told[0].startswith("LEFT OUT")
    assert reason in told[0]
    with pytest.raises(ConversionError, match=reason):
        load_calibration(tmp_path / "black.png", quiet)


def test_photos_of_all_kinds_tell_something() -> None:
    demo = load_calibration(None, quiet).photos[0]
    rng = np.random.default_rng(0)
    for kind in (demo // 8, 255 - demo // 8, demo.mean(2).astype(np.uint8)[..., None].repeat(3, 2)):
        grain = np.clip(kind + rng.normal(0, 2, demo.shape), 0, 255).astype(np.uint8)
        assert telling(grain, Path("x")) is grain
