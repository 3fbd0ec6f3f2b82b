"""Names of Arm cores by the numbers that the main id register, and so /proc/cpuinfo, gives."""

from __future__ import annotations

ARM, CAVIUM, FUJITSU, HISILICON, NVIDIA, QUALCOMM, SAMSUNG, APPLE, AMPERE = (
    0x41, 0x43, 0x46, 0x48, 0x4E, 0x51, 0x53, 0x61, 0xC0,
)  # fmt: skip
IMPLEMENTERS = {
    ARM: "Arm", CAVIUM: "Cavium", FUJITSU: "Fujitsu", HISILICON: "HiSilicon", NVIDIA: "NVIDIA",
    QUALCOMM: "Qualcomm", SAMSUNG: "Samsung", APPLE: "Apple", AMPERE: "Ampere",
}  # fmt: skip
PARTS = {
    ARM: {
        0xB76: "ARM1176", 0xC05: "Cortex-A5", 0xC07: "Cortex-A7", 0xC08: "Cortex-A8",
        0xC09: "Cortex-A9", 0xC0D: "Cortex-A17", 0xC0E: "Cortex-A17", 0xC0F: "Cortex-A15",
        0xD01: "Cortex-A32", 0xD02: "Cortex-A34", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35",
        0xD05: "Cortex-A55", 0xD06: "Cortex-A65", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
        0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1",
        0xD0D: "Cortex-A77", 0xD0E: "Cortex-A76AE", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78",
        0xD42: "Cortex-A78AE", 0xD43: "Cortex-A65AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510",
        0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4A: "Neoverse-E1",
        0xD4B: "Cortex-A78C", 0xD4C: "Cortex-X1C", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3",
        0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
        0xD84: "Neoverse-V3", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725", 0xD8E: "Neoverse-N3",
    },
    CAVIUM: {0x0A1: "ThunderX", 0x0AF: "ThunderX2"},
    FUJITSU: {0x001: "A64FX"},
    HISILICON: {0xD01: "TaiShan-v110", 0xD40: "Cortex-A76"},
    NVIDIA: {0x000: "Denver", 0x003: "Denver-2", 0x004: "Carmel"},
    QUALCOMM: {
        0x001: "Oryon", 0x201: "Kryo", 0x205: "Kryo", 0x211: "Kryo", 0x800: "Kryo-2XX-Gold",
        0x801: "Kryo-2XX-Silver", 0x802: "Kryo-3XX-Gold", 0x803: "Kryo-3XX-Silver",
        0x804: "Kryo-4XX-Gold", 0x805: "Kryo-4XX-Silver",
    },
    SAMSUNG: {0x001: "Exynos-M1", 0x002: "Exynos-M3", 0x003: "Exynos-M4", 0x004: "Exynos-M5"},
    APPLE: {
        0x022: "Icestorm-M1", 0x023: "Firestorm-M1", 0x024: "Icestorm-M1-Pro",
        0x025: "Firestorm-M1-Pro", 0x028: "Icestorm-M1-Max", 0x029: "Firestorm-M1-Max",
        0x032: "Blizzard-M2", 0x033: "Avalanche-M2",
    },
    AMPERE: {0xAC3: "Ampere-1", 0xAC4: "Ampere-1A"},
}  # fmt: skip

_SMALL = (
    "Cortex-A5", "Cortex-A7", "Cortex-A32", "Cortex-A34", "Cortex-A35", "Cortex-A53", "Cortex-A55",
    "Cortex-A510", "Cortex-A520",
)  # fmt: skip
_SMALL_FAMILIES = ("Icestorm", "Blizzard")


def core_name(implementer: str, part: str) -> str:
    """Return the name of a core, its numbers where it has none here, empty where they are none.

    >>> core_name("0x41", "0xd0b"), core_name("0x41", "0xfff"), core_name("", "")
    ('Cortex-A76', 'Arm part 0xfff', '')
    """
    try:
        maker, number = int(implementer, 16), int(part, 16)
    except ValueError:
        return ""
    known = PARTS.get(maker, {}).get(number)
    return known or f"{IMPLEMENTERS.get(maker, f'implementer {maker:#x}')} part {number:#x}"


def is_small(name: str) -> bool:
    """Say whether a core is one that is built to save energy."""
    return name in _SMALL or name.endswith("-Silver") or name.startswith(_SMALL_FAMILIES)
