"""Columns of text."""

from __future__ import annotations

import pytest

from edgecodec.text_table import align


def test_cells_stand_under_each_other_names_left_and_numbers_right() -> None:
    rows = [("stage", "ms", "by"), ("encode", "9.5", "a"), ("x", "10.5", "bc")]
    assert align(rows, left=(0, 2), indent="  ") == [
        "  stage     ms  by",
        "  encode   9.5  a",
        "  x       10.5  bc",
    ]


def test_plain_text_between_the_rows_sets_no_width() -> None:
    assert align([("a", "1"), "and a long line", "", ("b", "22")]) == [
        "a   1",
        "and a long line",
        "",
        "b  22",
    ]
    assert align([]) == []


def test_rows_must_have_as_many_cells() -> None:
    with pytest.raises(ValueError, match="shorter"):
        align([("a", "1"), ("b",)])
