"""Fuzz both entropy coders at once: whatever the bytes, C core and NumPy twin say the same.

    nice python -m tests.fuzzing.twins --executions 500000 --state DIR

Substreams are written with values in and out of range, changed, and read with tables, qualities and
sizes that they may not be of. Both must give the same latents or the same kind of error.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from edgecodec.errors import BitstreamError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.numpy_coder import NumpyImplementation, _write
from edgecodec.format.tables import HYPER_LIMIT, SYMBOL_LIMIT, Tables
from tests.format.test_coder_bounds import (
    EXTREMES,
    STEPS,
    coding_tables,
    flat_tables,
    opposing_tables,
)
from tests.fuzzing.campaign import Outcome, Target, main
from tests.support.streams import likely_tables, mutated, symbols, wild_tables

Coders = tuple[LatentCoder, LatentCoder]
SIZES = ((1, 1), (1, 2), (2, 1), (1, 5), (3, 3))
VALUES = (0, 1, -1, HYPER_LIMIT, -HYPER_LIMIT, HYPER_LIMIT + 1, -HYPER_LIMIT - 1, SYMBOL_LIMIT,
          -SYMBOL_LIMIT, SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1, 32767, -32768)  # fmt: skip


@dataclass(frozen=True)
class Stream:
    """Bytes, and what they are read as.

    Attributes:
        tables: number of a pair of coders.
        quality: 1..100.
        size: rows and columns of hyper-latents.
        data: the substream.
    """

    tables: int
    quality: int
    size: tuple[int, int]
    data: bytes


def all_tables() -> list[Tables]:
    """Tables of a model's kind, of any values, and of those that make the largest sums."""
    found = [likely_tables(n, 3 + n, 2 + n, 5, 3, 4) for n in range(3)]
    found += [wild_tables(n, 2, 3, 4, 2, 3, levels) for n, levels in enumerate((2, 5, 40))]
    found += [flat_tables(16, **values, **STEPS) for values, _, _ in EXTREMES.values()]
    found.append(opposing_tables(np.random.default_rng(0), 16))
    rows = [[1, 2**14 - 1026, 1, 1024], [11, 16371, 1, 1], [1, 1, 1, 2**14 - 3]]
    widest = [1] * (2 * 2047) + [2**14 - 2 * 2047 - 1024, 1024]
    return [*found, coding_tables(rows, [1, 2, 3]), coding_tables([widest], [1, 1])]


def written(source: random.Random, coders: Coders, quality: int, size: tuple[int, int]) -> bytes:
    """Return a substream: of symbols, or of steps no encoder takes."""
    if source.random() < 0.5:
        extremes = source.choice([0.0, 0.1, 0.6])
        return symbols(coders[0], source.randrange(1 << 32), quality, *size, extremes).encode(
            coders[0]
        )
    twin = coders[1]._impl
    assert isinstance(twin, NumpyImplementation)
    ops: list[tuple[int, int]] = []
    levels = len(coders[1].tables.frequencies)
    for _ in range(source.randrange(1, 40)):
        value = source.choice(VALUES) if source.random() < 0.3 else source.randint(-3, 3)
        twin._push(ops, source.randrange(1, levels), value)
    return _write(ops)


def mutate(coders: list[Coders], source: random.Random, stream: Stream) -> Stream:
    """Return other bytes, or the same read as something else."""
    move = source.randrange(10)
    if move == 0:
        return replace(stream, quality=source.choice([1, 50, 100, source.randint(1, 100)]))
    if move == 1:
        return replace(stream, size=source.choice(SIZES))
    if move == 2:
        return replace(stream, tables=source.randrange(len(coders)))
    if move in (3, 4):
        number = source.randrange(len(coders))
        quality, size = source.randint(1, 100), source.choice(SIZES)
        return Stream(number, quality, size, written(source, coders[number], quality, size))
    if move == 5:
        return replace(stream, data=stream.data[: source.randrange(len(stream.data) + 1)])
    return replace(stream, data=mutated(stream.data, source))


def run(coders: list[Coders], stream: Stream) -> Outcome:
    """Read a substream with both; give how it ended."""
    ends: list[tuple[str, bytes]] = []
    for coder in coders[stream.tables]:
        try:
            z, y_hat = coder.decode(stream.quality, *stream.size, stream.data)
        except BitstreamError as exc:
            ends.append((type(exc).__name__, b""))
        else:
            ends.append(("read", z.tobytes() + y_hat.tobytes()))
    assert ends[0] == ends[1], f"C: {ends[0][0]}, NumPy: {ends[1][0]}"
    kind = ends[0][0]
    # How far it came: rough sizes, so that short and long ones are kept.
    return (kind, stream.tables, stream.size, len(stream.data).bit_length())


def save(path: Path, stream: Stream) -> None:
    """Write an input that found something."""
    path.with_suffix(".txt").write_text(repr(stream))


def targets_in(folder: Path) -> list[Target[Stream]]:
    del folder  # nothing is written
    contents = [tables.to_bytes() for tables in all_tables()]
    coders = [(LatentCoder(data, "c"), LatentCoder(data, "numpy")) for data in contents]
    source = random.Random(0)
    seeds = []
    for number, pair in enumerate(coders):
        data = symbols(pair[0], number, 50, 1, 2).encode(pair[0])
        seeds += [Stream(number, 50, (1, 2), data)]
        seeds += [Stream(number, 50, (1, 1), written(source, pair, 50, (1, 1)))]
    return [Target("twins", seeds, partial(mutate, coders), partial(run, coders), (), save)]


if __name__ == "__main__":
    main(lambda: targets_in(Path()))
