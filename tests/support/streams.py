"""Tables that no training made, and substreams of random symbols: what tests of the coder share."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Int16Array, UInt8Array
from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import (
    HYPER_LIMIT,
    PRECISION,
    QUALITIES,
    SYMBOL_LIMIT,
    Tables,
    scale_of,
)


def gaussian_row(sigma: float) -> npt.NDArray[np.uint16]:
    """Frequencies near a Gaussian's, without the care (and the torch) of an export."""
    half = max(1, math.ceil(4 * sigma))
    edges = [math.erf((k - 0.5) / (sigma * math.sqrt(2))) for k in range(1, half + 2)]
    side = [max(1, int((b - a) * 0.5 * 15000)) for a, b in pairwise(edges)]
    centre = (1 << PRECISION) - 2 - 2 * sum(side)
    return np.array([*side[::-1], centre, *side, 2], np.uint16)


def likely_tables(
    seed: int = 0, m: int = 37, z: int = 21, h: int = 19, f: int = 13, c: int = 11
) -> Tables:
    """Tables like a model's: activations, means, scales and context move with what enters.

    By default no count of channels is one that the core's padding likes.
    """
    rng = np.random.default_rng(seed)

    def weights(gain: float, outputs: int, inputs: int) -> npt.NDArray[np.int8]:
        values = rng.normal(0, gain / math.sqrt(inputs), (outputs, inputs))
        return np.rint(values).clip(-127, 127).astype(np.int8)

    def integers(low: float, high: float, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
        return rng.integers(int(low), int(high), shape, endpoint=True).astype(np.int32)

    quality = np.linspace(1.0, 0.05, QUALITIES)[:, None]
    heads = np.concatenate([weights(64, m, f + c), weights(20, m, f + c)])
    return Tables(
        frequencies=(np.zeros(0, np.uint16), *(gaussian_row(scale_of(i)) for i in range(1, 64))),
        w1=weights(64, h, z),
        w2=weights(64, 4 * f, h),
        c1=weights(30, c, m),
        c2=weights(30, c, 2 * m),
        c3=weights(30, c, 3 * m),
        w3=heads,
        b1=integers(0, 6000, (QUALITIES, h)),
        b2=integers(0, 4000, (4 * f,)),
        bc=integers(-300, 1500, (3, c)),
        b3=integers(-1000, 1000, (m,)),
        index_bias=integers(1000, 7000, (QUALITIES, m)),
        step_y=np.rint(quality * integers(4000, 16000, (m,)) + 900).astype(np.int32),
        step_z=integers(40, 400, (QUALITIES, z)),
        index_z=rng.integers(1, 50, (QUALITIES, z)).astype(np.uint8),
        gain_z=rng.uniform(0.5, 8, (QUALITIES, z)).astype(np.float32),
    )


def wild_tables(seed: int, m: int, z: int, h: int, f: int, c: int, levels: int) -> Tables:
    """Valid tables of any shape, with values anywhere within their bounds."""
    rng = np.random.default_rng(seed)

    def frequencies() -> npt.NDArray[np.uint16]:
        row = np.ones(2 * int(rng.integers(1, 40)) + 2, np.int64)
        row[len(row) // 2] += (1 << PRECISION) - row.sum()
        return row.astype(np.uint16)

    def integers(low: int, high: int, shape: tuple[int, ...], kind: str) -> npt.NDArray[Any]:
        return rng.integers(low, high, shape, endpoint=True).astype(kind)

    bias = 1 << 23
    return Tables(
        frequencies=(np.zeros(0, np.uint16), *(frequencies() for _ in range(levels - 1))),
        w1=integers(-128, 127, (h, z), "i1"),
        w2=integers(-128, 127, (4 * f, h), "i1"),
        c1=integers(-128, 127, (c, m), "i1"),
        c2=integers(-128, 127, (c, 2 * m), "i1"),
        c3=integers(-128, 127, (c, 3 * m), "i1"),
        w3=integers(-128, 127, (2 * m, f + c), "i1"),
        b1=integers(-bias, bias, (QUALITIES, h), "i4"),
        b2=integers(-bias, bias, (4 * f,), "i4"),
        bc=integers(-(1 << 14), 1 << 14, (3, c), "i4"),
        b3=integers(-bias, bias, (m,), "i4"),
        index_bias=integers(-(1 << 14), 1 << 14, (QUALITIES, m), "i4"),
        step_y=integers(1, 131071, (QUALITIES, m), "i4"),
        step_z=integers(1, 32767, (QUALITIES, z), "i4"),
        index_z=integers(1, levels - 1, (QUALITIES, z), "u1"),
        gain_z=rng.random((QUALITIES, z), np.float32),
    )


@dataclass(frozen=True)
class Symbols:
    """What one substream holds."""

    quality: int
    z: Int16Array
    mu: Int16Array
    index: UInt8Array
    s: Int16Array

    @property
    def size(self) -> tuple[int, int]:
        return self.z.shape[0], self.z.shape[1]

    def encode(self, coder: LatentCoder) -> bytes:
        return coder.encode(self.quality, self.z, self.index, self.s)

    def y_hat(self, coder: LatentCoder) -> npt.NDArray[np.int64]:
        """The definition of docs/FORMAT.md, in 64 bits."""
        step = coder.tables.step_y[self.quality - 1].astype(np.int64)
        y_hat = ((self.s.astype(np.int64) * step + 32) >> 6) + self.mu
        clipped: npt.NDArray[np.int64] = np.clip(y_hat, -32768, 32767)
        return clipped


def predicted(coder: LatentCoder, quality: int, z: Int16Array, s: Int16Array) -> Symbols:
    """Symbols with what the coder predicts of them; those that are not coded become 0."""
    mu, index = coder.predict(quality, z, s)
    return Symbols(quality, z, mu, index, np.where(index > 0, s, 0).astype(np.int16))


def symbols(
    coder: LatentCoder, seed: int, quality: int, zh: int, zw: int, extremes: float = 0.01
) -> Symbols:
    """Random symbols, mostly small, some at and beyond the ends of the tables."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], scale: float, limit: int) -> Int16Array:
        values = np.rint(rng.laplace(0, scale, shape)).clip(-limit, limit)
        wild = rng.integers(-limit, limit + 1, shape)
        ends = rng.choice([-limit, limit], shape)
        lot = rng.random(shape)
        return np.select([lot < extremes, lot < 2 * extremes], [wild, ends], values).astype("i2")

    z = draw((zh, zw, coder.hyper_channels), rng.choice([0.3, 3, 30]), HYPER_LIMIT)
    shape = (2 * zh, 2 * zw, coder.latent_channels)
    return predicted(coder, quality, z, draw(shape, rng.choice([0.3, 3, 300]), SYMBOL_LIMIT))


def mutated(data: bytes, source: random.Random) -> bytes:
    """Return damaged bytes of one of several kinds."""
    out = bytearray(data)
    for _ in range(source.choice([1, 1, 2, 8])):
        kind, at = source.randrange(6), source.randrange(len(out) or 1)
        if kind == 0 and out:
            out[at] ^= 1 << source.randrange(8)
        elif kind == 1 and out:
            out[at] = source.randrange(256)
        elif kind == 2:
            del out[at : at + source.randrange(1, 9)]
        elif kind == 3:
            out[at:at] = source.randbytes(source.randrange(1, 9))
        elif kind == 4:
            out[at : at + 16] = source.choice([b"\0", b"\xff"]) * 16
        else:
            del out[at:]
    return bytes(out)
