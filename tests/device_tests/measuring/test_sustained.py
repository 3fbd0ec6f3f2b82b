"""Sustained work: throttling shows, energy is told or unknown."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from edgecodec.device_tests.measuring import sustained
from edgecodec.device_tests.measuring.sustained import Sustained, measure_sustained
from edgecodec.runtimes.device.facts import Conditions
from tests.support.bench_fakes import Clock, Scripted

PICTURE = {"p": np.zeros((1000, 1000, 3), np.uint8)}


def test_throttling_is_a_falling_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(
        sustained, "read_conditions", lambda: Conditions({"cpu": 40 + clock.now / 10}, 10**9)
    )
    seconds = [0.4] * 75 + [0.8] * 500  # twice as slow after half a minute
    run = measure_sustained(Scripted("a", clock, *seconds), PICTURE, 1.0, clock)
    assert clock.now == pytest.approx(60, abs=1)
    assert list(run.kept()) == pytest.approx([0.5, 0.5])
    windows = run.windows(10)
    assert len(windows) == 10
    assert windows[0].encode_mps == pytest.approx(1 / 0.3)
    assert windows[-1].decode_mps == pytest.approx(1 / 0.2)
    assert [w.hottest_c for w in windows] == sorted(w.hottest_c or 0 for w in windows)
    assert windows[-1].hottest_c == pytest.approx(46, abs=0.7)
    assert windows[0].frequency_hz == 10**9
    assert 40 <= len(run.sensors) <= 61
    json.dumps([asdict(w) for w in windows])


def test_every_picture_runs_once_however_short_the_time() -> None:
    clock = Clock()
    pictures = {str(n): np.zeros((10, 10 + n, 3), np.uint8) for n in range(5)}
    run = measure_sustained(Scripted("a", clock, 2.0), pictures, 0.001, clock)
    assert len(run.starts_s) == 5
    assert list(run.kept()) == pytest.approx([1.4, 1.4])
    assert run.windows(3)


def test_energy_prefers_the_finer_source() -> None:
    def noted(rapl: float | None, before: float | None, after: float | None) -> Sustained:
        run = Sustained("a", megapixels=[0.5, 0.5])
        sustained._note_energy(run, rapl, before, after)
        return run

    assert noted(8.0, 100.0, 50.0).energy_source == "RAPL"
    assert noted(8.0, 100.0, 50.0).joules_per_megapixel == 8.0
    assert noted(None, 100.0, 50.0).energy_source == "battery"
    assert noted(None, 100.0, 50.0).joules_per_megapixel == 50.0
    for before, after in ((100.0, 100.0), (None, 50.0), (100.0, None), (50.0, 100.0)):
        unknown = noted(None, before, after)
        assert (unknown.energy_source, unknown.joules_per_megapixel) == ("unknown", None)
