"""Pictures of the conformance kit: odd sizes and extremes, computed in integers alone.

The same on every machine and with every version of NumPy, so that they need not be stored.
"""

from __future__ import annotations

import numpy as np

from edgecodec.arrays import UInt8Array


def noise(height: int, width: int, channels: int, seed: int) -> UInt8Array:
    """Return (height, width, channels) random levels: a multiplicative hash of the position."""
    x = np.arange(height * width * channels, dtype=np.uint32) + np.uint32(seed * 0x9E3779B1 % 2**32)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        x = (x ^ (x >> np.uint32(15))) * np.uint32(multiplier)
    levels: UInt8Array = (x >> np.uint32(24)).astype(np.uint8)
    return levels.reshape(height, width, channels)


def extreme_pictures(height: int, width: int) -> dict[str, UInt8Array]:
    """Return black, white, noise, and noise of nothing but full colours, by name."""
    return {
        "black": np.zeros((height, width, 3), np.uint8),
        "white": np.full((height, width, 3), 255, np.uint8),
        "noise": noise(height, width, 3, 1),
        "saturated": np.where(noise(height, width, 3, 2) > 127, np.uint8(255), np.uint8(0)),
    }


def kit_pictures(photo: UInt8Array) -> dict[str, UInt8Array]:
    """Return the pictures by name, (H, W, 3) uint8, or (H, W) where grey.

    Args:
        photo: (96, 160, 3), the picture of the kit's golden vector.
    """
    rows, columns = (part.astype(np.int64) for part in np.mgrid[:96, :128])
    colours = np.stack([2 * columns, 255 - 2 * columns, rows * 255 // 95], -1)
    checker = 255 * ((rows + columns) % 2)
    bars = 255 * np.stack([columns // 8 & 1, columns // 16 & 1, rows // 12 & 1], -1)
    pictures = {
        "one": np.full((1, 1, 3), (200, 30, 90)),
        "row": colours[40:41, :70],
        "column": colours[:71, 90:91],
        "black": np.zeros((33, 40, 3)),
        "white": np.full((31, 65, 3), 255),
        "noise": noise(50, 63, 3, 1),
        "saturated": 255 * (noise(45, 70, 3, 2) >> 7),
        "checker": np.repeat(checker[:37, :41, None], 3, 2),
        "bars": bars[:64, :67],
        "colours": colours[20:65, :79],
        "grey": (rows + columns)[:47, :51] + (noise(47, 51, 1, 3)[..., 0] >> 5),
        "photo": photo[13:74, 21:122],
    }
    return {name: np.ascontiguousarray(p, np.uint8) for name, p in pictures.items()}
