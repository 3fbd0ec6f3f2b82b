"""A decoder of substreams written from docs/FORMAT.md alone: plain integers, no edgecodec.

Slow and simple on purpose. It checks that no sum leaves the bits that the document grants it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

ORDER = ((0, 0), (1, 1), (0, 1), (1, 0))
Field = list[list[list[int]]]
"""Rows of columns of channels."""


class FormatError(Exception):
    """What FORMAT.md calls damage, or data cut short."""


def clip(v: int, low: int, high: int) -> int:
    return max(low, min(high, v))


def bounded(v: int, bits: int) -> int:
    assert abs(v) < 1 << bits, f"{v} leaves {bits} bits"
    return v


def dot(weights: list[int], values: list[int]) -> int:
    return sum(w * v for w, v in zip(weights, values, strict=True))


class FormatTables:
    """Section Tables."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 32
        assert data[:8] == bytes.fromhex("894543540D0A1A0A")
        version, m, z, h, f, c = struct.unpack("<6H", data[8:20])
        assert version == 2
        assert data[20] == 14
        assert data[22:32] == bytes([4, 4, 4, 6, 2, 6, 4, 2, 2, 0])
        self.m, self.z, self.f, self.levels = m, z, f, data[21]
        self.w: list[int] = self._take("H", self.levels)
        self.frequencies = [[], *(self._take("H", 2 * w + 2) for w in self.w[1:])]
        self.start = [[0, *accumulate(row)] for row in self.frequencies]
        self.w1 = self._rows("b", h, z)
        self.w2 = self._rows("b", 4 * f, h)
        self.c = [self._rows("b", c, k * m) for k in (1, 2, 3)]
        self.w3 = self._rows("b", 2 * m, f + c)
        self.b1 = self._rows("i", 100, h)
        self.b2 = self._take("i", 4 * f)
        self.bc = self._rows("i", 3, c)
        self.b3 = self._take("i", m)
        self.index_bias = self._rows("i", 100, m)
        self.step_y = self._rows("i", 100, m)
        self.step_z = self._rows("i", 100, z)
        self.index_z = self._rows("B", 100, z)
        self._take("f", 100 * z)
        assert self._at == len(data)

    def _take(self, kind: str, count: int) -> list[Any]:
        values = struct.unpack_from(f"<{count}{kind}", self._data, self._at)
        self._at += struct.calcsize(f"<{count}{kind}")
        return list(values)

    def _rows(self, kind: str, rows: int, columns: int) -> list[list[int]]:
        return [self._take(kind, columns) for _ in range(rows)]


@dataclass
class Decoded:
    """What a substream says."""

    z: Field
    s: Field
    mu: Field
    index: Field
    y_hat: Field
    steps: int
    """How many steps of the entropy coder it took."""


class FormatDecoder:
    """Section Substream."""

    def __init__(self, tables: bytes, quality: int, data: bytes) -> None:
        self.t, self.q = FormatTables(tables), quality - 1
        if len(data) < 8:
            raise FormatError("cut short")
        self._state = list(struct.unpack("<II", data[:8]))
        if min(self._state) < 1 << 16:
            raise FormatError("state")
        self._words, self._used, self._steps = data[8:], 0, 0

    def _step(self, starts: list[int]) -> int:
        """Return which of the intervals [starts[i], starts[i + 1]) a step falls into."""
        k = self._steps % 2
        self._steps += 1
        x = self._state[k]
        slot = x % (1 << 14)
        symbol = next(i for i in range(len(starts) - 1) if starts[i] <= slot < starts[i + 1])
        x = (starts[symbol + 1] - starts[symbol]) * (x >> 14) + slot - starts[symbol]
        if x < 1 << 16:
            word = self._words[self._used : self._used + 2]
            if len(word) < 2:
                raise FormatError("cut short")
            x = (x << 16) + int.from_bytes(word, "little")
            self._used += 2
        assert x < 1 << 32
        self._state[k] = x
        return symbol

    def _symbol(self, level: int, limit: int) -> int:
        w = self.t.w[level]
        i = self._step(self.t.start[level])
        if i <= 2 * w:
            value = i - w
        else:
            nibbles = [v << 10 for v in range(17)]
            n = self._step(nibbles)
            if n > 4:
                raise FormatError("nibbles")
            u = 0
            for _ in range(n):
                u = 16 * u + self._step(nibbles)
            value = (u >> 1) + w + 1
            value = -value if u % 2 else value
        if abs(value) > limit:
            raise FormatError("range")
        return value

    def decode(self, rows: int, columns: int) -> Decoded:
        """Decode a tile of `rows` x `columns` hyper-latents."""
        t = self.t
        z = [
            [[self._symbol(level, 127) for level in t.index_z[self.q]] for _ in range(columns)]
            for _ in range(rows)
        ]
        empty: Field = [[[] for _ in range(2 * columns)] for _ in range(2 * rows)]
        s, mu, index, y_hat = ([list(row) for row in empty] for _ in range(4))
        for v in range(rows):
            features = [self._features(z[v][u]) for u in range(columns)]
            before: list[list[list[int]]] = [[] for _ in range(columns)]
            for k, (dy, dx) in enumerate(ORDER):
                for u in range(columns):
                    g = features[u]
                    f = [g[4 * i + 2 * dy + dx] for i in range(t.f)]
                    now_mu, now_index = self._heads(f, self._context(k, before[u]))
                    now_s = [self._symbol(i, 8191) if i else 0 for i in now_index]
                    r = [
                        bounded(x * step + 32, 30) >> 6
                        for x, step in zip(now_s, t.step_y[self.q], strict=True)
                    ]
                    before[u].append([clip((x + 2) >> 2, -511, 511) for x in r])
                    y, x = 2 * v + dy, 2 * u + dx
                    s[y][x], mu[y][x], index[y][x] = now_s, now_mu, now_index
                    y_hat[y][x] = [
                        clip(a + b, -32768, 32767) for a, b in zip(r, now_mu, strict=True)
                    ]
        if self._state != [1 << 16] * 2 or self._used != len(self._words):
            raise FormatError("end")
        return Decoded(z, s, mu, index, y_hat, self._steps)

    def _features(self, z: list[int]) -> list[int]:
        t = self.t
        steps = zip(z, t.step_z[self.q], strict=True)
        a = [clip(bounded(x * step + 8, 22) >> 4, -2047, 2047) for x, step in steps]
        h = [
            clip(bounded(bias + dot(row, a) + 32, 28) >> 6, 0, 255)
            for bias, row in zip(t.b1[self.q], t.w1, strict=True)
        ]
        return [
            clip(bounded(bias + dot(row, h) + 32, 25) >> 6, 0, 255)
            for bias, row in zip(t.b2, t.w2, strict=True)
        ]

    def _context(self, k: int, before: list[list[int]]) -> list[int]:
        t = self.t
        if k == 0:
            return [0] * len(t.bc[0])
        p = [value for latent in before for value in latent]
        return [
            clip(bounded(bias + dot(row, p) + 8, 27) >> 4, 0, 255)
            for bias, row in zip(t.bc[k - 1], t.c[k - 1], strict=True)
        ]

    def _heads(self, f: list[int], e: list[int]) -> tuple[list[int], list[int]]:
        t = self.t
        biases = t.b3 + t.index_bias[self.q]
        acc = [bias + dot(row, f + e) for bias, row in zip(biases, t.w3, strict=True)]
        mu = [clip(bounded(a + 8, 26) >> 4, -16384, 16384) for a in acc[: t.m]]
        index = [clip(bounded(a + 128, 26) >> 8, 0, t.levels - 1) for a in acc[t.m :]]
        return mu, index
