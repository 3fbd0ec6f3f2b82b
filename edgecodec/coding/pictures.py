"""Pictures in and out: Pillow images and arrays, with their metadata.

Pixels are 8-bit sRGB-like levels; a profile for their colours, EXIF and XMP travel with them (so
does the EXIF orientation, which viewers apply).
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.coding.metadata import metadata_of, one_form, read_ahead
from edgecodec.errors import BitstreamError, ConfigError
from edgecodec.format.container import check_size

SHARING_SINCE = 13
"""The first Pillow, by its first number, that shares memory without a fault."""

Share = Callable[[UInt8Array], tuple[object, object]]
_share_core: Share | None
try:
    from edgecodec.core._binding import share as _share_core
except ImportError:
    _share_core = None

GREY = b"GRAY"
"""What a colour profile for grey calls what it is for, in bytes 16 to 19."""

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_BITS, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1
_LEAST, _MOST = 340, 341
_log = logging.getLogger("edgecodec")


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
    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    try:
        read_ahead(image)
        image.load()  # the texts of a PNG file may follow its pixels
        metadata = metadata_of(image)
        flat = _flatten(image, drop_alpha)
        profile = metadata.get("icc_profile", b"")
        if image.mode == "CMYK" or not _fits(profile, grey):
            metadata.pop("icc_profile", None)
            flat = _without_profile(flat, profile)
        pixels = ImagePixels(flat if flat.mode == "RGB" else flat.convert("RGB"))
    except (ConfigError, MemoryError):
        raise
    except Exception as exc:  # a file that only now shows its damage; mode LAB
        raise ConfigError(f"the image cannot be converted to RGB ({reason_of(exc)})") from exc
    return Picture(pixels, "L" if grey else "RGB", metadata)


def _fits(profile: bytes, grey: bool) -> bool:
    colours = profile[16:20]
    return not profile or (colours == GREY if grey else colours not in (GREY, b"CMYK"))


def _without_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an image whose profile cannot travel, in sRGB; one line says so."""
    if image.mode != "CMYK":
        _log.warning("the colour profile is not for pictures of mode %s: left out", image.mode)
    elif profile and (converted := to_srgb(image, profile)):
        _log.warning("the colours were converted from CMYK to sRGB through their profile")
        return converted
    else:
        _log.warning("the colours were converted from CMYK without a profile: they may be off")
    return image


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Return an image in sRGB, mode RGB; None where its profile is not for it."""
    from PIL import ImageCms  # noqa: PLC0415 - for few pictures

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, OSError):  # damaged, or a Pillow without LittleCMS
        return None


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
    hides = _hides_deep_colour(image)
    image = to_eight_bits(image)
    if image.mode == "PA" or image.has_transparency_data:  # of PA Pillow 11.2 knew nothing
        image = image.convert("RGBA")
        hides = hides or image.getchannel("A").getextrema() != (255, 255)
    if hides and not drop_alpha:
        raise ConfigError(
            "the image has transparent pixels, which .ecx does not store; flatten it first, "
            "for example: magick IN -background white -flatten OUT.png"
        )
    return image


def _hides_deep_colour(image: Image.Image) -> bool:
    """Say whether there are pixels of the colour of 16 bits that a PNG file calls transparent.

    Of RGB Pillow has the upper bytes alone: whatever agrees in these is taken for it.
    """
    colour = image.info.get("transparency")
    if isinstance(colour, int) and image.mode.startswith("I"):
        return bool((np.asarray(image) == colour).any())
    if isinstance(colour, tuple) and image.mode == "RGB" and max(colour) > 255:
        return bool((np.asarray(image) == np.right_shift(colour, 8)).all(2).any())
    return False


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Bring grey of more than 8 bits to 8, from the range that its mode and its file tell.

    Raises:
        ConfigError: they tell none, or there are values outside of it.
    """
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    low, high = _range(image, tags)
    if image.mode == "I" and high > np.iinfo(np.int32).max:
        values = values.view(np.uint32)  # Pillow has no mode for it
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    least, most = values.min(), values.max()
    if least < low or most > high:
        raise ConfigError(
            f"the grey values reach from {least:g} to {most:g}, but black is {low:g} and white "
            f"{high:g}; scale them to that, or save the picture with 8 or 16 bits"
        )
    values = (values - low) * (255.0 / (high - low))
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 255.0 - values
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _range(image: Image.Image, tags: Mapping[int, Any]) -> tuple[float, float]:
    """Return what black and white are in an image of more than 8 bits."""
    whole = image.mode != "F"
    bits = tags.get(_BITS, (16 if image.mode != "I" or image.format in ("PNG", "PPM") else 0,))[0]
    if whole and bits and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
        return 0.0, 2.0**bits - 1.0
    told = [tags.get(tag) for tag in (_LEAST, _MOST)]
    low, high = (math.nan if value is None else float(np.ravel(value)[0]) for value in told)
    if low < high:
        return low, high
    if not whole and image.format in ("TIFF", "PPM"):  # as all that write them have it
        return 0.0, 1.0
    raise ConfigError(
        f"nothing says what is white in an image of mode {image.mode}; convert it to mode L "
        "(0..255) or I;16 (0..65535) first"
    )


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
    if "exif" in metadata:
        image.info["exif"] = one_form(metadata["exif"])
    return image
