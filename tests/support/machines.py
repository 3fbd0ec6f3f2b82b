"""What machines of several kinds tell about themselves, as short as the real texts allow."""

from __future__ import annotations

import struct
from collections.abc import Mapping

CPUS = "/sys/devices/system/cpu/"


class FakeFiles:
    """A file system held in a dictionary."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    def names(self, folder: str) -> list[str]:
        start = folder.rstrip("/") + "/"
        inside = {p.removeprefix(start).split("/")[0] for p in self.files if p.startswith(start)}
        return sorted(inside)


def arm_cpuinfo(parts: list[str], features: str, tail: str = "") -> str:
    blocks = [
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {part}\n"
        "CPU revision\t: 1\n"
        for number, part in enumerate(parts)
    ]
    return "\n".join(blocks) + "\n" + tail


def x86_cpuinfo(name: str, count: int, siblings: int, flags: str) -> str:
    blocks = [
        f"processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: {name}\n"
        f"physical id\t: 0\nsiblings\t: {count}\ncore id\t\t: {number // siblings}\n"
        f"cpu cores\t: {count // siblings}\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n"
        for number in range(count)
    ]
    return "\n".join(blocks) + "\n"


RASPBERRY_PI_5 = {
    "/proc/cpuinfo": arm_cpuinfo(
        ["0xd0b"] * 4,
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp",
        "Revision\t: d04170\nSerial\t\t: 1\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    ),
    "/proc/meminfo": "MemTotal:        8245760 kB\nMemFree:         6500000 kB\n",
    "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    CPUS + "cpu0/cpufreq/scaling_governor": "ondemand\n",
    CPUS + "cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    **{f"{CPUS}cpu{n}/cpufreq/cpuinfo_max_freq": "2400000\n" for n in range(4)},
    "/sys/class/thermal/thermal_zone0/temp": "48350\n",
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "/sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "/sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "/sys/class/hwmon/hwmon0/temp1_input": "48350\n",
    "/sys/class/drm/card0/device/uevent": "DRIVER=v3d\nOF_COMPATIBLE_0=brcm,2712-v3d\n",
    "/sys/class/drm/card0-HDMI-A-1/status": "connected\n",
}

_PHONE_PARTS = ["0xd46"] * 3 + ["0xd4d"] * 2 + ["0xd47"] * 2 + ["0xd4e"]
_PHONE_CAPACITY = [326] * 3 + [791] * 2 + [700] * 2 + [1024]
PHONE = {
    "/proc/cpuinfo": arm_cpuinfo(
        _PHONE_PARTS,
        "fp asimd evtstrm aes fphp asimdhp asimddp sve sve2 svei8mm svebf16 i8mm bf16",
        "Hardware\t: Qualcomm Technologies, Inc SM8550\n",
    ),
    "/proc/meminfo": "MemTotal:       11500000 kB\n",
    **{f"{CPUS}cpu{n}/cpu_capacity": f"{c}\n" for n, c in enumerate(_PHONE_CAPACITY)},
    "/sys/class/thermal/thermal_zone0/temp": "-40000\n",
    "/sys/class/thermal/thermal_zone0/type": "modem\n",
    "/sys/class/thermal/thermal_zone7/temp": "61200\n",
    "/sys/class/thermal/thermal_zone7/type": "cpu-1-4-0\n",
}

ROCK_5 = {  # RK3588; its two pairs of big cores differ a little in speed
    "/proc/cpuinfo": arm_cpuinfo(["0xd05"] * 4 + ["0xd0b"] * 4, "fp asimd asimdhp asimddp"),
    **{f"{CPUS}cpu{n}/cpufreq/cpuinfo_max_freq": "1800000\n" for n in range(4)},
    **{f"{CPUS}cpu{n}/cpufreq/cpuinfo_max_freq": "2400000\n" for n in (4, 5)},
    **{f"{CPUS}cpu{n}/cpufreq/cpuinfo_max_freq": "2352000\n" for n in (6, 7)},
    "/proc/device-tree/model": "Radxa ROCK 5B\0",
    "/sys/class/drm/card0/device/uevent": "DRIVER=panthor\nOF_COMPATIBLE_0=arm,mali-valhall-csf\n",
    "/sys/class/accel/accel0/device/uevent": "DRIVER=rocket\nOF_COMPATIBLE_0=rockchip,rk3588-npu\n",
}

ARM_SERVER = {
    "/proc/cpuinfo": arm_cpuinfo(["0xd0c"] * 2, "fp asimd asimdhp asimddp"),
    "/sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
    "/sys/class/dmi/id/product_name": "c6g.large\n",
}

OLD_ARM = {  # a 32-bit kernel on a 64-bit core
    "/proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv7 Processor rev 4 (v7l)\n"
    "Features\t: half thumb fastmult vfp edsp neon vfpv3\nCPU implementer\t: 0x41\n"
    "CPU part\t: 0xd03\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 3 Model B Plus\n",
}

HYBRID_LAPTOP = {
    "/proc/cpuinfo": x86_cpuinfo(
        "12th Gen Intel(R) Core(TM) i5-1240P", 16, 1, "ssse3 fma sse4_1 f16c avx2 avx_vnni"
    ),
    "/proc/meminfo": "MemTotal:       16097464 kB\n",
    "/sys/devices/cpu_core/cpus": "0-7\n",
    "/sys/devices/cpu_atom/cpus": "8-15\n",
    **{f"{CPUS}cpu{n}/cpufreq/cpuinfo_max_freq": "4400000\n" for n in range(8)},
    **{f"{CPUS}cpu{n}/cpufreq/cpuinfo_max_freq": "3300000\n" for n in range(8, 16)},
    CPUS + "cpu0/cpufreq/scaling_governor": "powersave\n",
    "/sys/class/dmi/id/sys_vendor": "LENOVO\n",
    "/sys/class/dmi/id/product_name": "21CB\n",
    "/sys/class/hwmon/hwmon3/name": "coretemp\n",
    "/sys/class/hwmon/hwmon3/temp1_input": "53000\n",
    "/sys/class/hwmon/hwmon3/temp1_label": "Package id 0\n",
    "/sys/class/hwmon/hwmon3/temp2_input": "nonsense\n",
    "/sys/class/drm/card1/device/uevent": "DRIVER=i915\nPCI_ID=8086:46A6\n",
}

NVIDIA_SERVER = {
    "/proc/cpuinfo": x86_cpuinfo(
        "Intel(R) Xeon(R) Platinum 8480C", 4, 2,
        "ssse3 fma sse4_1 f16c hypervisor avx2 avx512f avx512_vnni avx512_bf16 avx512_fp16 "
        "amx_bf16 amx_int8 avx_vnni",
    ),
    "/proc/driver/nvidia/gpus/0000:1b:00.0/information": "Model: \t\t NVIDIA H100\nIRQ:   16\n",
    "/sys/class/drm/card0/device/uevent": "DRIVER=nvidia\nPCI_ID=10DE:2330\n",
}  # fmt: skip

MAC_M2 = """\
hw.ncpu: 8
hw.memsize: 17179869184
hw.physicalcpu: 8
hw.model: Mac14,2
hw.nperflevels: 2
hw.perflevel0.physicalcpu: 4
hw.perflevel0.logicalcpu: 4
hw.perflevel0.name: Performance
hw.perflevel1.logicalcpu: 4
hw.perflevel1.name: Efficiency
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
machdep.cpu.brand_string: Apple M2
kern.hv_vmm_present: 0
"""

MAC_INTEL = """\
hw.memsize: 8589934592
hw.physicalcpu: 4
hw.model: MacBookPro16,2
hw.cpufrequency_max: 2000000000
machdep.cpu.brand_string: Intel(R) Core(TM) i5-1038NG7 CPU @ 2.00GHz
machdep.cpu.features: FPU SSE SSE2 SSE3 SSSE3 FMA SSE4.1 SSE4.2 AVX1.0 F16C
machdep.cpu.leaf7_features: RDWRFSGS BMI1 AVX2 AVX512F AVX512VNNI
kern.hv_vmm_present: 0
"""


def core_relation(efficiency_class: int, mask: int, group: int = 0) -> bytes:
    """One record of GetLogicalProcessorInformationEx about a core."""
    head = struct.pack("<IIBB20xH", 0, 48, 0, efficiency_class, 1)
    return head + struct.pack("<QH6x", mask, group)


class FakeWindows:
    """A registry in a dictionary, and what the calls would return."""

    def __init__(
        self,
        registry: Mapping[tuple[str, str], str],
        features: set[int],
        memory: int = 0,
        relations: bytes = b"",
    ) -> None:
        self.registry, self.features = dict(registry), features
        self.memory, self.relations = memory, relations

    def value(self, key: str, name: str) -> str:
        return self.registry.get((key, name), "")

    def subkeys(self, key: str) -> list[str]:
        inside = {k.removeprefix(key + "\\") for k, _ in self.registry if k.startswith(key + "\\")}
        return sorted(inside)

    def feature(self, number: int) -> bool | None:
        return number in self.features

    def memory_bytes(self) -> int:
        return self.memory

    def core_relations(self) -> bytes:
        return self.relations
