"""What a probe of any operating system reports, and how it reads files. Standard library only.

A fact that cannot be read is None or empty and shows as `unknown`; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

X86_FEATURES = (
    "ssse3", "sse4_1", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16",
)  # fmt: skip
ARM_FEATURES = ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2", "sme")
"""Instruction sets that decide which kernels a runtime picks."""


@dataclass(frozen=True)
class CoreCluster:
    """Cores of one kind.

    Attributes:
        name: of the core's design, empty where unknown.
        kind: `performance` or `efficiency`; empty where all are alike or the system does not tell.
        cores: numbers of its logical cores; empty where only their count is known.
        count: how many logical cores.
        max_frequency_hz: 0 where unknown.
    """

    name: str
    kind: str
    cores: tuple[int, ...]
    count: int
    max_frequency_hz: int = 0

    def __str__(self) -> str:
        """Return `4 x Cortex-A76 (performance, 2.40 GHz)`."""
        ghz = f"{self.max_frequency_hz / 1e9:.2f} GHz" if self.max_frequency_hz else ""
        notes = ", ".join(filter(None, (self.kind, ghz)))
        return f"{self.count} x {self.name or 'core'}" + (f" ({notes})" if notes else "")


@dataclass(frozen=True)
class Conditions:
    """What changes while a machine works.

    Attributes:
        temperatures_c: degrees Celsius by sensor; empty where none can be read.
        frequency_hz: of the first core at the moment, 0 where unknown.
    """

    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    frequency_hz: int = 0

    @property
    def hottest_c(self) -> float | None:
        """The highest temperature, None where none can be read."""
        return max(self.temperatures_c.values(), default=None)


@dataclass(frozen=True)
class Facts:
    """What one operating system told; empty, 0 or None is unknown.

    Attributes:
        cpu: model name of the processor.
        board: name of the board, phone or computer.
        physical_cores: without simultaneous multithreading.
        clusters: kinds of cores, fastest first.
        features: whether each instruction set is there; None where the system does not tell.
        memory_bytes: installed memory.
        governor: frequency governor, or power plan.
        max_frequency_hz: of the fastest core.
        virtual: whether this is a virtual machine.
        accelerators: graphics and neural processors the system knows of; None where it cannot
            be asked.
        conditions: temperature and frequency now.
    """

    cpu: str = ""
    board: str = ""
    physical_cores: int = 0
    clusters: tuple[CoreCluster, ...] = ()
    features: Mapping[str, bool | None] = field(default_factory=dict)
    memory_bytes: int = 0
    governor: str = ""
    max_frequency_hz: int = 0
    virtual: bool | None = None
    accelerators: tuple[str, ...] | None = None
    conditions: Conditions = Conditions()


class Files(Protocol):
    """The little a probe needs of a file system; neither method raises."""

    def read(self, path: str) -> str:
        """Return the text of a file, empty where it cannot be read."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder, none where it cannot be listed."""
        ...


class SystemFiles:
    """The files of this machine."""

    def read(self, path: str) -> str:
        """See Files."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            return ""

    def names(self, folder: str) -> list[str]:
        """See Files."""
        try:
            return sorted(entry.name for entry in Path(folder).iterdir())
        except (OSError, ValueError):
            return []


def is_arm(arch: str) -> bool:
    """Say whether a machine name, such as `aarch64`, `arm64` or `armv7l`, is of the Arm family."""
    return arch.lower().startswith(("arm", "aarch64"))


def feature_names(arch: str) -> tuple[str, ...]:
    """Return the instruction sets of interest of an architecture, none for others than ours."""
    if is_arm(arch):
        return ARM_FEATURES
    return X86_FEATURES if arch.lower() in ("x86_64", "amd64", "i386", "i686", "x86") else ()


def known_features(arch: str, present: Iterable[str]) -> dict[str, bool | None]:
    """Return which features are there, from a complete list of those that are."""
    found = set(present)
    return {name: name in found for name in feature_names(arch)}


def whole(text: str) -> int:
    """Return the whole number that a text is, 0 where it is none."""
    text = text.strip()
    return int(text) if text.isdigit() else 0
