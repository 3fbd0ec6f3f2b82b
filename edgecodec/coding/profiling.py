"""Where the time of a call goes: a recorder that a codec is given, and that costs nothing else.

    encode   read       the caller's picture becomes (H, W, 3) uint8 and metadata
             unpack     pixels of a tile and its halo become float32
             analysis   g_a and h_a, on the backend
             hyper      hyper-latents and symbols are quantized; runs the integer h_s
             entropy    symbols become bytes
             write      container, checksums
    decode   parse      container, checksums
             entropy    bytes become latents; h_s runs inside, in steps with the symbols
             synthesis  g_s, on the backend
             pack       levels become uint8, parts become a picture with its metadata

At effort 2 and above `optimisation` stands between analysis and hyper.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

ENCODE_STAGES = ("read", "unpack", "analysis", "optimisation", "hyper", "entropy", "write")
DECODE_STAGES = ("parse", "entropy", "synthesis", "pack")
NETWORK_STAGES = ("analysis", "synthesis")


@dataclass(frozen=True)
class Span:
    """One stage at work.

    Attributes:
        name: of the stage.
        start_s: when it began, on the clock of `time.perf_counter`.
        end_s: when it ended.
        thread: identity of the thread that worked.
        tile: number of the tile from 0, of synthesis and pack that of the part that is made at a
            time; None where the whole picture is meant.
    """

    name: str
    start_s: float
    end_s: float
    thread: int
    tile: int | None = None


class Profile:
    """Records the stages of one call or of several. Stages may run in several threads."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage, added up, in the order in which stages first ended."""
        total: dict[str, float] = {}
        for span in self.spans:
            total[span.name] = total.get(span.name, 0.0) + span.end_s - span.start_s
        return total

    def stage(self, name: str, tile: int | None = None) -> AbstractContextManager[None]:
        """Record a block as a stage."""
        return _TimedStage(self.spans, name, tile)


class _TimedStage:
    def __init__(self, spans: list[Span], name: str, tile: int | None) -> None:
        self._spans, self._name, self._tile = spans, name, tile

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        end_s = time.perf_counter()
        self._spans.append(
            Span(self._name, self._start_s, end_s, threading.get_ident(), self._tile)
        )


_NOTHING = nullcontext()


def stage(
    profile: Profile | None, name: str, tile: int | None = None
) -> AbstractContextManager[None]:
    """Record a block as a stage where there is a profile; do nothing where there is none."""
    return _NOTHING if profile is None else profile.stage(name, tile)


def covered_s(spans: Iterable[Span]) -> float:
    """Return the seconds during which at least one stage was at work, in whatever thread.

    >>> covered_s([Span("a", 0.0, 2.0, 1), Span("b", 1.0, 3.0, 2), Span("c", 5.0, 6.0, 1)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start_s):
        total += max(0.0, span.end_s - max(span.start_s, reached))
        reached = max(reached, span.end_s)
    return total
