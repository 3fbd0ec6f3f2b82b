"""Arrays and tensors: their layouts, and what float16 holds of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgecodec.arrays import Float32Array
from edgecodec.errors import ConversionError


def channels_last(tensor: torch.Tensor) -> Float32Array:
    """Return (N, C, H, W) as a contiguous (N, H, W, C) float32 array."""
    return np.ascontiguousarray(tensor.permute(0, 2, 3, 1).numpy(), np.float32)


def channels_first(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return (N, H, W, C) of any type as a (N, C, H, W) float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2), np.float32))


def fits_half(array: Float32Array) -> bool:
    """Return whether float16 holds every element exactly."""
    with np.errstate(over="ignore"):  # a value beyond half becomes infinite and then differs
        return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array))


def to_half(array: Float32Array, what: str, stage: str) -> npt.NDArray[np.float16]:
    """Round to float16.

    Raises:
        ConversionError: an element is beyond the range of float16.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ConversionError(f"{what} is beyond the range of fp16; convert to fp32 alone", stage)
    return half
