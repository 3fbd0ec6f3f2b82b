from __future__ import annotations

import json

import pytest

from edgecodec.runtimes import device
from edgecodec.runtimes.device import probe_device

ARM = """processor\t: 0
Features\t: fp asimd evtstrm aes asimdhp asimddp i8mm
CPU implementer\t: 0x41
"""


def test_probe_device_gives_json() -> None:
    found = probe_device()
    values = json.loads(json.dumps(found.to_dict()))
    assert values["cores"] >= values["usable_cores"] >= 1
    assert values["packages"]["numpy"]
    assert len(found.text().splitlines()) == 2


def test_probe_device_reads_arm_features(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/cpuinfo": ARM,
        "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
    }
    monkeypatch.setattr(device, "_read", lambda path: files.get(path, ""))
    found = probe_device()
    assert found.flags == ("asimd", "asimdhp", "asimddp", "i8mm")
    assert found.cpu == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.governor == "ondemand"
    assert found.max_frequency_hz == 2_400_000_000


def test_probe_device_bears_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_read", lambda path: "")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.sysconf_names", {}, raising=False)
    found = probe_device()
    assert found.flags == ()
    assert found.memory_bytes == 0
    assert "unknown memory" in found.text()
