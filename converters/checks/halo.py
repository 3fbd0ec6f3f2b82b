"""How far around a tile the analysis has to look for its symbols to come out as for the whole.

What a network could see, its receptive field, is more than what it heeds: the weights that reach
farthest are few and small (Luo et al. 2016, "Understanding the effective receptive field"). An
encoder may do with less, since files decode alike whatever chose the symbols, and a halo of 64
pixels costs a quarter more work for a tile of 1024 where one of 32 costs an eighth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from edgecodec.coding.layout import Tile
from edgecodec.coding.pixels import cut
from edgecodec.converters.sources.photos import ENOUGH_PHOTOS, LEAST_CONTRAST
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE
from edgecodec.format.tables import Tables

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
Analyse = Callable[[UInt8Array], tuple[Float32Array, Float32Array]]

LIMIT = 1 / 16
"""Of a step at the finest quality. Another symbol comes out only where a value lies that near to
the middle between two; runtimes differ by about as much in int8."""
PER_PHOTO = 2
"""Windows of a photo that are looked at, those with the most contrast: each costs an analysis."""
_SIDE = 4 * HYPER_STRIDE
_TILE = Tile(0, 0, _SIDE, _SIDE)


def effective_halo(
    analyse: Analyse,
    photos: Sequence[UInt8Array],
    tables: Tables,
    field: int,
    progress: Callable[[str], None],
) -> int:
    """Return the least halo that moves no latent of a tile by more than LIMIT, in float32.

    Args:
        analyse: maps (H, W, 3) uint8 to y (h, w, M) and z (h / 2, w / 2, Z) float32.
        photos: (H, W, 3) uint8; what is flat, or too small for a tile and its surroundings, says
            nothing.
        tables: of the codec, for its steps.
        field: what the network can see, in pixels, a multiple of HYPER_STRIDE; the answer where
            nothing less will do, or fewer than ENOUGH_PHOTOS photos can tell.
        progress: told in one line which halo it is, and why.
    """
    halo, reason = _least(analyse, photos, tables, field)
    progress(f"analysis halo {halo} pixels of {field} that it could see: {reason}")
    return halo


def _least(
    analyse: Analyse, photos: Sequence[UInt8Array], tables: Tables, field: int
) -> tuple[int, str]:
    """Return the halo and why it is that."""
    by_photo = [found for photo in photos if (found := telling_windows(photo, field))]
    if len(by_photo) < ENOUGH_PHOTOS:
        told = f"{len(by_photo)} of {len(photos)} photos are large and varied enough to tell"
        return field, f"{told}, less needs {ENOUGH_PHOTOS}"
    windows = [window for found in by_photo for window in found]
    seen = f"{len(windows)} windows of {len(by_photo)} photos"
    gains = tables.gain_y.max(0), tables.gain_z.max(0)
    wholes = [_scaled(analyse(window), gains, field) for window in windows]
    for halo in range(0, field, HYPER_STRIDE):
        out = field - halo
        parts = (_scaled(analyse(w[out:-out, out:-out]), gains, halo) for w in windows)
        if all(_distance(part, whole) <= LIMIT for part, whole in zip(parts, wholes, strict=True)):
            return halo, f"no latent in {seen} differs by more than {LIMIT:g} of a step"
    return field, f"with less, a latent in {seen} differs by more than {LIMIT:g} of a step"


def telling_windows(photo: UInt8Array, field: int) -> list[UInt8Array]:
    """Return the windows of a photo to look at, none where it is too small or flat.

    A window is a tile and all that can be seen from it. The middle and the four quarters are
    candidates, as far apart as the photo lets them lie.
    """
    side = _SIDE + 2 * field
    down, right = (n - side for n in photo.shape[:2])
    if min(down, right) < 0:
        return []
    places = dict.fromkeys([(down // 2, right // 2), *product((0, down), (0, right))])
    areas = [np.s_[top : top + side, left : left + side] for top, left in places]
    grey = photo.mean(2, dtype=np.float32)
    by_contrast = sorted(areas, key=lambda area: float(grey[area].std()), reverse=True)
    return [photo[a] for a in by_contrast[:PER_PHOTO] if grey[a].std() >= LEAST_CONTRAST]


def _scaled(
    latents: tuple[Float32Array, Float32Array], gains: tuple[Float32Array, Float32Array], halo: int
) -> list[Float32Array]:
    """Return y and z of the tile within its window, in steps."""
    parts = zip(latents, gains, (LATENT_STRIDE, HYPER_STRIDE), strict=True)
    return [cut(values, halo, halo, _TILE, stride) * gain for values, gain, stride in parts]


def _distance(a: Sequence[Float32Array], b: Sequence[Float32Array]) -> float:
    """Return the largest difference; NaN where a value is."""
    return float(np.max([np.abs(x - y).max() for x, y in zip(a, b, strict=True)]))
