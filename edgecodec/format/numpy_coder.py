"""The NumPy twin of the C core: oracle in tests, and fallback where the core is not built.

Float64 matrix products of integers stay exact while every partial sum is below 2**53; here none
reaches 2**28, and no int64 2**30 (docs/FORMAT.md, "Why 32 bits are enough"). States of the entropy
coder are Python's own integers; that they stay below 2**32 is proven in the C core. The rANS loop
is plain Python and slow: about a second for a Kodak image.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.format.tables import (
    CELL_ORDER,
    ESCAPE_BITS,
    HYPER_LIMIT,
    PRECISION,
    RELUCTANCES,
    SYMBOL_LIMIT,
    Tables,
)

_TOTAL = 1 << PRECISION
_MASK = _TOTAL - 1
_LOW = 1 << 16
_NIBBLE = _TOTAL >> 4

Int16Array = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]
_Place = tuple[slice, slice]
_Symbols = Callable[[_Place, Int16Array, UInt8Array], npt.NDArray[np.signedinteger[Any]]]


class NumpyImplementation:
    """See `format.coder.LatentCoder` for shapes; failures are a ValueError of one word."""

    name = "numpy"

    def __init__(self, tables: Tables) -> None:
        self._t = tables
        self._cdf = [[0, *np.cumsum(row, dtype=np.int64).tolist()] for row in tables.frequencies]
        self._gain = tables.gain_y
        bits = tables.bits()
        self._bits = np.concatenate(bits)
        self._row_of = np.cumsum([0, *map(len, bits[:-1])])
        self._half = [max(0, len(row) - 2) // 2 for row in tables.frequencies]

    def _features(self, quality: int, z: Int16Array) -> npt.NDArray[np.int64]:
        """Return the features that z yields, (4 in CELL_ORDER, zh, zw, F)."""
        t, row = self._t, quality - 1
        x = np.clip((z.astype(np.int64) * t.step_z[row] + 8) >> 4, -2047, 2047)
        h = _activation(_linear(t.w1, x) + t.b1[row], 6)
        h = _activation(_linear(t.w2, h) + t.b2, 6)
        # Row 4 f + 2 dy + dx belongs to feature f of the latent (dy, dx).
        parts = h.reshape(*z.shape[:2], -1, 4)
        return np.stack([parts[..., 2 * dy + dx] for dy, dx in CELL_ORDER])

    def _predict(
        self, quality: int, features: npt.NDArray[np.int64], before: list[npt.NDArray[np.int64]]
    ) -> tuple[Int16Array, UInt8Array]:
        """Return mu and scale index of one latent of each cell, given those coded before it."""
        t = self._t
        context = np.zeros((*features.shape[:2], t.bc.shape[1]), np.int64)
        if before:
            k = len(before) - 1
            seen = np.concatenate(before, 2)
            context = _activation(_linear((t.c1, t.c2, t.c3)[k], seen) + t.bc[k], 4)
        acc = _linear(t.w3, np.concatenate([features, context], 2))
        m = t.latent_channels
        mu = np.clip((acc[..., :m] + t.b3 + 8) >> 4, -16384, 16384)
        index = (acc[..., m:] + t.index_bias[quality - 1] + 128) >> 8
        return mu.astype(np.int16), np.clip(index, 0, len(self._cdf) - 1).astype(np.uint8)

    def _residual(self, quality: int, s: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        step = self._t.step_y[quality - 1]
        residual: npt.NDArray[np.int64] = (s.astype(np.int64) * step + 32) >> 6
        return residual

    def _walk(
        self, quality: int, z: Int16Array, symbols: _Symbols
    ) -> tuple[Int16Array, UInt8Array, Int16Array]:
        """Go through the cells in the order of coding; return s, scale index and mu.

        `symbols(place, mu, index)` gives the symbols of one latent of each cell.
        """
        zh, zw, _ = z.shape
        shape = (2 * zh, 2 * zw, self._t.latent_channels)
        s, mu = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
        index = np.zeros(shape, np.uint8)
        before: list[npt.NDArray[np.int64]] = []
        features = self._features(quality, z)
        for k, (dy, dx) in enumerate(CELL_ORDER):
            place = (slice(dy, None, 2), slice(dx, None, 2))
            mu[place], index[place] = self._predict(quality, features[k], before)
            s[place] = symbols(place, mu[place], index[place])
            before.append(np.clip((self._residual(quality, s[place]) + 2) >> 2, -511, 511))
        return s, index, mu

    def predict(self, quality: int, z: Int16Array, s: Int16Array) -> tuple[Int16Array, UInt8Array]:
        """Run the hyper-synthesis."""
        _, index, mu = self._walk(
            quality, z, lambda place, _, index: np.where(index > 0, s[place], 0).astype(np.int16)
        )
        return mu, index

    def quantize(
        self,
        quality: int,
        z: Int16Array,
        y: npt.NDArray[np.float32],
        reluctance: npt.NDArray[np.float32] | None,
    ) -> tuple[Int16Array, UInt8Array]:
        """Return symbols, with the core's order of float32 operations."""
        gain = self._gain[quality - 1]

        def symbols(place: _Place, mu: Int16Array, index: UInt8Array) -> Int16Array:
            centre = mu.astype(np.float32) * np.float32(0.0625)
            with np.errstate(over="ignore", invalid="ignore"):
                raw = (y[place] - centre) * gain
            v = np.clip(np.nan_to_num(raw, nan=0.0), -SYMBOL_LIMIT, SYMBOL_LIMIT)
            v = v.astype(np.float32)
            s = np.trunc(v + np.copysign(np.float32(0.5), v)).astype(np.int16)
            s = np.where(index > 0, s, 0).astype(np.int16)
            return s if reluctance is None else _shrink(s, raw, reluctance[index])

        s, index, _ = self._walk(quality, z, symbols)
        return s, index

    def price(
        self,
        quality: int,
        z: Int16Array,
        y: npt.NDArray[np.float32],
        reluctance: npt.NDArray[np.float32] | None,
        weight: float,
    ) -> npt.NDArray[np.float32]:
        """Return bits and weighted squared errors of the symbols, by cell."""
        s, index = self.quantize(quality, z, y, reluctance)
        mu, _ = self.predict(quality, z, s)
        error = (y - mu.astype(np.float32) * np.float32(0.0625)) * self._gain[quality - 1] - s
        cost = weight * error.astype(np.float64) ** 2
        half, row = np.array(self._half)[index], self._row_of[index]
        inside = np.abs(s) <= half
        price = self._bits[row + np.where(inside, s + half, 2 * half + 1)]
        cost += np.where(index > 0, price + np.where(inside, 0.0, ESCAPE_BITS), 0.0)
        cells = cost.sum(2).reshape(z.shape[0], 2, z.shape[1], 2).sum((1, 3))
        return np.asarray(cells, np.float32)

    def encode(self, quality: int, z: Int16Array, index: UInt8Array, s: Int16Array) -> bytes:
        """Write one substream."""
        for symbols, limit in ((z, HYPER_LIMIT), (s, SYMBOL_LIMIT)):
            if symbols.min() < -limit or symbols.max() > limit:  # abs(-32768) is -32768 in int16
                raise ValueError("argument")
        if s[index == 0].any() or index.max() >= len(self._cdf):
            raise ValueError("argument")
        levels = np.broadcast_to(self._t.index_z[quality - 1], z.shape)
        ops: list[tuple[int, int]] = []
        for level, value in zip(levels.ravel().tolist(), z.ravel().tolist(), strict=True):
            self._push(ops, level, value)
        for place in _order(*z.shape[:2]):
            coded = index[place] > 0
            for level, value in zip(
                index[place][coded].tolist(), s[place][coded].tolist(), strict=True
            ):
                self._push(ops, level, value)
        return _write(ops)

    def _push(self, ops: list[tuple[int, int]], level: int, value: int) -> None:
        half, cdf = self._half[level], self._cdf[level]
        if -half <= value <= half:
            k = value + half
            ops.append((cdf[k], cdf[k + 1] - cdf[k]))
            return
        ops.append((cdf[-2], _TOTAL - cdf[-2]))
        u = 2 * (abs(value) - half - 1) + (value < 0)
        count = -(-u.bit_length() // 4)
        ops.append((count * _NIBBLE, _NIBBLE))
        ops += [((u >> 4 * k & 15) * _NIBBLE, _NIBBLE) for k in reversed(range(count))]

    def decode(self, quality: int, zh: int, zw: int, data: bytes) -> tuple[Int16Array, Int16Array]:
        """Read one substream."""
        t, row = self._t, quality - 1
        reader = _RansReader(data)
        levels = t.index_z[row].tolist() * (zh * zw)
        z = np.array([self._read(reader, level, HYPER_LIMIT) for level in levels], np.int16)
        z = z.reshape(zh, zw, -1)
        rows = [self._read_row(reader, quality, z[y : y + 1]) for y in range(zh)]
        reader.finish()
        return z, np.concatenate(rows)

    def _read_row(self, reader: _RansReader, quality: int, z: Int16Array) -> Int16Array:
        """Read the symbols of one row of cells; return y_hat, (2, 2 zw, M)."""

        def symbols(_: _Place, __: Int16Array, index: UInt8Array) -> npt.NDArray[np.int32]:
            s = np.zeros(index.shape, np.int32)
            coded = index > 0
            s[coded] = [self._read(reader, level, SYMBOL_LIMIT) for level in index[coded].tolist()]
            return s

        s, _, mu = self._walk(quality, z, symbols)
        y_hat: Int16Array = np.clip(self._residual(quality, s) + mu, -32768, 32767).astype(np.int16)
        return y_hat

    def _read(self, reader: _RansReader, level: int, limit: int) -> int:
        cdf, half = self._cdf[level], self._half[level]
        k = bisect_right(cdf, reader.current & _MASK) - 1
        reader.advance(cdf[k], cdf[k + 1] - cdf[k])
        value = int(k - half) if k <= 2 * half else self._read_escape(reader, half)
        if abs(value) > limit:  # a wide table reaches beyond what z may be
            raise ValueError("corrupt")
        return value

    def _read_escape(self, reader: _RansReader, half: int) -> int:
        count = reader.nibble()
        if count > 4:
            raise ValueError("corrupt")
        u = 0
        for _ in range(count):
            u = u << 4 | reader.nibble()
        return -(u >> 1) - half - 1 if u & 1 else (u >> 1) + half + 1


def _linear(weight: npt.NDArray[np.int8], x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the products of the last axis of x with the rows of `weight`."""
    return (x.astype(np.float64) @ weight.astype(np.float64).T).astype(np.int64)


def _activation(acc: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.int64]:
    out: npt.NDArray[np.int64] = np.clip((acc + (1 << (shift - 1))) >> shift, 0, 255)
    return out


def _order(zh: int, zw: int) -> Iterator[_Place]:
    """Yield the latents in the order of coding, as places in (2 zh, 2 zw, M) arrays."""
    for y in range(zh):
        for dy, dx in CELL_ORDER:
            yield slice(2 * y + dy, 2 * y + dy + 1), slice(dx, 2 * zw, 2)


def _shrink(
    s: Int16Array, v: npt.NDArray[np.float32], reluctance: npt.NDArray[np.float32]
) -> Int16Array:
    """Lower magnitudes one by one where |v| lies below the threshold of doing so."""
    k, sign = np.abs(s), np.sign(s)
    v = np.abs(v)
    with np.errstate(over="ignore", invalid="ignore"):
        while True:
            entry = np.clip(k, 1, RELUCTANCES)[..., None] - 1
            threshold = np.take_along_axis(reluctance, entry, -1)[..., 0]
            low = (k > 0) & (v < k.astype(np.float32) - np.float32(0.5) + threshold)
            if not low.any():
                return (k * sign).astype(np.int16)
            k = k - low


def _write(ops: list[tuple[int, int]]) -> bytes:
    """Run rANS backwards; step k belongs to state k mod 2."""
    state = [_LOW, _LOW]
    words: list[int] = []
    for k in range(len(ops) - 1, -1, -1):
        start, frequency = ops[k]
        x = state[k & 1]
        if x >> (32 - PRECISION) >= frequency:
            words.append(x & 0xFFFF)
            x >>= 16
        state[k & 1] = (x // frequency << PRECISION) + x % frequency + start
    return np.array(state, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()


class _RansReader:
    """The decoder's two states, which take turns."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 8:
            raise ValueError("truncated")
        self.current = int.from_bytes(data[:4], "little")
        self._other = int.from_bytes(data[4:8], "little")
        if self.current < _LOW or self._other < _LOW:
            raise ValueError("corrupt")
        self._words = np.frombuffer(data, "<u2", (len(data) - 8) // 2, 8).tolist()
        self._odd = len(data) % 2
        self._at = 0

    def advance(self, start: int, frequency: int) -> None:
        x = frequency * (self.current >> PRECISION) + (self.current & _MASK) - start
        if x < _LOW:
            if self._at == len(self._words):
                raise ValueError("truncated")
            x = x << 16 | self._words[self._at]
            self._at += 1
        self.current, self._other = self._other, x

    def nibble(self) -> int:
        v = (self.current & _MASK) // _NIBBLE
        self.advance(v * _NIBBLE, _NIBBLE)
        return v

    def finish(self) -> None:
        if self._odd or self._at != len(self._words) or (self.current, self._other) != (_LOW, _LOW):
            raise ValueError("corrupt")
