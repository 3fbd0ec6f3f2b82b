"""Fixed work that every benchmark times between its codecs, to know the machine from the build.

Two runs hours apart differ because of other load, heat and clock rates. Work that is the same in
both shows by how much; a codec that differs by no more shows nothing (see compare.py).

    serial     deflate of fixed bytes, one thread
    parallel   the same on every core at once

Each takes about as long as a network on a picture of half a megapixel, so that what interrupts
the one interrupts the other. Their threads sleep when they are done: those of a matrix product in
NumPy go on spinning for some milliseconds, and would slow down whoever comes next.
"""

from __future__ import annotations

import platform
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edgecodec.runtimes.device.probe import usable_cores

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


@contextmanager
def yardsticks() -> Iterator[tuple[Yardstick, ...]]:
    """Give all of them with their inputs made; their threads end with the block."""
    generator = np.random.default_rng(0)
    text = (generator.normal(0, 8, _BYTES).astype(np.int8)).tobytes()
    work = (
        f"deflate {_BYTES} bytes, zlib {zlib.ZLIB_RUNTIME_VERSION}, "
        f"Python {platform.python_version()}"
    )
    cores = usable_cores()
    with ThreadPoolExecutor(cores, "edgecodec-yardstick") as pool:
        yield (
            Yardstick("serial", work, lambda: zlib.compress(text, 6)),
            Yardstick(
                "parallel",
                f"{work}, {cores} threads",
                lambda: list(pool.map(zlib.compress, [text] * cores, [6] * cores)),
            ),
        )
