"""What this machine is: facts a measurement is worthless without. Standard library only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgecodec._version import __version__
from edgecodec.runtimes.device.facts import Conditions, CoreCluster, Facts, SystemFiles
from edgecodec.runtimes.device.linux import cpu_quota, linux_conditions, linux_facts
from edgecodec.runtimes.device.macos import macos_facts, read_sysctl
from edgecodec.runtimes.device.windows import Kernel32, windows_facts
from edgecodec.runtimes.vendor import metadata_line
from edgecodec.text_table import align

PACKAGES = (
    "numpy", "pillow", "pillow-jxl-plugin", "onnxruntime", "openvino",
    "ai-edge-litert", "tflite-runtime", "torch",
)  # fmt: skip
UNKNOWN = "unknown"
_IDENTITY = ("arch", "cpu", "board", "cores", "physical_cores", "features")


@dataclass(frozen=True)
class Device:
    """A machine. Empty, 0 or None stands for what cannot be read.

    Attributes:
        system: operating system and its release.
        arch: machine architecture, such as `x86_64` or `aarch64`.
        cpu: model name of the processor.
        board: name of the board, phone or computer.
        cores: logical cores.
        physical_cores: without simultaneous multithreading.
        usable_cores: logical ones that this process may run on.
        clusters: kinds of cores, fastest first.
        features: instruction sets that matter: there, not there, or None.
        memory_bytes: installed memory.
        governor: frequency governor, or power plan.
        max_frequency_hz: of the fastest core.
        virtual: whether this is a virtual machine.
        accelerators: graphics and neural processors that the system reports.
        conditions: temperature and frequency when it was probed.
        python: version of the interpreter.
        packages: versions of the packages that matter, by name.
    """

    system: str
    arch: str
    cpu: str
    board: str
    cores: int
    physical_cores: int
    usable_cores: int
    clusters: tuple[CoreCluster, ...]
    features: Mapping[str, bool | None]
    memory_bytes: int
    governor: str
    max_frequency_hz: int
    virtual: bool | None
    accelerators: tuple[str, ...] | None
    conditions: Conditions
    python: str
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> tuple[str, ...]:
        """Instruction sets that are there."""
        return tuple(name for name, there in self.features.items() if there)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values; null is unknown."""
        values = {key: value or None for key, value in asdict(self).items()}
        return {**values, "features": dict(self.features), "virtual": self.virtual,
                "accelerators": None if self.accelerators is None else list(self.accelerators),
                "conditions": asdict(self.conditions)}  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """Return what stays with a machine whatever it does and runs, as JSON-compatible values."""
        values = self.to_dict()
        return {
            **{name: values[name] for name in _IDENTITY},
            "system": self.system.partition(" ")[0],
            "clusters": [[c.name, c.kind, c.count] for c in self.clusters],
            "memory_gib": round(self.memory_bytes / 2**30),  # kernels keep more or less of it
        }

    def text(self) -> str:
        """Return some lines for a person, with `unknown` for what cannot be read."""
        memory = f"{self.memory_bytes / 2**30:.1f} GiB" if self.memory_bytes else UNKNOWN
        virtual = {True: ", virtual machine", False: "", None: ""}[self.virtual]
        kinds = " + ".join(map(str, self.clusters)) or UNKNOWN
        physical = f"{self.physical_cores} physical, " if self.physical_cores else ""
        hottest = self.conditions.hottest_c
        temperature = UNKNOWN if hottest is None else f"{hottest:.0f} C"
        ghz = self.conditions.frequency_hz / 1e9
        found = self.accelerators
        rows = (
            ("cpu", f"{self.cpu or UNKNOWN}, {self.arch}"),
            ("machine", f"{self.board or UNKNOWN}{virtual}, memory {memory}"),
            ("cores", f"{self.usable_cores} of {self.cores} usable, {physical}kinds: {kinds}"),
            ("features", self._features_text()),
            ("GPU, NPU", UNKNOWN if found is None else "; ".join(found) or "none found"),
            ("now", f"governor {self.governor or UNKNOWN}, temperature {temperature}, "
                    f"frequency {f'{ghz:.2f} GHz' if ghz else UNKNOWN}"),
            ("system", f"{self.system}, Python {self.python}"),
        )  # fmt: skip
        return "\n".join(align(rows, left=(0, 1)))

    def _features_text(self) -> str:
        parts = []
        for title, wanted in (("", True), ("not ", False), (UNKNOWN + " ", None)):
            names = [name for name, there in self.features.items() if there is wanted]
            if names:
                parts.append(title + " ".join(names))
        return "; ".join(parts) or UNKNOWN


def probe_device() -> Device:
    """Return the facts about this machine. Never raises; what cannot be read is left empty."""
    facts = _facts(platform.system(), platform.machine())
    return Device(
        system=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        cpu=facts.cpu,
        board=facts.board,
        cores=os.cpu_count() or 1,
        physical_cores=facts.physical_cores,
        usable_cores=usable_cores(),
        clusters=facts.clusters,
        features=facts.features,
        memory_bytes=facts.memory_bytes,
        governor=facts.governor,
        max_frequency_hz=facts.max_frequency_hz,
        virtual=facts.virtual,
        accelerators=facts.accelerators,
        conditions=facts.conditions,
        python=platform.python_version(),
        packages=package_versions(),
    )


def read_conditions() -> Conditions:
    """Return temperature and frequency now, as far as they can be read. Never raises."""
    return linux_conditions(SystemFiles())  # elsewhere these files are not there


def _facts(system: str, arch: str) -> Facts:
    try:
        if system == "Darwin":
            return macos_facts(read_sysctl(), arch)
        if system == "Windows":
            return windows_facts(Kernel32(), os.environ, arch)
        return linux_facts(SystemFiles(), arch)
    except Exception:  # an odd system must not stop a measurement
        return Facts()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that matter; those not installed are left out."""
    versions = {"edgecodec": __version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata_line(importlib.metadata.distribution(package), "Version")
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def usable_cores() -> int:
    """Return the number of logical cores this process may run on.

    A container that may use the time of fewer counts as having as many as that.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = max(1, len(os.sched_getaffinity(0)))
    else:
        allowed = os.cpu_count() or 1
    return min(allowed, quota_cores() or allowed)


def threads_of_quota() -> int:
    """Return how many threads a runtime is to start in a container whose time is limited; else 0.

    Runtimes know of no such limit, and start a thread for each core where they are not told
    otherwise.
    """
    return usable_cores() if quota_cores() else 0


def quota_cores() -> int:
    """Return the cores' worth of time that a container is limited to; 0 where it is not."""
    return cpu_quota(SystemFiles()) if sys.platform == "linux" else 0
