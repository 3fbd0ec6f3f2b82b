"""The steady state: everybody takes turns on the same pictures until there is enough to say.

Rules, in the spirit of MLPerf Mobile's single-stream scenario:

- warm-up: on each size of picture at least 3 runs, and until a run is no more than a tenth faster
  than the one before, at most 10; they are kept apart;
- stop: at least `runs` timed runs each AND at least `seconds` of timing, whichever takes longer,
  and only after whole rounds, so that every picture counts alike;
- order: within a round all pictures, on each picture everybody once, a different one first each
  time. Whatever else the machine does so slows all of them alike. Yardsticks take part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgecodec.arrays import UInt8Array
from edgecodec.device_tests.measuring.contenders import Contender
from edgecodec.device_tests.measuring.energy import RaplMeter
from edgecodec.device_tests.measuring.yardstick import yardsticks

MIN_WARM_UP, MAX_WARM_UP = 3, 10
STABLE = 0.9
Clock = Callable[[], float]


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        runs: least number of timed runs of each contender, over all pictures.
        seconds: least time of all timed runs together.
    """

    runs: int = 100
    seconds: float = 10.0


@dataclass
class Series:
    """Samples of one contender on one picture.

    Attributes:
        starts_s: when each timed run began, from the begin of the benchmark.
        stages: seconds of each run by stage, as Coded.seconds; all equally long.
        warm_up: seconds of encoding plus decoding of each run before.
        bytes: size of its file.
        joules: of the timed runs; None where energy is unknown.
    """

    starts_s: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    warm_up: list[float] = field(default_factory=list)
    bytes: int = 0
    joules: float | None = None

    def add(self, start_s: float, seconds: Mapping[str, float]) -> None:
        """Keep a timed run."""
        self.starts_s.append(start_s)
        for stage, value in seconds.items():
            self.stages.setdefault(stage, []).append(value)


@dataclass
class YardstickSeries:
    """Samples of fixed work.

    Attributes:
        name: see Yardstick.
        settings: see Yardstick.
        starts_s: when each run began, as in Series.
        seconds: of each run.
    """

    name: str
    settings: str
    starts_s: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Steady:
    """What was measured.

    Attributes:
        series: by name of contender and name of picture.
        yardsticks: one per piece of fixed work.
    """

    series: dict[tuple[str, str], Series]
    yardsticks: list[YardstickSeries]


def measure_steady(
    contenders: Sequence[Contender],
    pictures: Mapping[str, UInt8Array],
    limits: Limits,
    meter: RaplMeter | None = None,
    clock: Clock = time.perf_counter,
) -> Steady:
    """Warm up and time.

    Args:
        contenders: at least one.
        pictures: (H, W, 3) uint8 by name, at least one.
        limits: when to stop.
        meter: of energy.
        clock: source of seconds.
    """
    meter = meter or RaplMeter()
    results = {(c.name, p): Series() for p in pictures for c in contenders}
    with yardsticks() as given:
        fixed = [(y.run, YardstickSeries(y.name, y.settings)) for y in given]
        for contender in contenders:
            for name, pixels in _one_per_size(pictures).items():
                _warm_up(contender, pixels, results[contender.name, name])
        for run, _ in fixed:
            run()
        begin, turn, rounds = clock(), 0, 0
        while rounds * len(pictures) < limits.runs or clock() - begin < limits.seconds:
            for name, pixels in pictures.items():
                first = turn % len(contenders)
                for contender in [*contenders[first:], *contenders[:first]]:
                    series = results[contender.name, name]
                    _run(contender, pixels, series, clock() - begin, meter)
                for run, samples in fixed:
                    start = clock()
                    run()
                    samples.starts_s.append(start - begin)
                    samples.seconds.append(clock() - start)
                turn += 1
            rounds += 1
    return Steady(results, [samples for _, samples in fixed])


def _run(
    contender: Contender, pixels: UInt8Array, series: Series, start_s: float, meter: RaplMeter
) -> None:
    before = meter.joules()
    coded = contender.once(pixels)
    after = meter.joules()
    series.add(start_s, coded.seconds)
    series.bytes = len(coded.data)
    if before is not None and after is not None:
        series.joules = (series.joules or 0.0) + after - before


def _warm_up(contender: Contender, pixels: UInt8Array, series: Series) -> None:
    taken = series.warm_up
    while len(taken) < MAX_WARM_UP:
        seconds = contender.once(pixels).seconds
        taken.append(seconds["encode"] + seconds["decode"])
        if len(taken) >= MIN_WARM_UP and taken[-1] >= STABLE * taken[-2]:
            return


def _one_per_size(pictures: Mapping[str, UInt8Array]) -> dict[str, UInt8Array]:
    """Return the first picture of each size: runtimes prepare themselves for a size."""
    found: dict[tuple[int, ...], tuple[str, UInt8Array]] = {}
    for name, pixels in pictures.items():
        found.setdefault(pixels.shape, (name, pixels))
    return dict(found.values())
