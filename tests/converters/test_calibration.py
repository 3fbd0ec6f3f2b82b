"""Which photos a conversion is checked on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.converters.calibration import MAX_PHOTOS, load_calibration, read_photo
from edgecodec.errors import ConversionError


def save(path: Path, height: int, width: int, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width), value, np.uint8)).save(path)
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
    with pytest.raises(ConversionError, match=r"bad\.jpg: not a readable photo"):
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
    assert "b.jpg: not a readable photo" in told[0]
    assert "small.png: smaller" in told[1]
    assert told[2].startswith("read 2 of 4 photos")
    for name in "ac":
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(ConversionError, match="no photo that can be used"):
        load_calibration(tmp_path, quiet)


def test_ranges_and_losses_see_different_photos(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png", 32, 32, i)
    found = load_calibration(tmp_path, quiet)
    assert [int(p[0, 0, 0]) for p in found.for_ranges] == [0, 2, 4]
    assert [int(p[0, 0, 0]) for p in found.held_out] == [1, 3]
    one = load_calibration(tmp_path / "3.png", quiet)
    assert one.for_ranges == one.held_out == one.photos
