"""Substreams to latents and pictures, tile by tile, around damaged ones where that is wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edgecodec.container import ContainerFile, Tile
from edgecodec.entropy import LatentCoder
from edgecodec.errors import BitstreamError
from edgecodec.manifest import Manifest
from edgecodec.pipeline import Ahead, in_two_steps
from edgecodec.profiling import Profile, stage
from edgecodec.tiling import Window, cut, window_of

Float32Array = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]

STRIP = 1 << 15
"""Values that are packed at a time, so that they stay in a core's cache."""


class TileDecoder:
    """Decodes the tiles of one file.

    Args:
        coder: layer 1.
        manifest: of the bundle whose tables made the file.
        file: the container.
        keep_going: note damaged tiles instead of refusing the file.
        profile: collects times, or None.

    Raises:
        BitstreamError: no tile is there.
    """

    def __init__(
        self,
        coder: LatentCoder,
        manifest: Manifest,
        file: ContainerFile,
        *,
        keep_going: bool,
        profile: Profile | None = None,
    ) -> None:
        self._there = [n for n, data in enumerate(file.substreams) if data is not None]
        if not self._there:
            raise BitstreamError("no tile of the file is intact")
        self._coder, self._manifest, self._file = coder, manifest, file
        self._keep_going, self._profile = keep_going, profile
        self._order = self._reading_order()
        self._intact: set[int] = set()
        self._lock = threading.Lock()
        # Not before a tile has proved to be one: a hundred bytes can claim half a gigapixel.
        self._latents: Int16Array | None = None
        self._lost = np.ones((0, 0), bool)
        self._pixels: UInt8Array | None = None

    @property
    def damaged(self) -> set[int]:
        """Numbers of the tiles, from 0, that have been found to be damaged or missing."""
        return set(range(self._file.header.tile_count)) - self._intact

    def latents(self) -> Int16Array:
        """Return the latents of all tiles, (h, w, M) in units of 1/16.

        Raises:
            BitstreamError: a tile is damaged and not to be passed over, or all are.
        """
        for index in range(len(self._order)):
            self._read(index)
        return self._found()

    def pixels(self, run_stage: Callable[..., Mapping[str, Float32Array]]) -> UInt8Array:
        """Return the picture, (H, W, 3); latents are read ahead of it, pixels packed after.

        Args:
            run_stage: `Codec.run_stage`.

        Raises:
            BitstreamError: as of `latents`.
            BackendError: the runtime failed.
        """
        places = {number: place for place, number in enumerate(self._order)}
        with Ahead(self._read, len(self._order)) as reading:

            def synthesise(number: int) -> Float32Array | None:
                tile, window = self._window(number)
                reading.wait_for(max(places.get(n, 0) for n in self._seen_by(window)))
                if number not in self._intact:
                    return None
                with stage(self._profile, "synthesis", number):
                    y_hat = self._visible(self._found(), window, tile)[None].astype(np.float32)
                    x_hat: Float32Array = run_stage("synthesis", {"y_hat": y_hat})["x_hat"][0]
                    return x_hat

            in_two_steps(
                lambda number: (number, synthesise(number)),
                lambda half: self._show(*half),
                self._there,
            )
            reading.wait_for(len(self._order) - 1)
        self._found()
        with stage(self._profile, "pack"):
            return self._completed()

    def _reading_order(self) -> list[int]:
        """Return the tiles that are there in the order in which synthesis needs them.

        A tile takes those beside and below it. In the order of the file the first one would have to
        wait until more than a row of tiles is read.
        """
        there, order = set(self._there), dict[int, None]()
        for number in self._there:
            needed = self._seen_by(self._window(number)[1])
            order.update((n, None) for n in needed if n in there)
        return list(order)

    def _window(self, number: int) -> tuple[Tile, Window]:
        """Return a tile and the latents that its synthesis sees."""
        header, m = self._file.header, self._manifest
        tile = header.tile_at(number)
        return tile, window_of(tile, m.synthesis_halo, *header.padded, m.latent_stride)

    def _seen_by(self, window: Window) -> list[int]:
        """Return the numbers of the tiles that a window of latents reaches into."""
        header, stride = self._file.header, self._manifest.latent_stride
        across = -(-header.padded[1] // header.tile)
        rows, columns = (
            range(part.start * stride // header.tile, (part.stop - 1) * stride // header.tile + 1)
            for part in window.slices()
        )
        return [row * across + column for row in rows for column in columns]

    def _read(self, index: int) -> None:
        """Fill in the latents of a tile that is there; may run in several threads."""
        header, m, number = self._file.header, self._manifest, self._order[index]
        tile, substream = header.tile_at(number), self._file.substreams[number]
        zh, zw = tile.height // m.hyper_stride, tile.width // m.hyper_stride
        try:
            with stage(self._profile, "entropy", number):
                y_hat = self._coder.decode(header.quality, zh, zw, substream or b"")[1]
        except BitstreamError:
            if not self._keep_going:
                raise
            return
        with self._lock:
            if self._latents is None:
                height, width = (side // m.latent_stride for side in header.padded)
                self._lost = np.ones((height, width), bool)
                self._latents = np.zeros((height, width, m.latent_channels), np.int16)
        area = _latent_area(tile, m.latent_stride)
        self._latents[area] = y_hat
        self._lost[area] = False
        self._intact.add(number)

    def _found(self) -> Int16Array:
        """Return the latents read so far."""
        if self._latents is None:
            raise BitstreamError("no tile of the file is intact")
        return self._latents

    def _visible(self, latents: Int16Array, window: Window, tile: Tile) -> Int16Array:
        """Return a window of latents; lost ones are the tile's own nearest."""
        rows, columns = window.slices()
        gone = self._lost[rows, columns, None]
        if not gone.any():
            return latents[rows, columns]
        own_rows, own_columns = _latent_area(tile, self._manifest.latent_stride)
        near_rows = np.clip(np.arange(rows.start, rows.stop), own_rows.start, own_rows.stop - 1)
        near_columns = np.clip(
            np.arange(columns.start, columns.stop), own_columns.start, own_columns.stop - 1
        )
        return np.where(gone, latents[near_rows[:, None], near_columns], latents[rows, columns])

    def _show(self, number: int, x_hat: Float32Array | None) -> None:
        """Turn what the synthesis made of a tile into pixels."""
        if x_hat is None:
            return
        with stage(self._profile, "pack", number):
            tile, window = self._window(number)
            stride, pixels = self._manifest.latent_stride, self._picture()
            levels = cut(x_hat, window.inner_top * stride, window.inner_left * stride, tile, 1)
            place = pixels[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
            levels = levels[: place.shape[0], : place.shape[1]]
            # In place, as the array is ours, and in strips, as memory traffic is what this costs.
            rows = max(1, STRIP // max(1, levels[0].size))
            for top in range(0, len(levels), rows):
                strip = levels[top : top + rows]
                np.add(strip, np.float32(0.5), out=strip)
                np.clip(strip, 0, 255, out=strip)
                np.copyto(place[top : top + rows], strip, casting="unsafe")

    def _picture(self) -> UInt8Array:
        """Return the picture as far as it is there, made when it is first asked for."""
        if self._pixels is None:
            self._pixels = np.empty(
                (self._file.header.height, self._file.header.width, 3), np.uint8
            )
        return self._pixels

    def _completed(self) -> UInt8Array:
        """Return the picture with tiles that are lost in grey."""
        pixels = self._picture()
        if self._lost.any():
            for number in self.damaged:
                tile = self._file.header.tile_at(number)
                pixels[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = 128
        return pixels


def _latent_area(tile: Tile, stride: int) -> tuple[slice, slice]:
    return (
        slice(tile.top // stride, (tile.top + tile.height) // stride),
        slice(tile.left // stride, (tile.left + tile.width) // stride),
    )
