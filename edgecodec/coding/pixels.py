"""What a synthesis gives to samples of 8 bits: by the C core, or NumPy where it is not built.

A synthesis gives levels of pixels, or of squares of r x r pixels, whichever spares the runtime a
pass over them: positions with 3 r^2 channels, of which (i * r + j) * 3 + c is colour c of pixel
(i, j) of the square. r = 1 is a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

_pack_core: Callable[[Float32Array, UInt8Array], bool] | None
try:
    from edgecodec.core._binding import pack as _pack_core
except ImportError:
    _pack_core = None


def square_side(channels: int) -> int:
    """Return the side r of the squares that have so many channels, 0 where none have.

    >>> square_side(3), square_side(192), square_side(4)
    (1, 8, 0)
    """
    side = math.isqrt(max(channels, 0) // 3)
    return side if channels == 3 * side * side else 0


def as_picture(levels: Float32Array) -> Float32Array:
    """Return levels as pixels, a view where they are so already.

    Args:
        levels: (..., h, w, 3 r^2).

    Returns:
        (..., h r, w r, 3).
    """
    *outer, height, width, channels = levels.shape
    side = square_side(channels)
    if side < 2:
        return levels
    squares = levels.reshape(*outer, height, width, side, side, 3).swapaxes(-4, -3)
    return squares.reshape(*outer, height * side, width * side, 3)


def to_levels(x_hat: npt.NDArray[np.float32]) -> UInt8Array:
    """Round what a synthesis gives, nominally 0..255, to pixels; the shape stays."""
    return np.rint(np.clip(x_hat, 0.0, 255.0)).astype(np.uint8)


def pack(levels: Float32Array, samples: UInt8Array) -> bool:
    """Write the integer part of `clip(v + 0.5, 0, 255)`, the sum in float32.

    Args:
        levels: (h / r, w / r, 3 r^2), rounded up, also part of a larger picture.
        samples: where to, (h, w, 4), likewise: red, green, blue and 255. Squares may reach beyond
            it below and on the right.

    Returns:
        whether all levels that became samples are finite; what NaN becomes is left open.
    """
    if _pack_core is None:
        return pack_numpy(levels, samples)
    return _pack_core(levels, samples)


def pack_numpy(levels: Float32Array, samples: UInt8Array) -> bool:
    """Do the same with NumPy."""
    shown = as_picture(levels)[: samples.shape[0], : samples.shape[1]]
    finite = bool(np.isfinite(shown).all())
    if not finite:
        shown = np.nan_to_num(shown, nan=0.0)
    samples[..., :3] = np.clip(shown + np.float32(0.5), 0, 255)
    samples[..., 3] = 255
    return finite
