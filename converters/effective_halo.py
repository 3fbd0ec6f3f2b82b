"""How far around a tile the analysis has to look for its symbols to come out as for the whole.

What a network could see, its receptive field, is more than what it heeds: the weights that reach
farthest are few and small (Luo et al. 2016, "Understanding the effective receptive field"). An
encoder may do with less, since files decode alike whatever chose the symbols, and a halo of 64
pixels costs a quarter more work for a tile of 1024 where one of 32 costs an eighth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgecodec.container import HYPER_STRIDE, Tile
from edgecodec.runtimes.checked_session import LATENT_STRIDE
from edgecodec.tables import Tables
from edgecodec.tiling import cut

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

LIMIT = 1 / 16
"""Of a step at the finest quality. Another symbol comes out only where a value lies that near to
the middle between two; runtimes differ by about as much in int8."""
_SIDE = 4 * HYPER_STRIDE
_TILE = Tile(0, 0, _SIDE, _SIDE)


def effective_halo(
    analyse: Callable[[UInt8Array], tuple[Float32Array, Float32Array]],
    photos: Sequence[UInt8Array],
    tables: Tables,
    field: int,
) -> int:
    """Return the least halo that moves no latent of a tile by more than LIMIT, in float32.

    Args:
        analyse: maps (H, W, 3) uint8 to y (h, w, M) and z (h / 2, w / 2, Z) float32.
        photos: (H, W, 3) uint8; what is too small for a tile and its surroundings says nothing.
        tables: of the codec, for its steps.
        field: what the network can see, in pixels, a multiple of HYPER_STRIDE; the answer where
            nothing less will do, or no photo can tell.
    """
    gains = tables.gain_y.max(0), tables.gain_z.max(0)
    windows = [window for photo in photos if (window := _middle(photo, field)) is not None]
    wholes = [_scaled(analyse(window), gains, field) for window in windows]
    for halo in range(0, field if windows else 0, HYPER_STRIDE):
        out = field - halo
        parts = (_scaled(analyse(w[out:-out, out:-out]), gains, halo) for w in windows)
        if all(_distance(part, whole) <= LIMIT for part, whole in zip(parts, wholes, strict=True)):
            return halo
    return field


def _middle(photo: UInt8Array, field: int) -> UInt8Array | None:
    """Return a tile and all that can be seen from it, or None where the photo is too small."""
    side = _SIDE + 2 * field
    top, left = ((n - side) // 2 for n in photo.shape[:2])
    return None if min(top, left) < 0 else photo[top : top + side, left : left + side]


def _scaled(
    latents: tuple[Float32Array, Float32Array], gains: tuple[Float32Array, Float32Array], halo: int
) -> list[Float32Array]:
    """Return y and z of the tile within its window, in steps."""
    parts = zip(latents, gains, (LATENT_STRIDE, HYPER_STRIDE), strict=True)
    return [cut(values, halo, halo, _TILE, stride) * gain for values, gain, stride in parts]


def _distance(a: Sequence[Float32Array], b: Sequence[Float32Array]) -> float:
    """Return the largest difference; NaN where a value is."""
    return float(np.max([np.abs(x - y).max() for x, y in zip(a, b, strict=True)]))
