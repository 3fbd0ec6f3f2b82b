"""The device probe, against recorded machines of each family, and on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecodec.runtimes.device import probe
from edgecodec.runtimes.device.arm_parts import PARTS, core_name, is_small
from edgecodec.runtimes.device.facts import (
    ARM_FEATURES,
    X86_FEATURES,
    Conditions,
    CoreCluster,
    Facts,
    SystemFiles,
)
from edgecodec.runtimes.device.linux import (
    cpu_quota,
    linux_conditions,
    linux_facts,
    parse_cpu_list,
)
from edgecodec.runtimes.device.macos import macos_facts
from edgecodec.runtimes.device.probe import Device, probe_device, read_conditions
from edgecodec.runtimes.device.windows import (
    BIOS_KEY,
    CPU_KEY,
    DISPLAY_KEY,
    NPU_KEY,
    PLAN_KEY,
    core_clusters,
    windows_facts,
)
from tests.support import machines
from tests.support.machines import FakeFiles, FakeWindows, core_relation


def linux(files: dict[str, str], arch: str = "aarch64") -> Facts:
    return linux_facts(FakeFiles(files), arch)


def there(facts: Facts) -> set[str]:
    return {name for name, value in facts.features.items() if value}


def test_raspberry_pi() -> None:
    facts = linux(machines.RASPBERRY_PI_5)
    assert (facts.cpu, facts.board) == ("Cortex-A76", "Raspberry Pi 5 Model B Rev 1.0")
    assert facts.clusters == (CoreCluster("Cortex-A76", "", (0, 1, 2, 3), 4, 2_400_000_000),)
    assert there(facts) == {"neon", "fp16", "dotprod"}
    assert facts.features["i8mm"] is False
    assert set(facts.features) == set(ARM_FEATURES)
    assert facts.governor == "ondemand"
    assert facts.conditions.frequency_hz == 1_500_000_000
    # Once, although the same sensor shows under hwmon too.
    assert facts.conditions.temperatures_c == {"zone0 cpu-thermal": 48.35}
    assert facts.accelerators == ("GPU brcm,2712-v3d (v3d)",)
    assert facts.memory_bytes == 8_245_760 * 1024
    assert facts.virtual is None


def test_phone_with_four_kinds_of_cores() -> None:
    facts = linux(machines.PHONE)
    kinds = [(c.name, c.kind, c.cores) for c in facts.clusters]
    assert kinds == [
        ("Cortex-X3", "performance", (7,)),
        ("Cortex-A715", "performance", (3, 4)),
        ("Cortex-A710", "performance", (5, 6)),
        ("Cortex-A510", "efficiency", (0, 1, 2)),
    ]
    assert facts.board == "Qualcomm Technologies, Inc SM8550"
    assert facts.cpu == "Cortex-X3 + Cortex-A715 + Cortex-A710 + Cortex-A510"
    assert there(facts) >= {"i8mm", "bf16", "sve2", "dotprod"}
    assert facts.conditions.hottest_c == 61.2  # the other sensor is off


def test_board_whose_big_cores_differ_in_speed() -> None:
    facts = linux(machines.ROCK_5)
    kinds = [(c.kind, c.cores) for c in facts.clusters]
    assert kinds == [
        ("performance", (4, 5)),
        ("performance", (6, 7)),
        ("efficiency", (0, 1, 2, 3)),
    ]
    assert facts.accelerators == (
        "GPU arm,mali-valhall-csf (panthor)",
        "NPU rockchip,rk3588-npu (rocket)",
    )


def test_arm_server_and_old_kernel() -> None:
    server = linux(machines.ARM_SERVER)
    assert (server.cpu, server.board) == ("Neoverse-N1", "Amazon EC2 c6g.large")
    assert server.conditions == Conditions()
    old = linux(machines.OLD_ARM, "armv7l")
    assert (old.cpu, old.board) == ("Cortex-A53", "Raspberry Pi 3 Model B Plus")
    assert there(old) == {"neon"}


def test_same_design_at_two_speeds_is_neither_fast_nor_slow_kind() -> None:
    files = {"/proc/cpuinfo": machines.arm_cpuinfo(["0xd03"] * 4, "asimd")}
    for number, khz in enumerate((1_800_000, 1_800_000, 1_400_000, 1_400_000)):
        files[f"{machines.CPUS}cpu{number}/cpufreq/cpuinfo_max_freq"] = str(khz)
    assert [(c.kind, c.cores) for c in linux(files).clusters] == [("", (0, 1)), ("", (2, 3))]


def test_hybrid_x86() -> None:
    facts = linux(machines.HYBRID_LAPTOP, "x86_64")
    assert [(c.kind, c.cores) for c in facts.clusters] == [
        ("performance", tuple(range(8))),
        ("efficiency", tuple(range(8, 16))),
    ]
    assert facts.clusters[1].max_frequency_hz == 3_300_000_000
    assert facts.max_frequency_hz == 4_400_000_000
    assert there(facts) >= {"avx2", "avx_vnni"}
    assert facts.features["avx512f"] is False
    assert facts.conditions.temperatures_c == {"coretemp Package id 0": 53.0}
    assert facts.accelerators == ("GPU Intel 8086:46A6 (i915)",)
    assert facts.virtual is False
    assert facts.physical_cores == 16


def test_server_with_amx_and_a_gpu() -> None:
    facts = linux(machines.NVIDIA_SERVER, "x86_64")
    assert there(facts) == set(X86_FEATURES) - {"amx_fp16"}
    assert facts.virtual is True
    assert facts.physical_cores == 2
    assert facts.accelerators == ("GPU NVIDIA H100 (nvidia)",)
    assert [c.count for c in facts.clusters] == [4]


def test_macs() -> None:
    m2 = macos_facts(machines.MAC_M2, "arm64")
    assert (m2.cpu, m2.board, m2.memory_bytes) == ("Apple M2", "Mac14,2", 2**34)
    assert [(c.kind, c.count) for c in m2.clusters] == [("performance", 4), ("efficiency", 4)]
    assert there(m2) == {"neon", "fp16", "dotprod", "bf16", "i8mm"}
    assert m2.features["sme"] is False
    assert m2.features["sve"] is None  # sysctl has no key for it
    assert m2.accelerators == ("GPU of Apple M2", "NPU of Apple M2")
    assert m2.virtual is False
    intel = macos_facts(machines.MAC_INTEL, "x86_64")
    assert there(intel) >= {"avx2", "avx512f", "avx512_vnni", "sse4_1"}
    assert intel.features["amx_int8"] is None
    assert intel.accelerators is None
    assert intel.max_frequency_hz == 2_000_000_000


def test_windows_on_x86() -> None:
    relations = b"".join(
        [core_relation(1, 0b11 << 2 * n) for n in range(6)]
        + [core_relation(0, 1 << 12 + n) for n in range(8)]
    )
    registry = {
        (CPU_KEY, "ProcessorNameString"): "13th Gen Intel(R) Core(TM)  i7-1360P  ",
        (CPU_KEY, "~MHz"): "2611",
        (BIOS_KEY, "SystemManufacturer"): "Dell Inc.",
        (BIOS_KEY, "SystemProductName"): "XPS 13",
        (PLAN_KEY, "ActivePowerScheme"): "381b4222-f694-41f0-9685-ff5bb260df2e",
        (DISPLAY_KEY + "\\0000", "DriverDesc"): "Intel(R) Iris(R) Xe Graphics",
        (DISPLAY_KEY + "\\Properties", "DriverDesc"): "no device",
        (NPU_KEY + "\\0000", "DriverDesc"): "Intel(R) AI Boost",
    }
    calls = FakeWindows(registry, {36, 37, 40}, 2**34, relations)
    facts = windows_facts(calls, {}, "AMD64")
    assert facts.cpu == "13th Gen Intel(R) Core(TM) i7-1360P"
    assert facts.board == "Dell Inc. XPS 13"
    assert facts.governor == "balanced"
    assert facts.physical_cores == 14
    assert facts.clusters == (
        CoreCluster("", "performance", tuple(range(12)), 12),
        CoreCluster("", "efficiency", tuple(range(12, 20)), 8),
    )
    assert there(facts) == {"ssse3", "sse4_1", "avx2"}
    assert facts.features["avx512f"] is False
    assert facts.features["avx512_vnni"] is None  # Windows has no number for it
    assert facts.accelerators == ("GPU Intel(R) Iris(R) Xe Graphics", "NPU Intel(R) AI Boost")
    assert facts.max_frequency_hz == 2_611_000_000


def test_windows_on_arm_and_one_that_says_little() -> None:
    arm = windows_facts(FakeWindows({}, {43, 66, 67}), {}, "ARM64")
    assert there(arm) == {"neon", "dotprod", "i8mm", "fp16"}
    bare = windows_facts(
        FakeWindows({}, set()), {"PROCESSOR_IDENTIFIER": "Intel64 Family 6"}, "AMD64"
    )
    assert bare.cpu == "Intel64 Family 6"
    assert bare.clusters == ()
    assert bare.accelerators is None


@given(st.binary(max_size=200))
def test_damaged_core_records_are_borne(data: bytes) -> None:
    clusters, physical = core_clusters(core_relation(0, 3) + data)
    assert physical >= 1
    assert clusters


@given(st.text(max_size=300), st.sampled_from(["x86_64", "aarch64", "riscv64"]))
def test_odd_texts_are_borne(text: str, arch: str) -> None:
    paths = [*machines.RASPBERRY_PI_5, *machines.HYBRID_LAPTOP]
    facts = linux_facts(FakeFiles(dict.fromkeys(paths, text)), arch)
    assert isinstance(facts.cpu, str)
    macos_facts(text, arch)


def test_system_that_tells_nothing_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_facts", lambda *_: linux({}, "x86_64"))
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    found = probe_device()
    assert found.flags == ()
    text = found.text()
    for line in ("cpu", "machine", "cores", "features", "GPU, NPU", "now"):
        assert "unknown" in next(row for row in text.splitlines() if row.startswith(line))
    values = json.loads(json.dumps(found.to_dict()))
    assert values["accelerators"] is None
    assert values["governor"] is None


def test_probe_that_fails_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Facts:
        raise RuntimeError("no")

    monkeypatch.setattr(probe, "linux_facts", broken)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert probe_device().cpu == ""


def test_this_machine() -> None:
    found = probe_device()
    values = json.loads(json.dumps(found.to_dict()))
    assert values["cores"] >= values["usable_cores"] >= 1
    assert values["packages"]["numpy"]
    assert values["packages"]["edgecodec"]
    assert isinstance(read_conditions(), Conditions)


def test_identity_survives_what_changes() -> None:
    def machine(**changed: object) -> Device:
        facts = linux(machines.RASPBERRY_PI_5)
        values = {
            "system": "Linux 6.1", "arch": "aarch64", "cores": 4, "usable_cores": 4,
            "python": "3.11", **{k: getattr(facts, k) for k in vars(facts)}, **changed,
        }  # fmt: skip
        return Device(**values)  # type: ignore[arg-type]

    same = machine(system="Linux 6.6", usable_cores=2, governor="performance", python="3.13")
    assert same.identity() == machine().identity()
    assert machine(cpu="other").identity() != machine().identity()
    assert machine(system="Windows 11").identity() != machine().identity()
    json.dumps(machine().identity())


def test_arm_names() -> None:
    assert core_name("0x51", "0x803") == "Kryo-3XX-Silver"
    assert is_small("Kryo-3XX-Silver")
    assert is_small("Icestorm-M1")
    assert not is_small("Cortex-A57")
    assert core_name("0x99", "0x1") == "implementer 0x99 part 0x1"
    assert core_name("x", "0x1") == ""
    assert all(name for parts in PARTS.values() for name in parts.values())


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8\n", (0, 1, 2, 3, 8)), ("5", (5,)), ("", ()), ("x-y,2", (2,)), ("1-", (1,))],
)
def test_parse_cpu_list(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == numbers


def test_system_files_bear_what_is_not_there(tmp_path: Path) -> None:
    files = SystemFiles()
    (tmp_path / "a").write_text("1\n")
    assert files.read(str(tmp_path / "a")) == "1\n"
    assert files.read(str(tmp_path)) == files.read(str(tmp_path / "b")) == files.read("\0") == ""
    assert files.names(str(tmp_path)) == ["a"]
    assert files.names(str(tmp_path / "b")) == []
    assert linux_conditions(files).frequency_hz >= 0


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 0),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, 0),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
        (
            {
                "/proc/self/cgroup": "0::/pod/me\n",
                "/sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
                "/sys/fs/cgroup/pod/me/cpu.max": "max 100000\n",
            },
            3,
        ),
        (
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/docker/1\n0::/docker/1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/\n",
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0,
        ),
    ],
)
def test_quota_of_a_container_counts_as_cores(files: dict[str, str], cores: int) -> None:
    assert cpu_quota(FakeFiles(files)) == cores


def test_cores_are_no_more_than_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "quota_cores", lambda: 1)
    assert probe.usable_cores() == probe.threads_of_quota() == 1
    monkeypatch.setattr(probe, "quota_cores", lambda: 10_000)
    assert 1 <= probe.usable_cores() == probe.threads_of_quota() <= (os.cpu_count() or 1)
    monkeypatch.setattr(probe, "quota_cores", lambda: 0)
    assert probe.threads_of_quota() == 0


THREADS = """
import os, sys
from edgecodec import Codec
from edgecodec.runtimes.device import probe
import numpy as np

backend, quota, threads = sys.argv[1:]
probe.cpu_quota = lambda files: int(quota)
with Codec(None, backend, "fp32", threads=int(threads) or None) as codec:
    codec.encode(np.zeros((512, 512, 3), np.uint8))
    print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads as Linux lists them")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite", "torch"])
def test_quota_is_kept_by_every_runtime(backend: str, environment: dict[str, str]) -> None:
    """One core's worth is one thread; more than there are cores is as many as those."""

    def started(quota: int, threads: int) -> int:
        command = [sys.executable, "-c", THREADS, backend, str(quota), str(threads)]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 0, result.stderr
        return int(result.stdout)

    assert started(1, 0) <= started(0, 1)
    assert started(16 * probe.usable_cores(), 0) <= started(0, probe.usable_cores())
