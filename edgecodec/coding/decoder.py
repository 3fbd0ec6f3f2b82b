"""Substreams to latents and pictures, tile by tile, around damaged ones where that is wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from edgecodec.coding.layout import Layout, Tile, Window
from edgecodec.coding.overlap import Ahead
from edgecodec.coding.pixels import cut, pack, square_side
from edgecodec.coding.profiling import Profile, stage
from edgecodec.coding.spare_memory import SpareMemory
from edgecodec.errors import BitstreamError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.container import ContainerFile
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE

Float32Array = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]
GREY = (128, 128, 128, 255)
"""What stands for a tile that is lost."""

Outputs = Mapping[str, Float32Array]
Lend = Callable[[dict[str, Float32Array], Callable[[Outputs], bool]], None]
"""`StageRunner.lend` of a synthesis."""


class TileDecoder:
    """Decodes the tiles of one file.

    Args:
        coder: layer 1.
        file: the container.
        layout: of its picture.
        memory: where the picture gets its memory from.
        keep_going: note damaged tiles instead of refusing the file.
        profile: collects times, or None.

    Raises:
        BitstreamError: no tile is there.
    """

    def __init__(
        self,
        coder: LatentCoder,
        file: ContainerFile,
        layout: Layout,
        memory: SpareMemory,
        *,
        keep_going: bool,
        profile: Profile | None = None,
    ) -> None:
        self._there = [n for n, data in enumerate(file.substreams) if data is not None]
        if not self._there:
            raise BitstreamError("no tile of the file is intact")
        self._coder, self._file, self.layout = coder, file, layout
        self._memory = memory
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
        return set(range(len(self._file.substreams))) - self._intact

    def latents(self) -> Int16Array:
        """Return the latents of all tiles, (h, w, M) in units of 1/16.

        Raises:
            BitstreamError: a tile is damaged and not to be passed over, or all are.
        """
        for index in range(len(self._order)):
            self._read(index)
        return self._found()

    def pixels(self, lend: Lend) -> UInt8Array:
        """Return the picture, (H, W, 4) as of `samples.pack`; latents are read ahead of it.

        Args:
            lend: runs the synthesis.

        Raises:
            BitstreamError: as of `latents`.
            BackendError: the runtime failed.
        """
        places = {number: place for place, number in enumerate(self._order)}
        with Ahead(self._read, len(self._order)) as reading:
            for number, part, window in self._parts():
                reading.wait_for(max(places.get(n, 0) for n in self.layout.tiles_under(window)))
                if not self._keep_going or number in self._intact:
                    self._show(number, part, window, lend)
            reading.wait_for(len(self._order) - 1)
        self._found()
        with stage(self._profile, "pack"):
            return self._completed()

    def _parts(self) -> Iterator[tuple[int, Tile, Window]]:
        """Yield number and place of what the synthesis makes at a time, and the latents it sees.

        Tiles, where some may be lost and others are to be shown all the same. Else what suits the
        synthesis, however the picture was cut for coding.
        """
        parts: Iterable[tuple[int, Tile]] = enumerate(self.layout.views)
        if self._keep_going:
            parts = ((number, self.layout.tile_at(number)) for number in self._there)
        for number, part in parts:
            yield number, part, self.layout.synthesis_window(part)

    def _show(self, number: int, part: Tile, window: Window, lend: Lend) -> None:
        """Synthesise a part; what comes of it becomes pixels where it lies."""
        place = self._picture()[part.slices()]
        top, left = window.inner_top * LATENT_STRIDE, window.inner_left * LATENT_STRIDE
        with ExitStack() as synthesis:
            synthesis.enter_context(stage(self._profile, "synthesis", number))
            y_hat = self._visible(self._found(), window, part)[None].astype(np.float32)

            def use(outputs: Outputs) -> bool:
                synthesis.close()
                with stage(self._profile, "pack", number):
                    squares = np.ascontiguousarray(outputs["x_hat"][0])
                    side = square_side(squares.shape[2])
                    rows, columns = (-(-size // side) for size in place.shape[:2])
                    return pack(cut(squares, top, left, part, side)[:rows, :columns], place)

            lend({"y_hat": y_hat}, use)

    def _reading_order(self) -> list[int]:
        """Return the tiles that are there in the order in which synthesis needs them."""
        if len(self._there) == 1:
            return self._there
        there, order = set(self._there), dict[int, None]()
        for _, _, window in self._parts():
            order.update((n, None) for n in self.layout.tiles_under(window) if n in there)
        return list(order)

    def _read(self, index: int) -> None:
        """Fill in the latents of a tile that is there; may run in several threads."""
        layout, number = self.layout, self._order[index]
        tile, substream = layout.tile_at(number), self._file.substreams[number] or b""
        zh, zw = tile.height // HYPER_STRIDE, tile.width // HYPER_STRIDE
        try:
            with stage(self._profile, "entropy", number):
                y_hat = self._coder.decode(self._file.header.quality, zh, zw, substream)[1]
        except BitstreamError:
            if not self._keep_going:
                raise
            return
        if len(self._file.substreams) == 1:
            self._latents, self._lost = y_hat, np.zeros(y_hat.shape[:2], bool)
            self._intact.add(number)
            return
        with self._lock:
            if self._latents is None:
                self._lost = np.ones(layout.latents, bool)
                shape = (*layout.latents, self._coder.latent_channels)
                self._latents = np.zeros(shape, np.int16)
        area = tile.slices(LATENT_STRIDE)
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
        if not self._keep_going:  # then none is lost
            return latents[rows, columns]
        gone = self._lost[rows, columns, None]
        if not gone.any():
            return latents[rows, columns]
        own_rows, own_columns = tile.slices(LATENT_STRIDE)
        near_rows = np.clip(np.arange(rows.start, rows.stop), own_rows.start, own_rows.stop - 1)
        near_columns = np.clip(
            np.arange(columns.start, columns.stop), own_columns.start, own_columns.stop - 1
        )
        return np.where(gone, latents[near_rows[:, None], near_columns], latents[rows, columns])

    def _picture(self) -> UInt8Array:
        """Return the picture as far as it is there, made when it is first asked for."""
        if self._pixels is None:
            self._pixels = self._memory.take((self.layout.height, self.layout.width, 4))
        return self._pixels

    def _completed(self) -> UInt8Array:
        """Return the picture with tiles that are lost in grey."""
        pixels = self._picture()
        if self._keep_going and self._lost.any():
            for number in self.damaged:
                pixels[self.layout.tile_at(number).slices()] = GREY
        return pixels
