"""What Windows tells of a machine: the environment, the registry and three calls of kernel32."""

from __future__ import annotations

import ctypes
import importlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from edgecodec.runtimes.device.facts import CoreCluster, Facts, feature_names, is_arm

CPU_KEY = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
BIOS_KEY = r"HARDWARE\DESCRIPTION\System\BIOS"
PLAN_KEY = r"SYSTEM\CurrentControlSet\Control\Power\User\PowerSchemes"
DISPLAY_KEY = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
NPU_KEY = r"SYSTEM\CurrentControlSet\Control\Class\{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}"
_PLANS = {
    "381b4222-f694-41f0-9685-ff5bb260df2e": "balanced",
    "8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c": "high performance",
    "a1841308-3541-4fab-bc81-f71556f20b4a": "power saver",
    "e9a42b02-d5df-448d-aa00-03f14749eb61": "ultimate performance",
}
_FEATURE_NUMBERS = {
    "ssse3": 36, "sse4_1": 37, "avx2": 40, "avx512f": 41,
    "neon": 19, "dotprod": 43, "sve": 46, "sve2": 47, "i8mm": 66, "fp16": 67, "bf16": 68,
    "sme": 70,
}  # fmt: skip
"""What winnt.h calls `PF_..._INSTRUCTIONS_AVAILABLE`."""
_RELATION_CORE = 0


class WindowsCalls(Protocol):
    """What is asked of the system; no method raises."""

    def value(self, key: str, name: str) -> str:
        """Return a value under HKEY_LOCAL_MACHINE as text, empty where there is none."""
        ...

    def subkeys(self, key: str) -> list[str]:
        """Return the names of the keys under a key, none where there are none."""
        ...

    def feature(self, number: int) -> bool | None:
        """Return what IsProcessorFeaturePresent says."""
        ...

    def memory_bytes(self) -> int:
        """Return the installed memory, 0 where unknown."""
        ...

    def core_relations(self) -> bytes:
        """Return what GetLogicalProcessorInformationEx writes about cores."""
        ...


def windows_facts(calls: WindowsCalls, environ: Mapping[str, str], arch: str) -> Facts:
    """Ask the system.

    Args:
        calls: the system.
        environ: environment variables.
        arch: machine name, `AMD64` or `ARM64`.
    """
    name = calls.value(CPU_KEY, "ProcessorNameString")
    clusters, physical = core_clusters(calls.core_relations())
    makers = (calls.value(BIOS_KEY, part) for part in ("SystemManufacturer", "SystemProductName"))
    plan = calls.value(PLAN_KEY, "ActivePowerScheme").strip("{}").lower()
    mhz = calls.value(CPU_KEY, "~MHz")
    return Facts(
        cpu=" ".join((name or environ.get("PROCESSOR_IDENTIFIER", "")).split()),
        board=" ".join(filter(None, makers)),
        physical_cores=physical,
        clusters=clusters,
        features={n: _feature(calls, n, arch) for n in feature_names(arch)},
        memory_bytes=calls.memory_bytes(),
        governor=_PLANS.get(plan, plan),
        max_frequency_hz=int(mhz) * 10**6 if mhz.isdigit() else 0,
        accelerators=tuple(_accelerators(calls)) if name else None,
    )


def core_clusters(relations: bytes) -> tuple[tuple[CoreCluster, ...], int]:
    """Parse SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX records about cores.

    Returns:
        the kinds of cores, fastest first, and the number of physical cores.
    """
    groups: dict[int, list[int]] = {}
    physical = at = 0
    while at + 32 <= len(relations):
        relation, size = struct.unpack_from("<II", relations, at)
        if not 48 <= size <= len(relations) - at:
            break
        if relation == _RELATION_CORE:
            efficiency_class = relations[at + 9]  # higher is faster
            mask, group = struct.unpack_from("<QH", relations, at + 32)
            physical += 1
            logical = [64 * group + bit for bit in range(64) if mask >> bit & 1]
            groups.setdefault(efficiency_class, []).extend(logical)
        at += size
    found = []
    for place, efficiency_class in enumerate(sorted(groups, reverse=True)):
        last = place == len(groups) - 1
        kind = "" if len(groups) == 1 else "efficiency" if last else "performance"
        cores = tuple(groups[efficiency_class])
        found.append(CoreCluster("", kind, cores, len(cores)))
    return tuple(found), physical


def _feature(calls: WindowsCalls, name: str, arch: str) -> bool | None:
    if name == "neon" and is_arm(arch):
        return True  # Windows on Arm requires it
    number = _FEATURE_NUMBERS.get(name)
    return None if number is None else calls.feature(number)


def _accelerators(calls: WindowsCalls) -> Iterator[str]:
    for kind, key in (("GPU", DISPLAY_KEY), ("NPU", NPU_KEY)):
        for number in calls.subkeys(key):
            text = calls.value(f"{key}\\{number}", "DriverDesc") if number.isdigit() else ""
            if text:
                yield f"{kind} {text}"


class Kernel32:
    """The calls on a real Windows."""

    def __init__(self) -> None:
        self._registry: Any = importlib.import_module("winreg")
        self._kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 - not on this system

    def value(self, key: str, name: str) -> str:
        """See WindowsCalls."""
        try:
            with self._registry.OpenKey(self._registry.HKEY_LOCAL_MACHINE, key) as opened:
                return str(self._registry.QueryValueEx(opened, name)[0])
        except OSError:
            return ""

    def subkeys(self, key: str) -> list[str]:
        """See WindowsCalls."""
        names: list[str] = []
        try:
            with self._registry.OpenKey(self._registry.HKEY_LOCAL_MACHINE, key) as opened:
                while True:
                    names.append(self._registry.EnumKey(opened, len(names)))
        except OSError:  # also how the list ends
            return names

    def feature(self, number: int) -> bool | None:
        """See WindowsCalls."""
        return bool(self._kernel.IsProcessorFeaturePresent(number))

    def memory_bytes(self) -> int:
        """See WindowsCalls."""
        status = ctypes.create_string_buffer(64)
        struct.pack_into("<I", status, 0, 64)
        if not self._kernel.GlobalMemoryStatusEx(status):
            return 0
        total: int = struct.unpack_from("<Q", status, 8)[0]
        return total

    def core_relations(self) -> bytes:
        """See WindowsCalls."""
        size = ctypes.c_uint32(0)
        ask = self._kernel.GetLogicalProcessorInformationEx
        ask(_RELATION_CORE, None, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        return buffer.raw if ask(_RELATION_CORE, buffer, ctypes.byref(size)) else b""
