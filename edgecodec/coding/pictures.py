"""Pictures in and out: Pillow images and arrays, with their metadata.

Pixels are 8-bit sRGB-like levels; ICC profile, EXIF and XMP travel untouched (so does the EXIF
orientation, which viewers apply).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from edgecodec.errors import BitstreamError, ConfigError
from edgecodec.format.container import check_size

UInt8Array = npt.NDArray[np.uint8]

SHARING_SINCE = 13
"""The first Pillow, by its first number, that shares memory without a fault."""

Share = Callable[[UInt8Array], tuple[object, object]]
_share_core: Share | None
try:
    from edgecodec.core._binding import share as _share_core
except ImportError:
    _share_core = None

_RGB_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA")


class ImagePixels:
    """The pixels of a Pillow image of mode RGB, as an array of those that are asked for.

    Pillow copies twice to make an array: for all of a photo of 12 megapixels that takes a quarter
    of the time of encoding it. Parts, one after another, stay in the cache.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.shape = image.height, image.width, 3

    def __getitem__(self, part: tuple[slice, slice]) -> UInt8Array:
        """Return the rows and columns asked for, which follow each other."""
        rows, columns = (s.indices(n)[:2] for s, n in zip(part, self.shape, strict=False))
        box = (columns[0], rows[0], columns[1], rows[1])
        # To crop, Pillow asks whether what comes out is a decompression bomb.
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and (box[2] - box[0]) * (box[3] - box[1]) > limit:
            return np.asarray(self._image)[part]
        whole = box == (0, 0, *self._image.size)
        return np.asarray(self._image if whole else self._image.crop(box))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> UInt8Array:
        """Return all of them."""
        return np.array(self._image, dtype)


@dataclass(frozen=True)
class Picture:
    """Pixels ready to encode.

    Attributes:
        pixels: (H, W, 3) uint8, an array or what gives parts of it as arrays.
        mode: `RGB`, or `L` where the source was grey.
        metadata: `icc_profile`, `exif`, `xmp` as far as present.
    """

    pixels: UInt8Array | ImagePixels
    mode: str
    metadata: dict[str, bytes] = field(default_factory=dict)


def to_picture(image: Image.Image | npt.NDArray[Any], *, drop_alpha: bool = False) -> Picture:
    """Accept a Pillow image or an array.

    Args:
        image: any Pillow mode without transparency, or (H, W, 3) or (H, W) uint8.
        drop_alpha: take an image with transparency for what it is without.

    Raises:
        ConfigError: wrong shape or dtype, or visible transparency.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if not isinstance(image, Image.Image):
        raise ConfigError(f"expected a PIL.Image or a numpy array, not {type(image).__name__}")
    _check_size(image.width, image.height)
    metadata = metadata_of(image)
    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    if grey or image.mode not in _RGB_MODES:
        metadata.pop("icc_profile", None)  # a profile for grey or CMYK does not fit RGB pixels
    try:
        flat = _flatten(image, drop_alpha)
        flat.load()
        pixels = ImagePixels(flat if flat.mode == "RGB" else flat.convert("RGB"))
    except (ConfigError, MemoryError):
        raise
    except Exception as exc:  # a file that only now shows its damage; mode LAB
        raise ConfigError(f"the image cannot be converted to RGB ({reason_of(exc)})") from exc
    return Picture(pixels, "L" if grey else "RGB", metadata)


def reason_of(exc: Exception) -> str:
    """Return in one line what Pillow found wrong; on damaged files it raises whatever comes."""
    return " ".join(str(exc).split()) or type(exc).__name__


def _check_size(width: int, height: int) -> None:
    try:
        check_size(width, height)
    except BitstreamError as exc:  # the same limits, but here no file is at fault
        raise ConfigError(str(exc)) from exc


def _from_array(array: npt.NDArray[Any]) -> Picture:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise ConfigError(
            f"an image array must be (height, width, 3) or (height, width) uint8, "
            f"not {array.shape} {array.dtype}"
        )
    _check_size(array.shape[1], array.shape[0])
    if array.ndim == 2:
        return Picture(np.repeat(array[:, :, None], 3, 2), "L")
    return Picture(np.ascontiguousarray(array), "RGB")


def _flatten(image: Image.Image, drop_alpha: bool) -> Image.Image:
    """Drop an alpha channel that hides nothing, or any; bring 16-bit grey to 8 bits."""
    image = to_eight_bits(image)
    if image.mode == "PA" or image.has_transparency_data:  # of PA Pillow 11.2 knew nothing
        rgba = image.convert("RGBA")
        if not drop_alpha and rgba.getchannel("A").getextrema() != (255, 255):
            raise ConfigError(
                "the image has transparent pixels, which .ecx does not store; flatten it first, "
                "for example: magick IN -background white -flatten OUT.png"
            )
        return rgba
    return image


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Bring grey of 16 or 32 bits, whole or real, to 8; Pillow alone would clip what is above."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.nan_to_num(np.asarray(image, np.float64))
    if image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 257.0
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def metadata_of(image: Image.Image) -> dict[str, bytes]:
    """Return `icc_profile`, `exif` and `xmp` of an image, as far as present."""
    found = {}
    for name in ("icc_profile", "exif", "xmp"):
        value = image.info.get(name)
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, bytes) and value:
            found[name] = value
    return found


class _Bytes:
    """Bytes that Pillow may use as the memory of a picture (its Arrow interface)."""

    def __init__(self, owner: UInt8Array, share: Share) -> None:
        self._owner, self._share = owner, share

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return self._share(self._owner)


def sharing() -> Share | None:
    """Return what lets Pillow take over memory, None where it must copy.

    Releases from 11.3 to 12.3 would take it as well, but crash when such a picture is exported
    again, by `Image.fromarrow(picture, ...)` or `pyarrow.array(picture)`.
    """
    major = PIL.__version__.partition(".")[0]
    return _share_core if major.isdecimal() and int(major) >= SHARING_SINCE else None


def from_samples(samples: UInt8Array, mode: str, metadata: dict[str, bytes]) -> Image.Image:
    """Return a Pillow image that carries its metadata in `info`.

    Args:
        samples: (H, W, 4), red, green, blue and 255, in C order. The image takes over its memory
            where `sharing` allows it; it is not to be written to any more.
        mode: `RGB` or `L`.
        metadata: see Picture.
    """
    height, width = samples.shape[:2]
    share = sharing()
    if share is not None:
        image = Image.fromarrow(_Bytes(samples, share), "RGB", (width, height))
    else:
        image = Image.frombytes("RGB", (width, height), samples, "raw", "RGBX")
    if mode == "L":
        image = image.convert("L")
    image.info.update(metadata)
    return image
