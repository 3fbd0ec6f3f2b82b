"""Files of a bundle stored in parts: literal bytes, and tensors taken from `weights.bin`.

The artefacts of a bundle hold the same numbers, in the order and among the bytes that each runtime
wants. So the numbers are stored once, and `<file>.parts` says how a file is made of them
(docs/FORMAT.md). In `weights.bin` a tensor lies in planes, the first bytes of all its numbers,
then the second bytes, and so on: exponents beside exponents compress, among mantissas they do not.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from edgecodec.bundle.predictions import Predictions
from edgecodec.errors import BundleError

SIGNATURE = b"\x89ECP\r\n\x1a\n"
SUFFIX = ".parts"
ITEMS = (1, 2, 4, 8)
"""Bytes that a number may have."""
MAX_AXES = 8
_HEAD = struct.Struct("<8sH")
_SLICE = struct.Struct("<IIBB")


@dataclass(frozen=True)
class Slice:
    """A tensor of `weights.bin`, as a file holds it.

    Attributes:
        literal: bytes of the file between the slice before and this one.
        offset: where the tensor begins in `weights.bin`.
        item: bytes of a number.
        shape: of the tensor, in C order.
        axes: the order in which the file holds them, as for `numpy.transpose`.
    """

    literal: int
    offset: int
    item: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the tensor, here as there."""
        return self.item * math.prod(self.shape)


@dataclass(frozen=True)
class Parts:
    """How a file is made: literal bytes and slices in turn, then the literal bytes left over."""

    slices: tuple[Slice, ...]
    literals: bytes

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.literals) + sum(piece.size for piece in self.slices)

    def to_bytes(self) -> bytes:
        """Return the content of `<file>.parts`."""
        out = [_HEAD.pack(SIGNATURE, len(self.slices))]
        for piece in self.slices:
            count = len(piece.shape)
            out.append(_SLICE.pack(piece.literal, piece.offset, piece.item, count))
            out.append(struct.pack(f"<{count}I{count}B", *piece.shape, *piece.axes))
        return b"".join([*out, self.literals])

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Parts:
        """Parse the content of `<file>.parts`.

        Raises:
            BundleError: not such a file, or it says what cannot be.
        """
        try:
            parts = cls._parse(data)
        except (struct.error, ValueError) as exc:
            raise BundleError(f"{source} is not a list of parts ({exc})") from exc
        return parts

    @classmethod
    def _parse(cls, data: bytes) -> Parts:
        signature, count = _HEAD.unpack_from(data)
        if signature != SIGNATURE:
            raise ValueError("its first bytes are not the signature")
        at, slices = _HEAD.size, []
        for _ in range(count):
            literal, offset, item, axes = _SLICE.unpack_from(data, at)
            at += _SLICE.size
            if item not in ITEMS or not 1 <= axes <= MAX_AXES:
                raise ValueError(f"{axes} axes of numbers of {item} bytes cannot be")
            values = struct.unpack_from(f"<{axes}I{axes}B", data, at)
            at += 5 * axes
            piece = Slice(literal, offset, item, values[:axes], values[axes:])
            if 0 in piece.shape or sorted(piece.axes) != list(range(axes)):
                raise ValueError(f"shape {piece.shape} with axes {piece.axes} cannot be")
            slices.append(piece)
        parts = cls(tuple(slices), data[at:])
        if sum(piece.literal for piece in slices) > len(parts.literals):
            raise ValueError("it holds fewer literal bytes than it names")
        return parts

    def chunks(self, weights: BinaryIO, predictions: Predictions | None = None) -> Iterator[bytes]:
        """Make the file, piece by piece.

        Args:
            weights: `weights.bin`, open for reading; of it no more is read than its slices.
            predictions: of tensors in it, whose differences it holds.

        Raises:
            ValueError: a slice reaches beyond its end, or it does not fit its prediction.
        """
        at, end = 0, weights.seek(0, io.SEEK_END)
        for piece in self.slices:
            yield self.literals[at : at + piece.literal]
            at += piece.literal
            if piece.offset + piece.size > end:  # before anything is allocated
                raise ValueError(f"a slice ends at byte {piece.offset + piece.size} of {end}")
            weights.seek(piece.offset)
            stored = weights.read(piece.size)
            if predictions is not None:
                stored = predictions.restore(piece.offset, stored, weights)
            yield from_planes(stored, piece)
        yield self.literals[at:]


def to_planes(data: bytes, item: int) -> bytes:
    """Return numbers of `item` bytes each as `weights.bin` holds them."""
    return np.frombuffer(data, np.uint8).reshape(-1, item).T.tobytes()


def from_planes(stored: bytes, piece: Slice) -> bytes:
    """Return a tensor of `weights.bin` as a file holds it: numbers whole, axes in its order."""
    planes = np.frombuffer(stored, np.uint8).reshape(piece.item, -1)
    numbers = np.empty(planes.shape[::-1], np.uint8)
    for k, plane in enumerate(planes):  # each in one sweep; `numbers[:] = planes.T` is far slower
        numbers[:, k] = plane
    whole = numbers.view(f"u{piece.item}").reshape(piece.shape)
    return whole.transpose(piece.axes).tobytes()
