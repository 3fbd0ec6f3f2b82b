"""Text in columns, for terminals."""

from __future__ import annotations

from collections.abc import Container, Sequence


def align(
    rows: Sequence[Sequence[str] | str], *, left: Container[int] = (0,), indent: str = ""
) -> list[str]:
    r"""Return a line per row with cells of a column under each other.

    Args:
        rows: cells, as many in each; a plain string is a line of its own that sets no width.
        left: columns set to the left; all others are set to the right, as numbers are.
        indent: before every row of cells.

    >>> print("\n".join(align([("stage", "ms"), ("encode", "9.5"), "and", ("decode", "10.5")])))
    stage     ms
    encode   9.5
    and
    decode  10.5
    """
    columns = zip(*(row for row in rows if not isinstance(row, str)), strict=True)
    widths = [max(map(len, column)) for column in columns]
    return [row if isinstance(row, str) else _line(row, widths, left, indent) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int], left: Container[int], indent: str) -> str:
    cells = (
        cell.ljust(width) if column in left else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return (indent + "  ".join(cells)).rstrip()
