"""Small colour profiles (ICC 2), made here: for grey of a gamma, for RGB, for CMYK."""

from __future__ import annotations

import itertools
import struct

from PIL import ImageCms


def _profile(kind: bytes, colours: bytes, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s", start + len(data), b"none", 0x02100000, kind, colours,
                       space, b"acsp")  # fmt: skip
    head += bytes(28) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return head + bytes(128 - len(head)) + table + data


def _white() -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)


def grey_profile(gamma: float) -> bytes:
    """Return a profile of grey levels with a gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _white(), b"kTRC": curve})


def rgb_profile() -> bytes:
    """Return the profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cmyk_profile() -> bytes:
    """Return a profile of four inks of which every one of CMY only takes a quarter of lightness."""
    lookup = b"mft1" + bytes(4) + bytes((4, 3, 2, 0))
    lookup += struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lookup += bytes(range(256)) * 4
    for inks in itertools.product((0, 1), repeat=4):
        lightness = 255 * (1 - sum(inks[:3]) / 4) * (1 - inks[3])
        lookup += bytes((round(lightness), 128, 128))
    lookup += bytes(range(256)) * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _white(), b"A2B0": lookup})
