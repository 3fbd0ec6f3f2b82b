"""What MS-SSIM and SSIMULACRA2 share: pairs of pictures, and a Gaussian window of 11 pixels."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import UInt8Array
from edgecodec.errors import ConfigError

Plane = npt.NDArray[np.float32]

WINDOW = 11
_SIGMA = 1.5


def _gaussian() -> tuple[float, ...]:
    taps = [math.exp(-0.5 * (i / _SIGMA) ** 2) for i in range(WINDOW // 2 + 1)]
    total = taps[0] + 2.0 * sum(taps[1:])
    return tuple(tap / total for tap in taps)


TAPS = _gaussian()
"""The window's taps from the middle outwards: six, for eleven pixels."""


def blur(plane: Plane) -> Plane:
    """Filter (H, W) with the window, valid part only: (H - 10, W - 10).

    Both halves of the window share a product, as it is symmetric.
    """
    half = WINDOW // 2
    height, width = plane.shape[0] - 2 * half, plane.shape[1] - 2 * half
    rows = plane[half : half + height] * np.float32(TAPS[0])
    scratch = np.empty_like(rows)
    for i, tap in enumerate(TAPS[1:], 1):
        np.add(plane[half - i :][:height], plane[half + i :][:height], out=scratch)
        rows += np.multiply(scratch, np.float32(tap), out=scratch)
    result: Plane = rows[:, half : half + width] * np.float32(TAPS[0])
    scratch = np.empty_like(result)
    for i, tap in enumerate(TAPS[1:], 1):
        np.add(rows[:, half - i :][:, :width], rows[:, half + i :][:, :width], out=scratch)
        result += np.multiply(scratch, np.float32(tap), out=scratch)
    return result


def check_pair(a: UInt8Array, b: UInt8Array, least_side: int = 1, metric: str = "") -> None:
    """Refuse what cannot be compared.

    Raises:
        ConfigError: not uint8, not (H, W, 3), of different shapes, or too small for the metric.
    """
    for image in (a, b):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ConfigError(
                f"expected (H, W, 3) uint8, found {image.shape} {image.dtype}; convert to RGB first"
            )
    if a.shape != b.shape:
        raise ConfigError(f"the images differ in shape: {a.shape} and {b.shape}")
    if min(a.shape[:2]) < least_side:
        raise ConfigError(
            f"{metric} needs at least {least_side} pixels per side, "
            f"the image is {a.shape[1]} x {a.shape[0]}"
        )
