"""What the commands share."""

from __future__ import annotations

from edgecodec.cli.common import show_numbers


def test_show_numbers_joins_runs() -> None:
    assert show_numbers([]) == ""
    assert show_numbers([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert show_numbers(range(1, 100, 2)) == "1, 3, 5, 7, 9, 11, 13, 15, 17, 19, ..."
