"""Photos to check a conversion on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgecodec
from edgecodec.arrays import UInt8Array
from edgecodec.coding.image_files import SUFFIXES, is_photo, load_rgb
from edgecodec.errors import ConfigError, ConversionError

MAX_PHOTOS = 32
ENOUGH_PHOTOS = 20
"""With fewer, what they show is checked on the demo photo, too."""
MAX_SIDE = 512
_MULTIPLE = 32
LEAST_CONTRAST = 2.0
"""Standard deviation of the levels; photos have ten times as much and more."""
_LEAST_CORRELATION = 0.4
"""Of pixels side by side: 0 in noise, above 0.6 in photos and text."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Photos and where they are from.

    Attributes:
        photos: (H, W, 3) uint8, sides multiples of 32 and at most MAX_SIDE.
        source: what the manifest calls them.
        demo: the demo photo, where it is there.
    """

    photos: tuple[UInt8Array, ...]
    source: str
    demo: UInt8Array | None = None

    @property
    def for_ranges(self) -> tuple[UInt8Array, ...]:
        """Every other photo: what scales are chosen by."""
        return self.photos[::2]

    @property
    def held_out(self) -> tuple[UInt8Array, ...]:
        """The others: what losses are measured on, and the demo photo where they are few."""
        others = self.photos[1::2]
        if len(self.photos) < ENOUGH_PHOTOS and self.demo is not None:
            return (*others, self.demo)
        return others or self.photos

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records: source, number, and a hash of the pixels."""
        digest = hashlib.sha256()
        for photo in self.photos:
            digest.update(repr(photo.shape).encode() + photo.tobytes())
        return {"source": self.source, "photos": len(self.photos), "sha256": digest.hexdigest()}


def demo_photo() -> Path | None:
    """Return the photo that ships with the package, if it is there."""
    folders = [Path(folder) / "data" for folder in edgecodec.__path__]
    found = [p for folder in folders for p in sorted(folder.glob("demo.*")) if is_photo(p)]
    return found[0] if found else None


def load_calibration(folder: Path | None, progress: Callable[[str], None]) -> Calibration:
    """Read photos, at most MAX_PHOTOS of them, spread evenly over their sorted names.

    Args:
        folder: searched with all folders in it, or one photo; None takes the demo photo.
        progress: told how many were read, and the name of each that is left out and why.

    Raises:
        ConversionError: no such folder, no photo in it, or none that can be read.
    """
    path = demo_photo()
    demo = None if path is None else read_photo(path)
    if folder is None:
        if path is None or demo is None:
            raise ConversionError("the demo photo is missing; name a folder (--calibration)")
        return Calibration((demo,), path.name, demo)
    if not folder.exists():
        raise ConversionError(f"{folder}: no such folder of calibration photos")
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if is_photo(p))
    if not files:
        raise ConversionError(f"{folder}: holds no photos ({', '.join(SUFFIXES)})")
    count = min(MAX_PHOTOS, len(files))
    chosen = [files[i * len(files) // count] for i in range(count)]
    photos = []
    for path in chosen:
        try:
            photos.append(telling(read_photo(path), path))
        except ConversionError as exc:
            if len(chosen) == 1:
                raise
            progress(f"LEFT OUT: {exc}")
    if not photos:
        raise ConversionError(f"{folder}: holds no photo that can be used")
    progress(f"read {len(photos)} of {len(files)} photos in {folder}")
    return Calibration(tuple(photos), folder.name, demo)


def telling(photo: UInt8Array, path: Path) -> UInt8Array:
    """Return a photo that says something about photos.

    Of others ranges would be set that fit no photo, and no loss would show it.

    Raises:
        ConversionError: it is of one colour, or noise.
    """
    grey = photo.mean(2)
    variance = float(grey.var())
    if variance < LEAST_CONTRAST**2:
        raise ConversionError(f"{path}: of a single colour, which tells nothing about photos")
    steps = np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)])
    if 1.0 - np.mean(np.square(steps)) / (2.0 * variance) < _LEAST_CORRELATION:
        raise ConversionError(f"{path}: noise, which tells nothing about photos")
    return photo


def read_photo(path: Path) -> UInt8Array:
    """Return the middle of a photo, (H, W, 3) uint8, sides multiples of 32.

    Raises:
        ConversionError: it cannot be read or is smaller than 32 pixels.
    """
    try:
        photo = load_rgb(path)
    except ConfigError as exc:
        raise ConversionError(str(exc)) from exc
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
