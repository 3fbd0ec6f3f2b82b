"""What the commands share."""

from __future__ import annotations

from pathlib import Path

from edgecodec.cli.common import expand_images, show_numbers


def test_show_numbers_joins_runs() -> None:
    assert show_numbers([]) == ""
    assert show_numbers([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert show_numbers(range(1, 100, 2)) == "1, 3, 5, 7, 9, 11, 13, 15, 17, 19, ..."


def test_folder_that_is_named_like_a_picture_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b.png").write_bytes(b"")
    assert expand_images([str(tmp_path)]) == [tmp_path / "b.png"]
