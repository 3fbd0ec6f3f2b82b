"""The codecs everybody has, as the yardstick: real bytes of the libraries behind Pillow.

    jpeg   optimised Huffman tables, baseline, 4:2:0
    webp   lossy, method 4, 4:2:0
    avif   speed 6, 4:2:0, the encoder's own (perceptual) tuning, two threads or more
    jxl    JPEG XL, lossy, effort 7, as many threads as the library finds; a plugin of Pillow's

These are the settings a user gets by default, not the strongest each format can do; chroma
subsampling stays at Pillow's default. `ClassicalCodec` has the same two methods as our codec.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import PIL
from PIL import Image, features

from edgecodec.arrays import UInt8Array
from edgecodec.coding.image_files import JPEG_XL, Plugin
from edgecodec.errors import (
    BackendUnavailableError,
    BitstreamError,
    ConfigError,
    UnknownPluginError,
)


class ImageCodec(Protocol):
    """What an evaluation needs of a codec; `edgecodec.Codec` and `ClassicalCodec` have it."""

    def encode(self, image: UInt8Array, /, *, quality: int) -> bytes:
        """Return a whole file for an (H, W, 3) uint8 RGB image."""
        ...

    def decode(self, data: bytes, /) -> UInt8Array | Image.Image:
        """Return the picture in a file."""
        ...


@dataclass(frozen=True)
class ClassicalCodec:
    """One format with fixed settings; only the quality varies.

    Attributes:
        name: the name it goes by in tables and options.
        feature: what `PIL.features` calls the library behind it; empty for a plugin.
        options: keyword arguments of `Image.save` besides the quality.
        qualities: a sweep from barely recognisable to visually lossless, ascending. Its ends lie
            far outside the rates of a learned codec, so that the curves overlap wherever that
            codec has a point.
        threads_option: keyword of `Image.save` for the number of threads, where there is one.
        plugin: adds the format to Pillow; None where Pillow has it.
    """

    name: str
    feature: str
    options: tuple[tuple[str, int | bool | str], ...]
    qualities: tuple[int, ...]
    threads_option: str = ""
    plugin: Plugin | None = None

    @property
    def settings(self) -> str:
        """What the results depend on besides picture and quality: libraries and options.

        Two runs with equal settings give equal bytes; a cache can key on it.
        """
        options = ", ".join(f"{key}={value}" for key, value in self.options)
        if self.threads_option:
            options += f", {self.threads_option}>=2"
        return f"{self.name} ({self._version()}, Pillow {PIL.__version__}, {options})"

    def _version(self) -> str:
        if self.plugin:
            name = self.plugin.distribution
            return f"{name} {importlib.metadata.version(name)}"
        turbo = features.version("libjpeg_turbo") if self.feature == "jpg" else None
        if turbo:
            return f"libjpeg-turbo {turbo}"
        return features.version(self.feature) or "unknown version"

    def available(self) -> bool:
        """Tell whether Pillow has the format here, loading its plugin where it needs one."""
        if not self.plugin:
            return bool(features.check(self.feature))
        return self.plugin.load() and self.name.upper() in Image.SAVE

    def encode(self, image: UInt8Array, quality: int) -> bytes:
        """Compress an image.

        Args:
            image: (H, W, 3) uint8, RGB.
            quality: the format's own scale, 0 to 100.

        Returns:
            A whole file. Bit-exact for equal `settings`.

        Raises:
            BackendUnavailableError: this Pillow lacks the format.
            ConfigError: not such an image, or one too large for the format.
        """
        self.require()
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ConfigError(f"expected (H, W, 3) uint8, found {image.shape} {image.dtype}")
        options = dict(self.options)
        if self.threads_option:
            # libavif writes other bytes (1 % more of them at low quality) with one thread than
            # with two or any larger number; so never one, and the result is the same everywhere.
            options[self.threads_option] = max(2, os.cpu_count() or 1)
        buffer = io.BytesIO()
        try:
            Image.fromarray(image).save(
                buffer, format=self.name.upper(), quality=quality, **options
            )
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"{self.name} cannot encode {image.shape[1]} x {image.shape[0]}: {exc}"
            ) from exc
        return buffer.getvalue()

    def decode(self, data: bytes) -> UInt8Array:
        """Decompress a file of this format to (H, W, 3) uint8, RGB.

        Raises:
            BackendUnavailableError: this Pillow lacks the format.
            BitstreamError: the bytes are not such a file, or are damaged.
        """
        self.require()
        try:
            with Image.open(io.BytesIO(data), formats=(self.name.upper(),)) as image:
                return np.asarray(image.convert("RGB"))
        # Pillow's plugins raise nearly anything on damaged data.
        except (OSError, ValueError, SyntaxError, RuntimeError) as exc:
            raise BitstreamError(f"not a readable {self.name} file: {exc}") from exc

    def require(self) -> None:
        """Do nothing where the format is available.

        Raises:
            BackendUnavailableError: this Pillow lacks it.
        """
        if self.available():
            return
        reason = f"Pillow {PIL.__version__} was built without it; install a wheel from PyPI "
        reason += "(pip install --upgrade pillow) or leave this codec out"
        if self.plugin:
            reason = self.plugin.missing
        raise BackendUnavailableError(self.name, reason)


JPEG = ClassicalCodec(
    "jpeg", "jpg", (("optimize", True),), (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 88, 94, 98)
)
WEBP = ClassicalCodec(
    "webp", "webp", (("method", 4),), (1, 5, 10, 20, 30, 45, 60, 70, 80, 88, 94, 98)
)
AVIF = ClassicalCodec(
    "avif",
    "avif",
    (("speed", 6),),
    (5, 12, 20, 28, 36, 44, 52, 60, 68, 76, 86, 95),
    threads_option="max_threads",
)
JXL = ClassicalCodec(
    "jxl",
    "",
    (("effort", 7),),
    (5, 12, 20, 28, 36, 45, 55, 65, 74, 82, 90, 96),
    plugin=JPEG_XL,
)

CLASSICAL: dict[str, ClassicalCodec] = {codec.name: codec for codec in (JPEG, WEBP, AVIF, JXL)}
"""The codecs by name, in the order of their age."""


def classical_codec(name: str) -> ClassicalCodec:
    """Return a classical codec that works here.

    Raises:
        UnknownPluginError: there is none of that name.
        BackendUnavailableError: this Pillow lacks the format.
    """
    try:
        codec = CLASSICAL[name]
    except KeyError:
        raise UnknownPluginError("classical codec", name, tuple(CLASSICAL)) from None
    codec.require()
    return codec
