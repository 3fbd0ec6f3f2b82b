"""Windows over an image: each tile is computed with enough context that no seam can show.

A window is a tile plus a halo, cut at the borders of the padded image, so that the networks' own
zero padding happens exactly where it would for the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edgecodec.format.container import Tile
from edgecodec.format.strides import HYPER_STRIDE, padded_side

_Scalar = TypeVar("_Scalar", bound=np.generic)


class Pixels(Protocol):
    """What gives parts of a picture as arrays (h, w, 3) uint8; an array of it does."""

    def __getitem__(self, part: tuple[slice, slice], /) -> npt.NDArray[np.uint8]:
        """Return the rows and columns asked for, as far as the picture has them."""
        ...


@dataclass(frozen=True)
class Window:
    """A rectangle to read, and where the tile lies inside it. All in the same unit.

    Attributes:
        top: first row to read.
        left: first column to read.
        height: rows to read.
        width: columns to read.
        inner_top: first row of the tile within the window.
        inner_left: first column of the tile within the window.
    """

    top: int
    left: int
    height: int
    width: int
    inner_top: int
    inner_left: int

    def slices(self) -> tuple[slice, slice]:
        """Return the rows and columns to read."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


def window_of(tile: Tile, halo: int, height: int, width: int, unit: int = 1) -> Window:
    """Return the window of a tile.

    Args:
        tile: in pixels.
        halo: context on each side, in units.
        height: of the padded image, in pixels.
        width: of the padded image, in pixels.
        unit: pixels per unit of the result, 1 for pixels and 16 for latents.
    """
    top, left = tile.top // unit, tile.left // unit
    bottom, right = top + tile.height // unit, left + tile.width // unit
    y0, x0 = max(0, top - halo), max(0, left - halo)
    y1, x1 = min(height // unit, bottom + halo), min(width // unit, right + halo)
    return Window(y0, x0, y1 - y0, x1 - x0, top - y0, left - x0)


VIEW_PIXELS = 3 << 18
"""What a synthesis makes at a time, at most. The larger that is, the less work is in halos; the
smaller, the more of what it holds stays in the cache (docs/design.md, Tiles)."""


@lru_cache(maxsize=64)
def views(height: int, width: int, halo: int) -> tuple[Tile, ...]:
    """Cut a padded picture into rows and columns of nearly equal parts for the synthesis.

    Args:
        height: in pixels, a multiple of 32.
        width: likewise.
        halo: context on each side of a part, in pixels.

    Returns:
        parts of at most VIEW_PIXELS from the top left, their sides multiples of 32: of all such
        grids one with the fewest pixels in parts and halos.
    """
    rows, columns = min(
        _grids(height, width), key=lambda grid: (_seen(grid, height, width, halo), sum(grid))
    )
    downward, across = _edges(height, rows), _edges(width, columns)
    return tuple(
        Tile(top, left, bottom - top, right - left)
        for top, bottom in pairwise(downward)
        for left, right in pairwise(across)
    )


def largest_view(height: int, width: int, halo: int) -> tuple[int, int]:
    """Return height and width of what the synthesis makes of a picture at a time.

    Args:
        height: in pixels.
        width: in pixels.
        halo: in pixels.

    >>> largest_view(512, 768, 48), largest_view(3000, 4000, 48)
    ((512, 768), (768, 1024))
    """
    parts = views(padded_side(height), padded_side(width), halo)
    found = max(part.height for part in parts), max(part.width for part in parts)
    return min(height, found[0]), min(width, found[1])


def _grids(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield numbers of rows, each with the least number of columns that goes with it."""
    cells, limit = VIEW_PIXELS // HYPER_STRIDE**2, width // HYPER_STRIDE
    for rows in range(1, height // HYPER_STRIDE + 1):
        tall = -(-height // HYPER_STRIDE // rows)
        widest = cells // tall
        if widest:
            columns = -(-limit // widest)
            yield rows, columns
            if columns == 1:
                return


def _seen(grid: tuple[int, int], height: int, width: int, halo: int) -> int:
    rows, columns = grid
    return (height + 2 * halo * (rows - 1)) * (width + 2 * halo * (columns - 1))


def _edges(side: int, parts: int) -> list[int]:
    cells = side // HYPER_STRIDE
    return [HYPER_STRIDE * (cells * n // parts) for n in range(parts + 1)]


def read_padded(
    pixels: Pixels,
    window: Window,
    space: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Return a window of an image as (1, h, w, 3) float32; beyond its edge the last pixel repeats.

    Args:
        pixels: a picture of H x W.
        window: in pixels, of the padded image.
        space: memory to use for it, of one axis; None takes new memory.
    """
    shape = window.height, window.width, 3
    out = np.empty(shape, np.float32) if space is None else space[: math.prod(shape)].reshape(shape)
    part = pixels[window.slices()]
    rows, columns = part.shape[:2]
    out[:rows, :columns] = part
    out[:rows, columns:] = out[:rows, columns - 1 : columns]
    out[rows:] = out[rows - 1 : rows]
    return out[None]


def cut(
    array: npt.NDArray[_Scalar], top: int, left: int, tile: Tile, stride: int
) -> npt.NDArray[_Scalar]:
    """Cut a tile out of what a network made of its window.

    Args:
        array: (h, w, C), `stride` pixels per position.
        top: first row of the tile within the window, in pixels.
        left: first column of the tile within the window, in pixels.
        tile: in pixels.
        stride: pixels per position.
    """
    rows, columns = top // stride, left // stride
    return array[rows : rows + tile.height // stride, columns : columns + tile.width // stride]
