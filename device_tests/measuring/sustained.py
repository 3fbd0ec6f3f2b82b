"""Minutes of work without a pause, so that a machine that throttles shows it as a curve."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgecodec.device_tests.measuring.contenders import Contender, UInt8Array
from edgecodec.device_tests.measuring.energy import RaplMeter, battery_joules
from edgecodec.runtimes.device.facts import Conditions
from edgecodec.runtimes.device.probe import read_conditions

WINDOWS = 60
SENSOR_PAUSE_S = 1.0
EDGE = 0.1
"""Share of the time at either end that is compared for throttling."""


@dataclass(frozen=True)
class SpeedWindow:
    """A part of a sustained run.

    Attributes:
        start_s: from the begin of the run.
        encode_mps: megapixels encoded per second of encoding, by the median call.
        decode_mps: megapixels decoded per second of decoding, by the median call.
        hottest_c: highest temperature; None where unknown.
        frequency_hz: of the first core, 0 where unknown.
    """

    start_s: float
    encode_mps: float
    decode_mps: float
    hottest_c: float | None
    frequency_hz: int


@dataclass
class Sustained:
    """A sustained run.

    Attributes:
        codec: who ran.
        starts_s: when each run began.
        encode_s: seconds of each call.
        decode_s: seconds of each call.
        megapixels: of the picture of each run.
        sensors: moments and conditions, about once a second.
        joules: used by all of it; None where unknown.
        energy_source: `RAPL`, `battery` or `unknown`.
    """

    codec: str
    starts_s: list[float] = field(default_factory=list)
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    megapixels: list[float] = field(default_factory=list)
    sensors: list[tuple[float, Conditions]] = field(default_factory=list)
    joules: float | None = None
    energy_source: str = "unknown"

    @property
    def joules_per_megapixel(self) -> float | None:
        """Energy of encoding and decoding a megapixel; None where unknown."""
        return None if self.joules is None else self.joules / sum(self.megapixels)

    def windows(self, count: int = WINDOWS) -> list[SpeedWindow]:
        """Return the curve: up to `count` parts of equal time, those without a run left out."""
        starts = np.asarray(self.starts_s)
        end = self.starts_s[-1] + self.encode_s[-1] + self.decode_s[-1]
        place = np.minimum((starts / end * count).astype(int), count - 1)
        found = []
        for number in sorted(set(place.tolist())):
            inside = place == number
            sensed = [c for t, c in self.sensors if number <= t / end * count < number + 1]
            temperatures = [c.hottest_c for c in sensed if c.hottest_c is not None]
            found.append(
                SpeedWindow(
                    number * end / count,
                    self._speed(self.encode_s, inside),
                    self._speed(self.decode_s, inside),
                    max(temperatures, default=None),
                    min((c.frequency_hz for c in sensed), default=0),
                )
            )
        return found

    def kept(self) -> tuple[float, float]:
        """Return the speed of the last tenth of the time over that of the first: (encode, decode).

        A machine that does not throttle keeps 1.
        """
        starts = np.asarray(self.starts_s)
        early = starts <= starts[0] + EDGE * (starts[-1] - starts[0])
        late = starts >= starts[-1] - EDGE * (starts[-1] - starts[0])
        values = (self.encode_s, self.decode_s)
        encode, decode = (self._speed(v, late) / self._speed(v, early) for v in values)
        return encode, decode

    def _speed(self, seconds: list[float], inside: np.ndarray) -> float:
        speeds = np.asarray(self.megapixels) / np.asarray(seconds)
        return float(np.median(speeds[inside]))


def measure_sustained(
    contender: Contender,
    pictures: Mapping[str, UInt8Array],
    minutes: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Sustained:
    """Encode and decode pictures in turn until the time is over, at least each once."""
    result, meter = Sustained(contender.name), RaplMeter()
    battery = battery_joules()
    begin = clock()
    images = list(pictures.values())
    while (now := clock() - begin) < 60.0 * minutes or len(result.starts_s) < len(images):
        if not result.sensors or now - result.sensors[-1][0] >= SENSOR_PAUSE_S:
            result.sensors.append((now, read_conditions()))
            meter.joules()  # often enough that no counter wraps unseen
        pixels = images[len(result.starts_s) % len(images)]
        seconds = contender.once(pixels).seconds
        result.starts_s.append(now)
        result.encode_s.append(seconds["encode"])
        result.decode_s.append(seconds["decode"])
        result.megapixels.append(pixels.shape[0] * pixels.shape[1] / 1e6)
    _note_energy(result, meter.joules(), battery, battery_joules())
    return result


def _note_energy(
    result: Sustained, rapl: float | None, before: float | None, after: float | None
) -> None:
    """Prefer the finer source; a battery that shows no difference says nothing."""
    if rapl is not None:
        result.joules, result.energy_source = rapl, RaplMeter.source
    elif before is not None and after is not None and before > after:
        result.joules, result.energy_source = before - after, "battery"
