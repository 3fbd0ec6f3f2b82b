"""Substreams to latents and pictures, tile by tile, around damaged ones where that is wanted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edgecodec.container import ContainerFile, Tile
from edgecodec.entropy import LatentCoder
from edgecodec.errors import BitstreamError
from edgecodec.manifest import Manifest
from edgecodec.pipeline import Ahead
from edgecodec.profiling import Profile, stage
from edgecodec.samples import pack
from edgecodec.tiling import Window, cut, window_of

Float32Array = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]


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
        self._intact: set[int] = set()
        # Not before a tile has proved to be one: a hundred bytes can claim half a gigapixel.
        self._latents: Int16Array | None = None
        self._lost = np.ones((0, 0), bool)

    @property
    def damaged(self) -> set[int]:
        """Numbers of the tiles, from 0, that have been found to be damaged or missing."""
        return set(range(self._file.header.tile_count)) - self._intact

    def latents(self) -> Int16Array:
        """Return the latents of all tiles, (h, w, M) in units of 1/16.

        Raises:
            BitstreamError: a tile is damaged and not to be passed over, or all are.
        """
        for index in range(len(self._there)):
            self._read(index)
        assert self._latents is not None  # else no tile was intact, which _read refuses
        return self._latents

    def pixels(self, run_stage: Callable[..., Mapping[str, Float32Array]]) -> UInt8Array:
        """Return the picture, (H, W, 3); latents are read ahead while the network runs.

        Args:
            run_stage: `Codec.run_stage`.

        Raises:
            BitstreamError: as of `latents`.
            BackendError: the runtime failed.
        """
        header, m = self._file.header, self._manifest
        pixels: UInt8Array | None = None
        with Ahead(self._read, len(self._there)) as reading:
            for number in self._there:
                tile = header.tile_at(number)
                window = window_of(tile, m.synthesis_halo, *header.padded, m.latent_stride)
                reading.wait_for(bisect_right(self._there, self._last_of(window)) - 1)
                if number not in self._intact or self._latents is None:
                    continue
                with stage(self._profile, "synthesis", number):
                    y_hat = self._visible(self._latents, window, tile)[None].astype(np.float32)
                    x_hat = run_stage("synthesis", {"y_hat": y_hat})["x_hat"][0]
                with stage(self._profile, "pack", number):
                    if pixels is None:
                        pixels = np.empty((header.height, header.width, 3), np.uint8)
                        if header.tile_count > 1:  # some of which may be missing
                            pixels.fill(128)
                    self._show(x_hat, window, tile, pixels)
            reading.wait_for(len(self._there) - 1)
        assert pixels is not None  # else no tile was intact, which _read refuses
        return pixels

    def _read(self, index: int) -> None:
        """Fill in the latents of a tile that is there."""
        header, m, number = self._file.header, self._manifest, self._there[index]
        tile, substream = header.tile_at(number), self._file.substreams[number]
        zh, zw = tile.height // m.hyper_stride, tile.width // m.hyper_stride
        try:
            with stage(self._profile, "entropy", number):
                y_hat = self._coder.decode(header.quality, zh, zw, substream or b"")[1]
        except BitstreamError:
            if not self._keep_going:
                raise
            if index == len(self._there) - 1 and not self._intact:
                raise BitstreamError("no tile of the file is intact") from None
            return
        if header.tile_count == 1:
            self._latents, self._lost = y_hat, np.zeros(y_hat.shape[:2], bool)
            self._intact.add(number)
            return
        if self._latents is None:
            height, width = (side // m.latent_stride for side in header.padded)
            self._lost = np.ones((height, width), bool)
            self._latents = np.zeros((height, width, m.latent_channels), np.int16)
        area = _latent_area(tile, m.latent_stride)
        self._latents[area] = y_hat
        self._lost[area] = False
        self._intact.add(number)

    def _last_of(self, window: Window) -> int:
        """Return the number of the last tile that a window of latents reaches into."""
        header, stride = self._file.header, self._manifest.latent_stride
        rows, columns = window.slices()
        row, column = (int(part.stop - 1) * stride // header.tile for part in (rows, columns))
        return row * -(-header.padded[1] // header.tile) + column

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

    def _show(self, x_hat: Float32Array, window: Window, tile: Tile, pixels: UInt8Array) -> None:
        header, stride = self._file.header, self._manifest.latent_stride
        levels = cut(x_hat, window.inner_top * stride, window.inner_left * stride, tile, 1)
        bottom = min(tile.top + tile.height, header.height)
        right = min(tile.left + tile.width, header.width)
        levels = levels[: bottom - tile.top, : right - tile.left]
        pack(levels, pixels[tile.top : bottom, tile.left : right])


def _latent_area(tile: Tile, stride: int) -> tuple[slice, slice]:
    return (
        slice(tile.top // stride, (tile.top + tile.height) // stride),
        slice(tile.left // stride, (tile.left + tile.width) // stride),
    )
