"""What Linux tells of a machine, x86 and Arm, Android included, by /proc and /sys alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgecodec.runtimes.device.arm_parts import core_name, is_small
from edgecodec.runtimes.device.facts import (
    Conditions,
    CoreCluster,
    Facts,
    Files,
    is_arm,
    known_features,
    whole,
)

CPUS = "/sys/devices/system/cpu/"
_OUR_NAMES = {"asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "asimdbf16": "bf16"}
_PCI_VENDORS = {
    "10DE": "NVIDIA", "1002": "AMD", "1022": "AMD", "8086": "Intel", "106B": "Apple",
    "1AE0": "Google",
}  # fmt: skip
_MAX_SENSOR_C = 150.0


def linux_facts(files: Files, arch: str) -> Facts:
    """Read what there is.

    Args:
        files: where to read.
        arch: machine name, such as `x86_64` or `aarch64`.
    """
    blocks = cpuinfo_blocks(files.read("/proc/cpuinfo"))
    whole_file = {key: value for block in reversed(blocks) for key, value in block.items()}
    clusters = _clusters(files, arch, blocks)
    listed = (whole_file.get("flags") or whole_file.get("Features", "")).split()
    present = [_OUR_NAMES.get(flag, flag) for flag in listed]
    virtual = True if "hypervisor" in listed or files.read("/sys/hypervisor/type").strip() else None
    return Facts(
        cpu=_cpu(whole_file, clusters),
        board=_board(files, whole_file),
        physical_cores=_physical_cores(blocks),
        clusters=clusters,
        features=known_features(arch, present) if listed else {},
        memory_bytes=_memory_bytes(files.read("/proc/meminfo")),
        governor=files.read(CPUS + "cpu0/cpufreq/scaling_governor").strip(),
        max_frequency_hz=max((c.max_frequency_hz for c in clusters), default=0),
        virtual=virtual if virtual or is_arm(arch) or not listed else False,
        accelerators=_accelerators(files),
        conditions=linux_conditions(files),
    )


def cpu_quota(files: Files) -> int:
    """Return how many cores' worth of time a container may use, rounded up; 0 without a limit.

    Control groups have it per group, of which the tightest counts: https://docs.kernel.org/
    admin-guide/cgroup-v2.html (`cpu.max`) and, in version 1, `cpu.cfs_quota_us`.

    Args:
        files: where to read.
    """
    limits = []
    for line in files.read("/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            roots, version = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"), 2
        elif "cpu" in controllers.split(","):
            roots, version = ("/sys/fs/cgroup/cpu", f"/sys/fs/cgroup/{controllers}"), 1
        else:
            continue
        parts = [part for part in group.split("/") if part]
        # Within a container the names may be those of the host, and the root the container's own.
        for depth in range(len(parts) + 1):
            for root in roots:
                folder = "/".join([root, *parts[:depth]])
                if version == 2:
                    found = files.read(f"{folder}/cpu.max").split()
                else:
                    quota = files.read(f"{folder}/cpu.cfs_quota_us")
                    found = [*quota.split(), *files.read(f"{folder}/cpu.cfs_period_us").split()]
                if len(found) == 2 and found[0].isdigit() and whole(found[1]):
                    limits.append(-(-int(found[0]) // whole(found[1])))
    return max(1, min(limits)) if limits else 0


def linux_conditions(files: Files) -> Conditions:
    """Read temperatures and the frequency of the first core."""
    frequency = 1000 * whole(files.read(CPUS + "cpu0/cpufreq/scaling_cur_freq"))
    return Conditions(dict(_temperatures(files)), frequency)


def cpuinfo_blocks(text: str) -> list[dict[str, str]]:
    """Return one mapping per paragraph of /proc/cpuinfo, most of which stand for a processor."""
    blocks: list[dict[str, str]] = [{}]
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            blocks[-1][key.strip()] = value.strip()
        elif blocks[-1]:
            blocks.append({})
    return [block for block in blocks if block]


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as `0-3,8`.

    >>> parse_cpu_list("0-3,8")
    (0, 1, 2, 3, 8)
    """
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


@dataclass(frozen=True)
class _Core:
    """A logical core: what makes it of another kind than its neighbour."""

    number: int
    name: str
    capacity: int
    max_frequency_hz: int


def _clusters(files: Files, arch: str, blocks: list[dict[str, str]]) -> tuple[CoreCluster, ...]:
    cores = list(_cores(files, blocks))
    if not cores:
        return ()
    if not is_arm(arch):
        return _x86_clusters(files, cores)
    groups: dict[tuple[int, int, str], list[_Core]] = {}
    for core in cores:
        # The capacity says what a core can do; frequencies stand in where the kernel lacks it.
        rank = (core.capacity, 0 if core.capacity else core.max_frequency_hz, core.name)
        groups.setdefault(rank, []).append(core)
    ordered = [groups[rank] for rank in sorted(groups, reverse=True)]
    if len(ordered) == 1:
        return (_cluster(ordered[0], ""),)
    small = [is_small(group[0].name) for group in ordered]
    if all(small) or not any(small):
        same_name = len({group[0].name for group in ordered}) == 1
        small = [not same_name and group is ordered[-1] for group in ordered]
        if same_name:  # one design at two speeds
            return tuple(_cluster(group, "") for group in ordered)
    kinds = ["efficiency" if s else "performance" for s in small]
    found = [_cluster(group, kind) for group, kind in zip(ordered, kinds, strict=True)]
    return tuple(sorted(found, key=lambda c: c.kind != "performance"))


