"""Pictures in and out: Pillow images, arrays and files, with their metadata.

Pixels are 8-bit sRGB-like levels; ICC profile, EXIF and XMP travel untouched (so does the EXIF
orientation, which viewers apply).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from edgecodec.arrays import UInt8Array
from edgecodec.errors import BitstreamError, ConfigError
from edgecodec.files import check_folder
from edgecodec.format.container import MAX_PIXELS, check_size

SHARING_SINCE = 13
"""The first Pillow, by its first number, that shares memory without a fault."""

Share = Callable[[UInt8Array], tuple[object, object]]
_share_core: Share | None
try:
    from edgecodec.core._binding import share as _share_core
except ImportError:
    _share_core = None

_TIFF_XMP = 700
_JPEG_SIDE = 65500
_ANIMATED = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
_KEEP_EXIF = ("AVIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
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


def to_picture(image: Image.Image | npt.NDArray[Any]) -> Picture:
    """Accept a Pillow image or an array.

    Args:
        image: any Pillow mode without transparency, or (H, W, 3) or (H, W) uint8.

    Raises:
        ConfigError: wrong shape or dtype, or visible transparency.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if not isinstance(image, Image.Image):
        raise ConfigError(f"expected a PIL.Image or a numpy array, not {type(image).__name__}")
    _check_size(image.width, image.height)
    metadata = _metadata(image)
    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    if grey or image.mode not in _RGB_MODES:
        metadata.pop("icc_profile", None)  # a profile for grey or CMYK does not fit RGB pixels
    try:
        flat = _flatten(image)
        flat.load()
        pixels = ImagePixels(flat if flat.mode == "RGB" else flat.convert("RGB"))
    except ConfigError:
        raise
    except (OSError, ValueError) as exc:  # a file that only now shows its damage; mode LAB
        raise ConfigError(f"the image cannot be converted to RGB ({exc})") from exc
    return Picture(pixels, "L" if grey else "RGB", metadata)


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


def _flatten(image: Image.Image) -> Image.Image:
    """Drop an alpha channel that hides nothing, bring 16-bit grey to 8 bits."""
    image = to_eight_bits(image)
    if image.mode == "PA" or image.has_transparency_data:  # of PA Pillow 11.2 knew nothing
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
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


def _metadata(image: Image.Image) -> dict[str, bytes]:
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


def open_image(data: bytes, name: str) -> Image.Image:
    """Decode an image file of any format Pillow knows.

    Raises:
        ConfigError: not an image, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            # Of sizes far below our own limit, which is checked next, and of odd metadata.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise ConfigError(f"{name}: {image.width}x{image.height} pixels are too many")
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                raise ConfigError(
                    f"{name}: holds {getattr(image, 'n_frames', 'several')} pictures, .ecx "
                    f"stores one; extract one first, for example: magick '{name}[0]' OUT.png"
                )
            image.load()
    except (ConfigError, MemoryError):
        raise
    except UnidentifiedImageError as exc:
        raise ConfigError(f"{name}: not an image of a format Pillow reads") from exc
    except Image.DecompressionBombError as exc:
        raise ConfigError(f"{name}: too large for Pillow ({exc})") from exc
    except Exception as exc:  # on damaged files Pillow's plugins raise whatever comes
        raise ConfigError(f"{name}: the image is damaged ({exc})") from exc
    return image


def check_output(name: str) -> None:
    """Refuse an output name before any work is done for it.

    Raises:
        ConfigError: its extension is no image format, or its folder is missing.
    """
    if name == "-":
        return
    path = Path(name)
    Image.init()
    if (
        path.suffix.lower() not in Image.EXTENSION
        or Image.EXTENSION[path.suffix.lower()] not in Image.SAVE
    ):
        raise ConfigError(f"{name}: Pillow writes no such format; try .png")
    check_folder(path)


def image_bytes(image: Image.Image, name: str) -> bytes:
    """Return an image as a file in the format of an extension; `-` means PNG.

    Raises:
        ConfigError: the format cannot hold it.
    """
    suffix = ".png" if name == "-" else Path(name).suffix.lower()
    kind = Image.registered_extensions()[suffix]
    if kind == "JPEG" and max(image.size) > _JPEG_SIDE:  # the library would say so on stderr, too
        raise ConfigError(f"{name}: JPEG holds at most {_JPEG_SIDE} pixels per side; try .png")
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            if kind not in _KEEP_EXIF:  # the orientation would be lost with the tag that holds it
                image = ImageOps.exif_transpose(image)
            image.save(buffer, kind, **_options(image, kind))
    except MemoryError:
        raise
    except Exception as exc:  # of metadata that are damaged Pillow's plugins raise whatever comes
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise ConfigError(f"{name}: cannot be written as {kind} ({reason})") from exc
    return buffer.getvalue()


def _options(image: Image.Image, kind: str) -> dict[str, Any]:
    """Return what a format's writer is told beside the pixels."""
    options: dict[str, Any] = dict(_metadata(image))
    if kind == "JPEG":
        options.update(quality=95, subsampling=0)
    elif kind == "WEBP":
        options.update(lossless=True)
    elif kind == "PNG" and "xmp" in options:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        xmp = options.pop("xmp").decode("utf-8", "replace")
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    elif kind == "TIFF" and "xmp" in options:
        exif = Image.Exif()
        exif.load(options.get("exif", b""))
        exif[_TIFF_XMP] = options.pop("xmp")
        options["exif"] = exif
    return options
