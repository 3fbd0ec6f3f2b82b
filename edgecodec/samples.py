"""What a synthesis gives to samples of 8 bits: by the C core, or NumPy where it is not built."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

_pack_core: Callable[[Float32Array, UInt8Array], None] | None
try:
    from edgecodec.core._binding import pack as _pack_core
except ImportError:
    _pack_core = None


def pack(levels: Float32Array, samples: UInt8Array) -> None:
    """Write the integer part of `clip(v + 0.5, 0, 255)`, the sum in float32.

    Args:
        levels: (h, w, 3), also part of a larger picture. None is NaN.
        samples: where to, likewise.
    """
    if _pack_core is None:
        pack_numpy(levels, samples)
    else:
        _pack_core(levels, samples)


def pack_numpy(levels: Float32Array, samples: UInt8Array) -> None:
    """Do the same with NumPy."""
    samples[...] = np.clip(levels + np.float32(0.5), 0, 255).astype(np.uint8)