def _x86_clusters(files: Files, cores: list[_Core]) -> tuple[CoreCluster, ...]:
    """Group by what the kernel says of hybrid processors; frequencies differ without meaning."""
    by_number = {core.number: core for core in cores}
    found = []
    for folder, kind in (("cpu_core", "performance"), ("cpu_atom", "efficiency")):
        numbers = parse_cpu_list(files.read(f"/sys/devices/{folder}/cpus"))
        group = [by_number[n] for n in numbers if n in by_number]
        if group:
            found.append(_cluster(group, kind))
    return tuple(found) if len(found) == 2 else (_cluster(cores, ""),)


def _cores(files: Files, blocks: list[dict[str, str]]) -> Iterator[_Core]:
    for block in blocks:
        number = block.get("processor", "")
        if not number.isdigit():
            continue
        folder = f"{CPUS}cpu{number}/"
        yield _Core(
            int(number),
            core_name(block.get("CPU implementer", ""), block.get("CPU part", "")),
            whole(files.read(folder + "cpu_capacity")),
            1000 * whole(files.read(folder + "cpufreq/cpuinfo_max_freq")),
        )


def _cluster(group: Sequence[_Core], kind: str) -> CoreCluster:
    numbers = tuple(core.number for core in group)
    fastest = max(core.max_frequency_hz for core in group)
    return CoreCluster(group[0].name, kind, numbers, len(numbers), fastest)


def _cpu(cpuinfo: Mapping[str, str], clusters: Sequence[CoreCluster]) -> str:
    name = cpuinfo.get("model name", "")
    if name and not name.lower().startswith(("arm", "aarch64")):  # those name the architecture
        return name
    return " + ".join(dict.fromkeys(c.name for c in clusters if c.name)) or name


def _board(files: Files, cpuinfo: Mapping[str, str]) -> str:
    for path in ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model"):
        if name := files.read(path).rstrip("\0").strip():
            return name
    if name := cpuinfo.get("Model") or cpuinfo.get("Hardware", ""):
        return name
    dmi = (
        files.read(f"/sys/class/dmi/id/{part}").strip() for part in ("sys_vendor", "product_name")
    )
    return " ".join(filter(None, dmi))


def _physical_cores(blocks: list[dict[str, str]]) -> int:
    ids = {(b.get("physical id"), b["core id"]) for b in blocks if "core id" in b}
    return len(ids)


def _memory_bytes(meminfo: str) -> int:
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return 1024 * whole(line.split()[1])
    return 0


def _temperatures(files: Files) -> Iterator[tuple[str, float]]:
    seen = False
    for zone in files.names("/sys/class/thermal"):
        folder = f"/sys/class/thermal/{zone}/"
        value = _celsius(files.read(folder + "temp")) if zone.startswith("thermal_zone") else None
        if value is not None:
            seen = True
            kind = files.read(folder + "type").strip()
            yield f"{zone.removeprefix('thermal_')} {kind}".strip(), value
    if seen:  # the same sensors again, under other names
        return
    for chip in files.names("/sys/class/hwmon"):
        folder = f"/sys/class/hwmon/{chip}/"
        for name in files.names(folder):
            if not (name.startswith("temp") and name.endswith("_input")):
                continue
            value = _celsius(files.read(folder + name))
            if value is not None:
                sensor = name.removesuffix("_input")
                label = files.read(f"{folder}{sensor}_label").strip() or sensor
                yield f"{files.read(folder + 'name').strip() or chip} {label}", value


def _celsius(text: str) -> float | None:
    """Return degrees from thousandths; None for sensors that are off or say what cannot be."""
    try:
        value = int(text.strip()) / 1000
    except ValueError:
        return None
    return value if 0 < value < _MAX_SENSOR_C else None


def _accelerators(files: Files) -> tuple[str, ...] | None:
    if not files.names("/sys/class"):
        return None
    found: list[str] = []
    for path in files.names("/proc/driver/nvidia/gpus"):
        info = cpuinfo_blocks(files.read(f"/proc/driver/nvidia/gpus/{path}/information"))
        found += [f"GPU {block['Model']} (nvidia)" for block in info if "Model" in block]
    for kind, folder, prefix in (("GPU", "drm", "card"), ("NPU", "accel", "accel")):
        for name in files.names(f"/sys/class/{folder}"):
            if name.removeprefix(prefix).isdigit() and name.startswith(prefix):
                text = _described(files.read(f"/sys/class/{folder}/{name}/device/uevent"))
                if text and not (found and text.endswith("(nvidia)")):
                    found.append(f"{kind} {text}")
    found += [f"NPU Edge TPU ({n})" for n in files.names("/dev") if n.startswith("apex_")]
    return tuple(found)


def _described(uevent: str) -> str:
    """Return `Intel 8086:46A6 (i915)` or `arm,mali-g610 (panthor)` of a device's event file."""
    values = dict(line.partition("=")[::2] for line in uevent.splitlines())
    name = values.get("OF_COMPATIBLE_0", "")
    if pci := values.get("PCI_ID", ""):
        name = f"{_PCI_VENDORS.get(pci.partition(':')[0], 'vendor')} {pci}"
    driver = values.get("DRIVER", "")
    return f"{name or driver} ({driver})" if driver else name
