"""Pictures to substreams, tile by tile: network, symbols, bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecodec.coding.effort import decide
from edgecodec.coding.layout import Layout, Tile, Window
from edgecodec.coding.overlap import in_two_steps
from edgecodec.coding.pixels import Pixels, cut, read_padded, to_levels
from edgecodec.coding.profiling import Profile, stage
from edgecodec.format.coder import LatentCoder
from edgecodec.format.container import MAX_TILE
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE

Float32Array = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]
RunStage = Callable[..., Mapping[str, Float32Array]]
"""`Codec.run_stage`."""


@dataclass(frozen=True, eq=False)
class _Latents:
    """Of one tile, before quantization.

    Attributes:
        number: of the tile, from 0.
        y: (h, w, M).
        z: (h / 2, w / 2, Z).
        z_hat: z quantized, where that has been decided already.
        reluctance: None, or (h, w, M): see `LatentCoder.quantize`.
    """

    number: int
    y: Float32Array
    z: Float32Array
    z_hat: Int16Array | None = None
    reluctance: Float32Array | None = None


@dataclass(frozen=True, eq=False)
class TileEncoder:
    """Encodes the tiles of one picture.

    Attributes:
        coder: layer 1.
        run_stage: layer 2.
        layout: of the picture.
        quality: 1 to 100.
        effort: 1 to 9.
        profile: collects times, or None.
    """

    coder: LatentCoder
    run_stage: RunStage
    layout: Layout
    quality: int
    effort: int
    profile: Profile | None

    def encode(self, pixels: Pixels) -> list[bytes]:
        """Return the substream of each tile; the next tile's network runs beside the coder.

        Args:
            pixels: of the size that the layout says.
        """
        tiles = self.layout.tiles()
        windows = [self.layout.analysis_window(tile) for tile in tiles]
        # One for all: new memory for each would cost more than filling it.
        space = np.empty(3 * max(window.height * window.width for window in windows), np.float32)
        parts = list(zip(range(len(tiles)), tiles, windows, strict=True))
        return in_two_steps(lambda part: self._analyse(pixels, space, *part), self._code, parts)

    def _analyse(
        self, pixels: Pixels, space: Float32Array, number: int, tile: Tile, window: Window
    ) -> _Latents:
        with stage(self.profile, "unpack", number):
            x = read_padded(pixels, window, space)
        with stage(self.profile, "analysis", number):
            out = self.run_stage("analysis", {"x": x})
        top, left = window.inner_top, window.inner_left
        y, z = out["y"][0], out["z"][0]
        if self.effort == 1:
            y, z = cut(y, top, left, tile, LATENT_STRIDE), cut(z, top, left, tile, HYPER_STRIDE)
            return _Latents(number, y, z)
        if max(window.height, window.width) > MAX_TILE:  # more than the coder takes at once
            y, z = cut(y, top, left, tile, LATENT_STRIDE), cut(z, top, left, tile, HYPER_STRIDE)
            top = left = 0
        with stage(self.profile, "optimisation", number):
            # With the halo where possible, as the errors of neighbours count.
            choice = decide(self.coder, self.quality, y, z, self.effort, self._reanalyse)
        y = np.ascontiguousarray(cut(choice.y, top, left, tile, LATENT_STRIDE))
        z_hat = np.ascontiguousarray(cut(choice.z, top, left, tile, HYPER_STRIDE))
        return _Latents(number, y, z, z_hat, choice.reluctance)

    def _code(self, latents: _Latents) -> bytes:
        quality, z_hat = self.quality, latents.z_hat
        with stage(self.profile, "hyper", latents.number):
            if z_hat is None:
                z_hat = self.coder.quantize_hyper(quality, latents.z)
            s, index = self.coder.quantize(quality, z_hat, latents.y, latents.reluctance)
        with stage(self.profile, "entropy", latents.number):
            return self.coder.encode(quality, z_hat, index, s)

    def _reanalyse(self, y_hat: Int16Array) -> Float32Array:
        """Return the y of the picture that y_hat decodes to, both (h, w, M)."""
        shown = self.run_stage("synthesis", {"y_hat": y_hat[None].astype(np.float32)})["x_hat"]
        x = to_levels(shown).astype(np.float32)
        y: Float32Array = self.run_stage("analysis", {"x": x})["y"][0]
        return y
