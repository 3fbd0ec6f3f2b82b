"""The steady state: warm-up apart, both limits kept, everybody in turn."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgecodec.device_tests.measuring import yardstick
from edgecodec.device_tests.measuring.contenders import Coded
from edgecodec.device_tests.measuring.energy import RAPL, RaplMeter
from edgecodec.device_tests.measuring.steady import MAX_WARM_UP, Limits, measure_steady
from tests.support.bench_fakes import Clock, Scripted, UInt8Array
from tests.support.machines import FakeFiles


@pytest.fixture(autouse=True)
def _light_yardsticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yardstick, "_BYTES", 1000)


SMALL, LARGE = np.zeros((4, 4, 3), np.uint8), np.zeros((8, 4, 3), np.uint8)


def test_warm_up_lasts_until_it_is_steady_and_is_kept_apart() -> None:
    clock = Clock()
    contender = Scripted("a", clock, 5.0, 3.0, 2.0, 1.95, 1.0)
    found = measure_steady([contender], {"p": SMALL}, Limits(3, 0.0), clock=clock)
    series = found.series["a", "p"]
    assert series.warm_up == pytest.approx([5.0, 3.0, 2.0, 1.95])
    assert series.stages["encode"] == pytest.approx([0.75] * 3)
    assert series.starts_s == pytest.approx([0.0, 1.0, 2.0])
    assert series.bytes == 5


def test_warm_up_ends_even_where_nothing_is_steady() -> None:
    clock = Clock()
    speeding = [0.5**n for n in range(50)]
    found = measure_steady(
        [Scripted("a", clock, *speeding)], {"p": SMALL}, Limits(3, 0), None, clock
    )
    assert len(found.series["a", "p"].warm_up) == MAX_WARM_UP


@pytest.mark.parametrize(("limits", "runs"), [(Limits(4, 0.0), 4), (Limits(3, 9.5), 10)])
def test_both_limits_must_be_reached(limits: Limits, runs: int) -> None:
    clock = Clock()
    found = measure_steady([Scripted("a", clock, 1.0)], {"p": SMALL}, limits, clock=clock)
    assert len(found.series["a", "p"].starts_s) == runs
    assert [len(y.seconds) for y in found.yardsticks] == [runs, runs]


def test_threads_of_fixed_work_end_with_it() -> None:
    clock = Clock()
    alive: set[threading.Thread] = set()

    def look() -> float:
        alive.update(t for t in threading.enumerate() if t.name.startswith("edgecodec-yardstick"))
        return clock()

    measure_steady([Scripted("a", clock, 1.0)], {"p": SMALL}, Limits(3, 0.0), clock=look)
    assert alive
    assert not any(thread.is_alive() for thread in alive)


def test_everybody_takes_turns_on_every_picture() -> None:
    clock = Clock()
    order: list[str] = []
    a, b = (Scripted(name, clock, 1.0, log=order) for name in "ab")
    pictures = {"p": SMALL, "q": LARGE, "r": SMALL}
    found = measure_steady([a, b], pictures, Limits(6, 0.0), clock=clock)
    warm_up = 2 * 2 * 3  # two contenders, two sizes
    assert "".join(order[warm_up:]) == "abbaabbaabba"
    assert all(len(s.starts_s) == 2 for s in found.series.values())
    assert set(found.series) == {(c, p) for c in "ab" for p in "pqr"}


def test_energy_is_that_of_the_timed_runs() -> None:
    files = FakeFiles({f"{RAPL}/intel-rapl:0/energy_uj": "0"})
    clock = Clock()

    class Burning(Scripted):
        def once(self, pixels: UInt8Array) -> Coded:
            used = int(files.files[f"{RAPL}/intel-rapl:0/energy_uj"]) + 2_000_000
            files.files[f"{RAPL}/intel-rapl:0/energy_uj"] = str(used)
            return super().once(pixels)

    meter = RaplMeter(files)
    found = measure_steady([Burning("a", clock, 1.0)], {"p": SMALL}, Limits(5, 0), meter, clock)
    assert found.series["a", "p"].joules == pytest.approx(10.0)
    unknown = measure_steady(
        [Scripted("a", clock, 1.0)], {"p": SMALL}, Limits(3, 0), RaplMeter(FakeFiles({})), clock
    )
    assert unknown.series["a", "p"].joules is None
