"""Energy counters, from recorded files."""

from __future__ import annotations

import pytest

from edgecodec.device_tests.measuring.energy import RAPL, SUPPLY, RaplMeter, battery_joules
from tests.support.machines import FakeFiles

PACKAGES = {
    f"{RAPL}/intel-rapl/enabled": "1",
    f"{RAPL}/intel-rapl:0/energy_uj": "1000000",
    f"{RAPL}/intel-rapl:0/max_energy_range_uj": "9000000",
    f"{RAPL}/intel-rapl:0:0/energy_uj": "500000",
    f"{RAPL}/intel-rapl:1/energy_uj": "8000000",
    f"{RAPL}/intel-rapl:1/max_energy_range_uj": "9000000",
}


def test_packages_are_added_and_wrap_around() -> None:
    files = FakeFiles(PACKAGES)
    meter = RaplMeter(files)
    assert meter.available
    assert meter.joules() == 0
    files.files[f"{RAPL}/intel-rapl:0/energy_uj"] = "1500000"
    files.files[f"{RAPL}/intel-rapl:0:0/energy_uj"] = "900000"  # part of package 0
    assert meter.joules() == pytest.approx(0.5)
    files.files[f"{RAPL}/intel-rapl:1/energy_uj"] = "250000"  # past its range
    assert meter.joules() == pytest.approx(0.5 + 1.25)
    assert meter.joules() == pytest.approx(0.5 + 1.25)
    del files.files[f"{RAPL}/intel-rapl:1/energy_uj"]
    assert meter.joules() is None


def test_counters_that_may_not_be_read_are_unknown() -> None:
    unreadable = {path: "" if path.endswith("energy_uj") else t for path, t in PACKAGES.items()}
    for files in ({}, unreadable):
        meter = RaplMeter(FakeFiles(files))
        assert not meter.available
        assert meter.joules() is None


def battery(**values: str) -> FakeFiles:
    files = {f"{SUPPLY}/BAT0/{name}": value for name, value in values.items()}
    return FakeFiles({**files, f"{SUPPLY}/AC/online": "0"})


def test_battery_counts_only_while_it_is_used() -> None:
    full = {"energy_now": "50000000", "status": "Discharging\n"}
    assert battery_joules(battery(**full)) == pytest.approx(50 * 3600)
    assert battery_joules(battery(**{**full, "status": "Charging\n"})) is None
    by_charge = {"status": "Discharging", "charge_now": "2000000", "voltage_now": "12000000"}
    assert battery_joules(battery(**by_charge)) == pytest.approx(24 * 3600)
    assert battery_joules(battery(status="Discharging")) is None
    assert battery_joules(FakeFiles({})) is None
