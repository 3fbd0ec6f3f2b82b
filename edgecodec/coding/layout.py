"""How a picture is cut: tiles for the coder, views for the synthesis, windows for the networks.

Tiles are coded independently; views are what the synthesis makes at a time, however the picture was
cut for coding. Each is computed from a window: itself plus a halo, cut at the borders of the padded
picture, so that the networks' own zero padding happens exactly where it would for the whole picture
and no seam can show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from edgecodec.bundle.manifest import Manifest
from edgecodec.format.container import MAX_TILE
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE, padded_side
from edgecodec.lazy import lazy_property

DEFAULT_TILE = 1024
"""Side in pixels of the tiles of a large picture: what the networks hold of one fits into the last
level of cache of a desktop processor, where they are a fifth faster per pixel than at 1536."""
WHOLE_PIXELS = 3 << 19
"""Pictures up to this size are one tile: there what a halo costs is more than a cache brings."""
VIEW_PIXELS = 3 << 18
"""What a synthesis makes at a time, at most. The larger that is, the less work is in halos; the
smaller, the more of what it holds stays in the cache (docs/design.md, Tiles)."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of the padded picture, in pixels; all four are multiples of 32.

    Attributes:
        top: first row.
        left: first column.
        height: rows.
        width: columns.
    """

    top: int
    left: int
    height: int
    width: int

    def slices(self, stride: int = 1) -> tuple[slice, slice]:
        """Return its rows and columns in a map of `stride` pixels per position."""
        return (
            slice(self.top // stride, (self.top + self.height) // stride),
            slice(self.left // stride, (self.left + self.width) // stride),
        )


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


@dataclass(frozen=True)
class Layout:
    """Where everything of one picture lies.

    Attributes:
        height: of the picture, in pixels.
        width: likewise.
        tile: side of its tiles in pixels, a multiple of 32.
        analysis_halo: pixels around a tile that the analysis is given.
        synthesis_halo: latents around a part that the synthesis must see.
    """

    height: int
    width: int
    tile: int
    analysis_halo: int = 0
    synthesis_halo: int = 0

    @classmethod
    def of(cls, height: int, width: int, tile: int | None, manifest: Manifest) -> Layout:
        """Return that of a picture for the networks of a bundle; no tile takes `default_tile`."""
        tile = tile or default_tile(height, width)
        return cls(height, width, tile, manifest.analysis_halo, manifest.synthesis_halo)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width in pixels, rounded up to a multiple of 32."""
        return padded_side(self.height), padded_side(self.width)

    @property
    def latents(self) -> tuple[int, int]:
        """Height and width of all latents."""
        height, width = self.padded
        return height // LATENT_STRIDE, width // LATENT_STRIDE

    @property
    def tile_count(self) -> int:
        """How many tiles there are; costs nothing even where there are a great many."""
        return -(-self.height // self.tile) * self._across

    @property
    def _across(self) -> int:
        return -(-self.width // self.tile)

    def tile_at(self, number: int) -> Tile:
        """Return a tile by its place in the file, from 0: rows from the top, each from the left."""
        height, width = self.padded
        row, column = divmod(number, self._across)
        top, left = row * self.tile, column * self.tile
        return Tile(top, left, min(self.tile, height - top), min(self.tile, width - left))

    def tiles(self) -> list[Tile]:
        """Return all tiles in the order of the file."""
        return [self.tile_at(number) for number in range(self.tile_count)]

    def tiles_under(self, window: Window) -> list[int]:
        """Return the numbers of the tiles that a window of latents reaches into."""
        side = self.tile // LATENT_STRIDE
        rows, columns = (
            range(part.start // side, (part.stop - 1) // side + 1) for part in window.slices()
        )
        return [row * self._across + column for row in rows for column in columns]

    @lazy_property
    def views(self) -> tuple[Tile, ...]:
        """What the synthesis makes at a time: rows and columns of nearly equal parts.

        Parts of at most VIEW_PIXELS from the top left, their sides multiples of 32: of all such
        grids one with the fewest pixels in parts and halos.
        """
        height, width = self.padded
        rows, columns = min(
            _grids(height, width), key=lambda grid: (self._synthesised(grid), sum(grid))
        )
        downward, across = _edges(height, rows), _edges(width, columns)
        return tuple(
            Tile(top, left, bottom - top, right - left)
            for top, bottom in pairwise(downward)
            for left, right in pairwise(across)
        )

    def _synthesised(self, grid: tuple[int, int]) -> int:
        """Return how many pixels the views of a grid have, halos included."""
        sides = zip(self.padded, grid, strict=True)
        halo = self.synthesis_halo * LATENT_STRIDE
        height, width = (side + 2 * halo * (parts - 1) for side, parts in sides)
        return height * width

    def analysis_window(self, tile: Tile) -> Window:
        """Return what the analysis reads for a tile, in pixels."""
        return self._window(tile, self.analysis_halo, 1)

    def synthesis_window(self, part: Tile) -> Window:
        """Return what the synthesis reads for a tile or a view, in latents."""
        return self._window(part, self.synthesis_halo, LATENT_STRIDE)

    def _window(self, tile: Tile, halo: int, unit: int) -> Window:
        height, width = self.padded
        rows, columns = tile.slices(unit)
        y0, x0 = max(0, rows.start - halo), max(0, columns.start - halo)
        y1 = min(height // unit, rows.stop + halo)
        x1 = min(width // unit, columns.stop + halo)
        return Window(y0, x0, y1 - y0, x1 - x0, rows.start - y0, columns.start - x0)

    def network_size(self, stage: str) -> tuple[int, int]:
        """Return height and width in pixels of the most a network gets at a time, without halos.

        Args:
            stage: `analysis`, or `synthesis` when a picture is decoded.

        >>> Layout(3000, 4000, 1024, 32, 3).network_size("analysis")
        (1024, 1024)
        >>> Layout(3000, 4000, 1024, 32, 3).network_size("synthesis")
        (768, 1024)
        """
        height = width = self.tile
        if stage == "synthesis":
            height = max(part.height for part in self.views)
            width = max(part.width for part in self.views)
        return min(self.height, height), min(self.width, width)


def default_tile(height: int, width: int) -> int:
    """Return the side of the tiles of a picture where none is asked for.

    >>> default_tile(512, 768), default_tile(1000, 1500), default_tile(3000, 4000)
    (1024, 1504, 1024)
    """
    side = padded_side(max(height, width))
    small = height * width <= WHOLE_PIXELS and side <= MAX_TILE
    return max(DEFAULT_TILE, side) if small else DEFAULT_TILE


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


def _edges(side: int, parts: int) -> list[int]:
    cells = side // HYPER_STRIDE
    return [HYPER_STRIDE * (cells * n // parts) for n in range(parts + 1)]
