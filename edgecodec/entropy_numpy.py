"""The NumPy twin of the C core: oracle in tests, and fallback where the core is not built.

Float64 matrix products of integers stay exact while every partial sum is below 2**53. The rANS
loop is plain Python and slow: about a second for a Kodak image.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from edgecodec.tables import HYPER_LIMIT, PRECISION, SYMBOL_LIMIT, Tables

_TOTAL = 1 << PRECISION
_MASK = _TOTAL - 1
_LOW = 1 << 16
_NIBBLE = _TOTAL >> 4

Int16Array = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]


class NumpyImplementation:
    """See `edgecodec.entropy.LatentCoder` for shapes; failures are a ValueError of one word."""

    name = "numpy"

    def __init__(self, tables: Tables) -> None:
        self._t = tables
        self._cdf = [[0, *np.cumsum(row, dtype=np.int64).tolist()] for row in tables.frequencies]
        self._half = [max(0, len(row) - 2) // 2 for row in tables.frequencies]
        self._weights = [w.astype(np.float64).T for w in (tables.w1, tables.w2, tables.w3)]

    def hyper(self, quality: int, z: Int16Array) -> tuple[Int16Array, UInt8Array]:
        """Run the hyper-synthesis."""
        t, row = self._t, quality - 1
        zh, zw, _ = z.shape
        x = np.clip((z.astype(np.int64) * t.step_z[row] + 8) >> 4, -2047, 2047)
        h = _activation(self._linear(0, x) + t.b1[row])
        h = _activation(self._linear(1, h) + t.b2)
        # Pixel shuffle: feature 4 f + 2 dy + dx goes to position (dy, dx).
        f = h.reshape(zh, zw, -1, 2, 2).transpose(0, 3, 1, 4, 2).reshape(2 * zh, 2 * zw, -1)
        acc = self._linear(2, f)
        m = t.latent_channels
        mu = np.clip((acc[..., :m] + t.b3 + 8) >> 4, -16384, 16384)
        index = (acc[..., m:] + t.index_bias[row] + 128) >> 8
        return mu.astype(np.int16), np.clip(index, 0, len(self._cdf) - 1).astype(np.uint8)

    def _linear(self, layer: int, x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return (x.astype(np.float64) @ self._weights[layer]).astype(np.int64)

    def quantize(
        self, quality: int, y: npt.NDArray[np.float32], mu: Int16Array, index: UInt8Array
    ) -> Int16Array:
        """Return symbols, with the core's order of float32 operations."""
        centre = mu.astype(np.float32) * np.float32(0.0625)
        with np.errstate(over="ignore", invalid="ignore"):
            v = np.nan_to_num((y - centre) * self._t.gain_y[quality - 1], nan=0.0)
        v = np.clip(v, -SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.float32)
        s = np.trunc(v + np.copysign(np.float32(0.5), v)).astype(np.int16)
        return np.where(index > 0, s, 0).astype(np.int16)

    def encode(self, quality: int, z: Int16Array, index: UInt8Array, s: Int16Array) -> bytes:
        """Write one substream."""
        for symbols, limit in ((z, HYPER_LIMIT), (s, SYMBOL_LIMIT)):
            if symbols.min() < -limit or symbols.max() > limit:  # abs(-32768) is -32768 in int16
                raise ValueError("argument")
        if s[index == 0].any() or index.max() >= len(self._cdf):
            raise ValueError("argument")
        levels = np.broadcast_to(self._t.index_z[quality - 1], z.shape)
        coded = index > 0
        ops: list[tuple[int, int]] = []
        for level, value in zip(levels.ravel().tolist(), z.ravel().tolist(), strict=True):
            self._push(ops, level, value)
        for level, value in zip(index[coded].tolist(), s[coded].tolist(), strict=True):
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
        reader = _Reader(data)
        levels = t.index_z[row].tolist() * (zh * zw)
        z = np.array([self._read(reader, level, HYPER_LIMIT) for level in levels], np.int16)
        z = z.reshape(zh, zw, -1)
        mu, index = self.hyper(quality, z)
        s = np.zeros(mu.shape, np.int32)
        coded = index > 0
        s[coded] = [self._read(reader, level, SYMBOL_LIMIT) for level in index[coded].tolist()]
        reader.finish()
        y_hat = ((s * t.step_y[row] + 32) >> 6) + mu
        return z, np.clip(y_hat, -32768, 32767).astype(np.int16)

    def _read(self, reader: _Reader, level: int, limit: int) -> int:
        cdf, half = self._cdf[level], self._half[level]
        k = bisect_right(cdf, reader.current & _MASK) - 1
        reader.advance(cdf[k], cdf[k + 1] - cdf[k])
        if k <= 2 * half:
            return int(k - half)
        count = reader.nibble()
        if count > 4:
            raise ValueError("corrupt")
        u = 0
        for _ in range(count):
            u = u << 4 | reader.nibble()
        value = -(u >> 1) - half - 1 if u & 1 else (u >> 1) + half + 1
        if abs(value) > limit:
            raise ValueError("corrupt")
        return value


def _activation(acc: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    out: npt.NDArray[np.int64] = np.clip((acc + 32) >> 6, 0, 255)
    return out


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


class _Reader:
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
