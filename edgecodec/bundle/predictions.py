"""Integer weights stored as what is left of their prediction from float weights.

The int8 form of a layer is its float form, scaled by a factor per output and one per input channel,
and rounded with a little compensation. So `predictions.bin` names, for tensors of int8 in
`weights.bin`, the float16 tensor to scale and the factors, and `weights.bin` holds the differences:
mostly zeros, which compress to a bit or less per weight where the weights themselves take seven.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from edgecodec.arrays import Float16Array, Float32Array, Int8Array
from edgecodec.errors import BundleError

SIGNATURE = b"\x89ECQ\r\n\x1a\n"
CODE_LIMIT = 127
_HEAD = struct.Struct("<8sH")
_ENTRY = struct.Struct("<II3I")
_FACTOR = np.dtype("<f4")
_BLOCK = 1 << 16
"""Numbers predicted at a time, in eight bytes each: a list from anyone may name a huge tensor."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """How a tensor of int8 is predicted.

    Attributes:
        offset: where the differences begin in `weights.bin`, a byte each.
        base: where the planes of the float16 tensor begin there.
        shape: of both in C order: outputs, inputs, and what is left of a filter.
        rows: (outputs,) factors.
        columns: (inputs,) factors.
    """

    offset: int
    base: int
    shape: tuple[int, int, int]
    rows: Float32Array
    columns: Float32Array

    @property
    def size(self) -> int:
        """Numbers of the tensor."""
        return math.prod(self.shape)

    def codes(self, weights: Float16Array) -> Int8Array:
        """Return the prediction, (outputs, inputs, rest).

        In float64, whose products and rounding to nearest even are the same on every machine.

        Args:
            weights: likewise.
        """
        return _codes(weights, self.rows, self.columns)

    def restore(self, differences: bytes, weights: BinaryIO) -> bytes:
        """Return the tensor's bytes.

        Args:
            differences: as `weights.bin` holds them.
            weights: `weights.bin`, open for reading.

        Raises:
            ValueError: the tensor predicted from lies beyond the end, or the sizes differ.
        """
        if len(differences) != self.size:
            raise ValueError(f"{self.size} bytes are predicted of {len(differences)}")
        if self.base + 2 * self.size > weights.seek(0, io.SEEK_END):
            raise ValueError(f"a prediction is from beyond its end, at byte {self.base}")
        restored, at = np.frombuffer(differences, np.uint8).copy(), 0
        for rows, columns, rest in self._blocks():
            shape = len(rows), len(columns), rest
            count = math.prod(shape)
            halves = np.empty((count, 2), np.uint8)
            for plane in range(2):
                weights.seek(self.base + plane * self.size + at)
                halves[:, plane] = np.frombuffer(weights.read(count), np.uint8)
            codes = _codes(halves.view("<f2").reshape(shape), rows, columns)
            # Modulo 256, so that every difference has a byte.
            restored[at : at + count] += codes.reshape(-1).view(np.uint8)
            at += count
        return restored.tobytes()

    def _blocks(self) -> Iterator[tuple[Float32Array, Float32Array, int]]:
        """Yield factors of outputs and inputs, and how much of a filter, in C order.

        Blocks have _BLOCK numbers at most and lie in one piece.
        """
        outputs, inputs, rest = self.shape
        high = max(1, _BLOCK // (inputs * rest))
        wide = min(inputs, max(1, _BLOCK // rest))
        for o in range(0, outputs, high):
            for i in range(0, inputs, wide):
                for r in range(0, rest, _BLOCK):
                    yield self.rows[o : o + high], self.columns[i : i + wide], min(_BLOCK, rest - r)


def _codes(weights: Float16Array, rows: Float32Array, columns: Float32Array) -> Int8Array:
    with np.errstate(over="ignore", invalid="ignore"):  # in a file from anyone
        scaled = weights.astype(np.float64) * rows[:, None, None]
        scaled *= columns[None, :, None]
        np.nan_to_num(scaled, copy=False)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -CODE_LIMIT, CODE_LIMIT, out=scaled).astype(np.int8)


class Predictions:
    """All predictions of a bundle, by where the differences begin."""

    def __init__(self, entries: Iterable[Prediction] = ()) -> None:
        self._entries = {entry.offset: entry for entry in entries}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self._entries.values())

    def restore(self, offset: int, stored: bytes, weights: BinaryIO) -> bytes:
        """Return the bytes of a tensor; what is not predicted comes back as it is stored.

        Raises:
            ValueError: as of `Prediction.restore`.
        """
        entry = self._entries.get(offset)
        return stored if entry is None else entry.restore(stored, weights)

    def to_bytes(self) -> bytes:
        """Return the content of `predictions.bin`."""
        out = [_HEAD.pack(SIGNATURE, len(self))]
        for entry in self:
            out.append(_ENTRY.pack(entry.offset, entry.base, *entry.shape))
            out += [v.astype(_FACTOR).tobytes() for v in (entry.rows, entry.columns)]
        return b"".join(out)

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Predictions:
        """Parse the content of `predictions.bin`.

        Raises:
            BundleError: not such a file, or it says what cannot be.
        """
        try:
            return cls(_parse(data))
        except (struct.error, ValueError) as exc:
            raise BundleError(f"{source} is not a list of predictions ({exc})") from exc


def _parse(data: bytes) -> Iterator[Prediction]:
    signature, count = _HEAD.unpack_from(data)
    if signature != SIGNATURE:
        raise ValueError("its first bytes are not the signature")
    at, offsets = _HEAD.size, set()
    for _ in range(count):
        offset, base, *sizes = _ENTRY.unpack_from(data, at)
        outputs, inputs, rest = sizes
        if not min(sizes):
            raise ValueError(f"shape {tuple(sizes)} cannot be")
        if offset in offsets:
            raise ValueError(f"two of them are of the tensor at byte {offset}")
        offsets.add(offset)
        at += _ENTRY.size
        end = at + _FACTOR.itemsize * (outputs + inputs)
        if end > len(data):  # before anything is allocated
            raise ValueError(f"it ends at byte {len(data)} of {end}")
        factors = np.frombuffer(data[at:end], _FACTOR).astype(np.float32)
        yield Prediction(
            offset, base, (outputs, inputs, rest), factors[:outputs], factors[outputs:]
        )
        at = end
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left over")
