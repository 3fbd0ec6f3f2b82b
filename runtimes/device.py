"""What this machine is: facts a measurement is worthless without. Standard library only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FLAGS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "amx_fp16", "sse4_1", "ssse3",
    "neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Instruction sets that decide which kernels a runtime picks, as /proc/cpuinfo spells them."""

PACKAGES = (
    "edgecodec", "numpy", "pillow", "onnxruntime", "openvino", "ai-edge-litert",
    "tflite-runtime", "torch",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """A machine.

    Attributes:
        system: operating system and its release.
        arch: machine architecture, such as `x86_64` or `aarch64`.
        cpu: model name of the processor, empty where the system does not tell.
        cores: logical cores.
        usable_cores: those this process may run on.
        flags: instruction sets of interest.
        memory_bytes: installed memory, 0 where unknown.
        governor: frequency governor of the first core, empty where unknown.
        max_frequency_hz: of the first core, 0 where unknown.
        python: version of the interpreter.
        packages: versions of the packages that matter, by name.
    """

    system: str
    arch: str
    cpu: str
    cores: int
    usable_cores: int
    flags: tuple[str, ...]
    memory_bytes: int
    governor: str
    max_frequency_hz: int
    python: str
    packages: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return {**asdict(self), "flags": list(self.flags)}

    def text(self) -> str:
        """Return two lines for a person."""
        memory = f"{self.memory_bytes / 2**30:.1f} GiB" if self.memory_bytes else "unknown memory"
        cores = f"{self.usable_cores} of {self.cores} cores"
        lines = [f"{self.cpu or 'unknown CPU'}, {self.arch}, {cores}, {memory}, {self.system}"]
        extras = [" ".join(self.flags)] if self.flags else []
        if self.governor:
            extras.append(f"governor {self.governor}")
        extras.append(f"python {self.python}")
        lines.append("; ".join(extras))
        return "\n".join(lines)


def probe_device() -> Device:
    """Return the facts about this machine; what cannot be read is left empty."""
    cpuinfo = _read("/proc/cpuinfo")
    present = set(_field(cpuinfo, "flags", "Features").split())
    cpufreq = "/sys/devices/system/cpu/cpu0/cpufreq/"
    frequency = _read(cpufreq + "cpuinfo_max_freq").strip()
    return Device(
        system=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        cpu=_cpu_name(cpuinfo),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        flags=tuple(flag for flag in FLAGS if flag in present),
        memory_bytes=_memory_bytes(),
        governor=_read(cpufreq + "scaling_governor").strip(),
        max_frequency_hz=int(frequency) * 1000 if frequency.isdigit() else 0,
        python=platform.python_version(),
        packages=package_versions(),
    )


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that matter; those not installed are left out."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def usable_cores() -> int:
    """Return the number of logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(cpuinfo: str, *names: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


def _cpu_name(cpuinfo: str) -> str:
    name = _field(cpuinfo, "model name", "Hardware", "Model")
    if not name:  # arm64 kernels leave it out; boards name themselves in the device tree
        name = _read("/proc/device-tree/model").rstrip("\0").strip()
    return name or platform.processor()


def _memory_bytes() -> int:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return 0
    try:
        return max(0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        return 0
