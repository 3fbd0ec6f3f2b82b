"""Photos to check a conversion on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import edgecodec
from edgecodec.errors import ConversionError

UInt8Array = npt.NDArray[np.uint8]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PHOTOS = 16
MAX_SIDE = 512
_MULTIPLE = 32


@dataclass(frozen=True, eq=False)
class Calibration:
    """Photos and where they are from.

    Attributes:
        photos: (H, W, 3) uint8, sides multiples of 32 and at most MAX_SIDE.
        source: what the manifest calls them.
    """

    photos: tuple[UInt8Array, ...]
    source: str

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records: source, number, and a hash of the pixels."""
        digest = hashlib.sha256()
        for photo in self.photos:
            digest.update(repr(photo.shape).encode() + photo.tobytes())
        return {"source": self.source, "photos": len(self.photos), "sha256": digest.hexdigest()}


def demo_photo() -> Path:
    """Return the photo that ships with the package.

    Raises:
        ConversionError: it is not there.
    """
    folders = [Path(folder) / "data" for folder in edgecodec.__path__]
    found = [p for folder in folders for p in sorted(folder.glob("demo.*")) if _is_photo(p)]
    if not found:
        raise ConversionError("the demo photo is missing; name a folder of photos (--calibration)")
    return found[0]


def load_calibration(folder: Path | None) -> Calibration:
    """Read photos, at most MAX_PHOTOS of them, spread evenly over their sorted names.

    Args:
        folder: searched with all folders in it, or one photo; None takes the demo photo.

    Raises:
        ConversionError: no such folder, no photo in it, or one that cannot be read.
    """
    if folder is None:
        path = demo_photo()
        return Calibration((read_photo(path),), path.name)
    if not folder.exists():
        raise ConversionError(f"{folder}: no such folder of calibration photos")
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if _is_photo(p))
    if not files:
        raise ConversionError(f"{folder}: holds no photos ({', '.join(SUFFIXES)})")
    count = min(MAX_PHOTOS, len(files))
    chosen = [files[i * len(files) // count] for i in range(count)]
    return Calibration(tuple(read_photo(path) for path in chosen), folder.name)


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_photo(path: Path) -> UInt8Array:
    """Return the middle of a photo, (H, W, 3) uint8, sides multiples of 32.

    Raises:
        ConversionError: it cannot be read or is smaller than 32 pixels.
    """
    try:
        with Image.open(path) as image:
            photo = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        reason = " ".join(str(exc).split())
        raise ConversionError(f"{path}: not a readable photo ({reason})") from exc
    if min(photo.shape[:2]) < _MULTIPLE:
        raise ConversionError(f"{path}: smaller than {_MULTIPLE} pixels; leave it out")
    return centre(photo, MAX_SIDE, MAX_SIDE)


def centre(photo: UInt8Array, height: int, width: int) -> UInt8Array:
    """Return the middle of a photo, sides at most those given and multiples of 32."""
    sides = [
        min(n, m) // _MULTIPLE * _MULTIPLE
        for n, m in zip(photo.shape, (height, width), strict=False)
    ]
    top, left = (photo.shape[0] - sides[0]) // 2, (photo.shape[1] - sides[1]) // 2
    return np.ascontiguousarray(photo[top : top + sides[0], left : left + sides[1]])
