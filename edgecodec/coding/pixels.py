"""Pixels to what an analysis takes, and what a synthesis gives to samples of 8 bits.

The way back is by the C core, or by NumPy where it is not built.

A synthesis gives levels of pixels, or of squares of r x r pixels, whichever spares the runtime a
pass over them: positions with 3 r^2 channels, of which (i * r + j) * 3 + c is colour c of pixel
(i, j) of the square. r = 1 is a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edgecodec.coding.layout import Tile, Window

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

_pack_core: Callable[[Float32Array, UInt8Array], bool] | None
try:
    from edgecodec.core._binding import pack as _pack_core
except ImportError:
    _pack_core = None


_Scalar = TypeVar("_Scalar", bound=np.generic)


class Pixels(Protocol):
    """What gives parts of a picture as arrays (h, w, 3) uint8; an array of it does."""

    def __getitem__(self, part: tuple[slice, slice], /) -> npt.NDArray[np.uint8]:
        """Return the rows and columns asked for, as far as the picture has them."""
        ...


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


def to_levels(x_hat: Float32Array) -> UInt8Array:
    """Round what a synthesis gives, nominally 0..255, to pixels; the shape stays.

    It is the integer part of `clip(v + 0.5, 0, 255)`, the sum in float32. NaN is not allowed.
    """
    levels: Float32Array = np.clip(x_hat + np.float32(0.5), 0, 255)
    return levels.astype(np.uint8)


def pack(levels: Float32Array, samples: UInt8Array) -> bool:
    """Write what `to_levels` gives, by the C core where it is built.

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
    samples[..., :3] = to_levels(shown)
    samples[..., 3] = 255
    return finite
