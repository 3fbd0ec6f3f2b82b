"""Image files: opening, checking and saving them, and the one reader of photos.

`encode` keeps what a file says besides its pixels; `load_rgb` gives the pixels as they are shown.
"""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from edgecodec.coding.pictures import metadata_of, reason_of, to_picture
from edgecodec.errors import ConfigError
from edgecodec.files import check_folder, read_input
from edgecodec.format.container import MAX_PIXELS

UInt8Array = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
"""What the files are called that are taken for photos where a folder is named."""

_TIFF_XMP = 700
_JPEG_SIDE = 65500
_ANIMATED = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
_quiet = threading.Lock()
"""Held while warnings are off, which they are for all threads."""
_KEEP_EXIF = ("AVIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")


def expand_images(names: list[str]) -> list[Path]:
    """Return image files; a folder stands for the images in it.

    Raises:
        ConfigError: a name does not exist, is a device or a pipe, or nothing is found.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            found += sorted(p for p in inside if p.is_file())  # a folder may be called a.png
        elif path.is_file():
            found.append(path)
        else:
            what = "neither a file nor a folder" if path.exists() else "no such file or folder"
            raise ConfigError(f"{name}: {what}")
    if not found:
        raise ConfigError(f"no images in {', '.join(names)}")
    return found


def load_rgb(path: Path) -> UInt8Array:
    """Read a photo from a file; see `decode_rgb`.

    Raises:
        ConfigError: it cannot be read.
    """
    # A file may be called like standard input.
    return decode_rgb(read_input("./-" if str(path) == "-" else str(path)), str(path))


def decode_rgb(data: bytes, name: str) -> UInt8Array:
    """Return the pixels of an image file as `encode` takes them, but upright and without alpha.

    Args:
        data: the bytes of the file.
        name: what errors call it.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ConfigError: not an image that `encode` would take.
    """
    image = open_image(data, name)
    # What is wrong with its metadata does not matter to who asks for pixels.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    try:
        return np.asarray(to_picture(image, drop_alpha=True).pixels)
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc}") from exc


def open_image(data: bytes, name: str) -> Image.Image:
    """Decode an image file of any format Pillow knows.

    Raises:
        ConfigError: not an image, damaged, or too large.
    """
    try:
        with _quiet, warnings.catch_warnings():
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
        raise ConfigError(f"{name}: the image is damaged ({reason_of(exc)})") from exc
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
        raise ConfigError(f"{name}: cannot be written as {kind} ({reason_of(exc)})") from exc
    return buffer.getvalue()


def _options(image: Image.Image, kind: str) -> dict[str, Any]:
    """Return what a format's writer is told beside the pixels."""
    options: dict[str, Any] = dict(metadata_of(image))
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
