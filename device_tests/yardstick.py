"""Fixed work that every benchmark times between its codecs, to know the machine from the build.

Two runs hours apart differ because of other load, heat and clock rates. Work that is the same in
both shows by how much; a codec that differs by no more shows nothing (see compare.py).

    serial     deflate of fixed bytes, one thread
    parallel   a product of fixed float32 matrices in NumPy, as many threads as its library takes

Each takes about as long as a network on a picture of half a megapixel, so that what interrupts
the one interrupts the other.
"""

from __future__ import annotations

import platform
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_SIDE = 768
_BYTES = 400_000


@dataclass(frozen=True)
class Yardstick:
    """One piece of fixed work.

    Attributes:
        name: `serial` or `parallel`.
        settings: work and library; only figures with equal settings compare.
        run: does it once.
    """

    name: str
    settings: str
    run: Callable[[], object]


def yardsticks() -> tuple[Yardstick, ...]:
    """Return all of them with their inputs made."""
    generator = np.random.default_rng(0)
    left, right = generator.random((2, _SIDE, _SIDE), np.float32)
    out = np.empty_like(left)
    text = (generator.normal(0, 8, _BYTES).astype(np.int8)).tobytes()
    return (
        Yardstick(
            "serial",
            f"deflate {_BYTES} bytes, zlib {zlib.ZLIB_RUNTIME_VERSION}, "
            f"Python {platform.python_version()}",
            lambda: zlib.compress(text, 6),
        ),
        Yardstick(
            "parallel",
            f"float32 {_SIDE} x {_SIDE} x {_SIDE}, NumPy {np.__version__}",
            lambda: np.matmul(left, right, out=out),
        ),
    )
