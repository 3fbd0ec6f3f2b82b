"""Memory of pictures that are gone, kept for the next one.

A system hands out memory in pages of zeros, made when they are first touched: for a photo of 12
megapixels 3 ms where it has large pages at hand, 18 ms or more where it has not, which is longer
than it takes to fill it with pixels. Who decodes one photo after another and lets go of each pays
for it once.
"""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np

from edgecodec.arrays import UInt8Array

LARGEST = 64 << 20
"""Bytes that are kept at most: a picture of 16 megapixels."""


class SpareMemory:
    """At most one block of memory that nobody uses. Safe from many threads."""

    def __init__(self) -> None:
        # Memory may come back whenever the interpreter collects garbage, in here as well.
        self._lock = threading.RLock()
        self._block: UInt8Array | None = None
        self._closed = False

    def take(self, shape: tuple[int, ...]) -> UInt8Array:
        """Return an array of whatever bytes.

        Args:
            shape: of the array. A block of more than twice its size is left for something larger.

        Returns:
            the array. Its memory comes back when what was cut out of it is gone, too.
        """
        size = math.prod(shape)
        with self._lock:
            block = self._block
            if block is not None and size <= block.size <= 2 * size:
                self._block = None
            else:
                block = None
        if block is None:
            block = np.empty(size, np.uint8)
        # Views of arrays hold the first array of all. Here that is one of its own for each use.
        first = np.frombuffer(block.data, np.uint8, size)
        if block.size <= LARGEST:
            weakref.finalize(first, self._take_back, block).atexit = False
        return first.reshape(shape)

    def close(self) -> None:
        """Give up what is kept, and keep nothing from now on."""
        with self._lock:
            self._block, self._closed = None, True

    def _take_back(self, block: UInt8Array) -> None:
        with self._lock:
            smaller = self._block is None or self._block.size <= block.size
            if smaller and not self._closed:
                self._block = block
