"""What macOS tells of a machine, by `sysctl`."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from edgecodec.runtimes.device.facts import CoreCluster, Facts, feature_names, is_arm, whole

SYSCTL = "/usr/sbin/sysctl"
_TIMEOUT_S = 5.0
_ARM_KEYS = {
    "neon": ("hw.optional.AdvSIMD", "hw.optional.neon"),
    "fp16": ("hw.optional.arm.FEAT_FP16", "hw.optional.neon_fp16"),
    "dotprod": ("hw.optional.arm.FEAT_DotProd",),
    "i8mm": ("hw.optional.arm.FEAT_I8MM",),
    "bf16": ("hw.optional.arm.FEAT_BF16",),
    "sme": ("hw.optional.arm.FEAT_SME",),
}
_X86_NAMES = {
    "ssse3": "SSSE3", "sse4_1": "SSE4.1", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C",
    "avx512f": "AVX512F", "avx512_vnni": "AVX512VNNI",
}  # fmt: skip


def read_sysctl() -> str:
    """Return what `sysctl hw machdep kern.hv_vmm_present` prints, empty where it cannot run."""
    try:
        done = subprocess.run(
            [SYSCTL, "hw", "machdep.cpu", "kern.hv_vmm_present"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def macos_facts(sysctl: str, arch: str) -> Facts:
    """Parse the output of `sysctl`.

    Args:
        sysctl: lines `name: value`.
        arch: machine name, `x86_64` or `arm64`.
    """
    values = {}
    for line in sysctl.splitlines():
        name, colon, value = line.partition(": ")
        if colon:
            values[name.strip()] = value.strip()
    cpu = values.get("machdep.cpu.brand_string", "")
    present = values.get("kern.hv_vmm_present", "")
    return Facts(
        cpu=cpu,
        board=values.get("hw.model", ""),
        physical_cores=whole(values.get("hw.physicalcpu", "")),
        clusters=_clusters(values),
        features=_features(values, arch),
        memory_bytes=whole(values.get("hw.memsize", "")),
        max_frequency_hz=whole(values.get("hw.cpufrequency_max", "")),
        virtual={"1": True, "0": False}.get(present),
        # Both are part of every chip of Apple's; of other graphics sysctl knows nothing.
        accelerators=(f"GPU of {cpu}", f"NPU of {cpu}") if cpu.startswith("Apple") else None,
    )


def _clusters(values: Mapping[str, str]) -> tuple[CoreCluster, ...]:
    levels = whole(values.get("hw.nperflevels", ""))
    found = []
    for level in range(levels):
        count = whole(values.get(f"hw.perflevel{level}.logicalcpu", ""))
        name = values.get(f"hw.perflevel{level}.name", "")
        kind = name.lower() if name in ("Performance", "Efficiency") else ""
        if not kind and levels > 1:  # level 0 is the fastest
            kind = "efficiency" if level == levels - 1 else "performance"
        found.append(CoreCluster("", kind if levels > 1 else "", (), count))
    return tuple(found)


def _features(values: Mapping[str, str], arch: str) -> dict[str, bool | None]:
    if is_arm(arch):
        return {name: _said(values, _ARM_KEYS.get(name, ())) for name in feature_names(arch)}
    lists = [values[k] for k in values if k.startswith("machdep.cpu.") and k.endswith("features")]
    listed = set(" ".join(lists).split())
    return {
        name: _X86_NAMES[name] in listed if listed and name in _X86_NAMES else None
        for name in feature_names(arch)
    }


def _said(values: Mapping[str, str], keys: tuple[str, ...]) -> bool | None:
    """Return what the first key that the system knows says."""
    for key in keys:
        if key in values:
            return values[key] == "1"
    return None
