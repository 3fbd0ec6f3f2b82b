"""Image files: opening, checking and saving them, and the one reader of photos.

`encode` keeps what a file says besides its pixels; `load_rgb` gives the pixels as they are shown.
"""

from __future__ import annotations

import importlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from edgecodec.arrays import UInt8Array
from edgecodec.coding.metadata import fitting, metadata_of, resolution
from edgecodec.coding.pictures import GREY, reason_of, to_picture, to_srgb
from edgecodec.errors import ConfigError
from edgecodec.files import check_folder, read_input
from edgecodec.format.container import MAX_PIXELS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
"""What the files are called that are taken for photos where a folder is named."""


@dataclass(frozen=True)
class Plugin:
    """What adds a format to Pillow: a module, and the distribution that it comes with.

    Attributes:
        module: adds the format where it is imported.
        distribution: what pip knows it by.
        register: a function of the module that adds the format, where importing does not.
    """

    module: str
    distribution: str
    register: str = ""

    @property
    def missing(self) -> str:
        """What to do where it does not load."""
        return f"needs a plug-in of Pillow's: pip install {self.distribution}"

    def installed(self) -> bool:
        """Say whether it is here, without loading it."""
        return find_spec(self.module) is not None

    def load(self) -> bool:
        """Add the format to Pillow; say whether that went well."""
        if not self.installed():
            return False
        try:
            module = importlib.import_module(self.module)
            if self.register:
                getattr(module, self.register)()
        except Exception:  # built for another machine or another Pillow
            return False
        return True


HEIF = Plugin("pillow_heif", "pillow-heif", "register_heif_opener")
JPEG_XL = Plugin("pillow_jxl", "pillow-jxl-plugin")
PLUGINS = {".heic": HEIF, ".heif": HEIF, ".hif": HEIF, ".jxl": JPEG_XL}
"""By the extension of the format."""

_JXL_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_TIFF_XMP = 700
_JPEG_SIDE = 65500
_ANIMATED = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
_log = logging.getLogger("edgecodec")
_quiet = threading.Lock()
_KEEP_ORIENTATION = ("AVIF", "HEIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
"""Formats whose viewers turn a picture as its EXIF says."""
_KEEP_RESOLUTION = ("BMP", "JPEG", "MPO", "PNG")
"""Formats with a place for it apart from EXIF."""
_KEEP_GREY = ("JPEG", "MPO", "PNG", "TIFF")
_SRGB = ("JXL",)
"""Lossy formats without a place for a profile; of lossless ones the pixels stay as they are."""
LOSSLESS = 100
_LOSSY = {"JPEG": 95, "MPO": 95, "PDF": 95, "WEBP": LOSSLESS, "AVIF": 95, "HEIF": 95, "JXL": 95}
"""Formats with a quality, and which is taken where none is asked for."""


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what Pillow says of odd metadata from whoever looks at standard error."""
    with _quiet, warnings.catch_warnings():  # they are off for all threads, so one at a time
        warnings.simplefilter("ignore")
        yield


def is_photo(path: Path) -> bool:
    """Say whether a file is called like a photo that can be read here; see `is_photo_name`."""
    return is_photo_name(path.name) and path.is_file()  # a folder may be called a.png


def is_photo_name(name: str) -> bool:
    """Say whether a name is one of a photo that can be read here.

    Photos of a format that needs a plug-in are passed over where it is not installed.
    """
    suffix = Path(name).suffix.lower()
    return suffix in SUFFIXES or (suffix in PLUGINS and PLUGINS[suffix].installed())


def expand_images(names: list[str]) -> list[Path]:
    """Return image files; a folder stands for the images in it.

    Raises:
        ConfigError: a name does not exist, is a device or a pipe, or nothing is found.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found += sorted(filter(is_photo, path.iterdir()))
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
    for field in ("exif", "xmp", "comment", "photoshop"):
        image.info.pop(field, None)
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
        with _quietly():  # of sizes far below our own limit, which is checked next
            image = _identify(data, name)
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


def _identify(data: bytes, name: str) -> Image.Image:
    """Open an image file, with a plug-in of Pillow's where that knows the format."""
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        heif = data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif", b"msf")
        if not heif and not data.startswith(_JXL_SIGNATURES):
            raise
        plugin = HEIF if heif else JPEG_XL
        if not plugin.load():
            raise ConfigError(f"{name}: {plugin.missing}") from None
        image = Image.open(io.BytesIO(data))
        exif = image.getexif()
        if (
            plugin is JPEG_XL
            and not getattr(image, "jpeg", False)
            and exif.pop(ExifTags.Base.Orientation, None)
        ):
            # Its pixels were turned already, as the file says apart from EXIF.
            image.info["exif"] = exif.tobytes()
        return image


def check_output(name: str, quality: int | None = None) -> None:
    """Refuse an output name before any work is done for it.

    Args:
        name: of the output.
        quality: what is asked of a lossy format, if anything.

    Raises:
        ConfigError: its extension is no image format, or its folder is missing; or the format has
            no quality.
    """
    kind = _kind(name)
    if quality is not None and kind not in _LOSSY:
        raise ConfigError(f"{name}: {kind} has no quality, leave --quality out")
    if name != "-":
        check_folder(Path(name))


def _kind(name: str) -> str:
    """Return what Pillow calls the format of an extension; `-` means PNG."""
    suffix = ".png" if name == "-" else Path(name).suffix.lower()
    plugin = PLUGINS.get(suffix)
    if plugin is not None and not plugin.load():
        raise ConfigError(f"{name}: {plugin.missing}")
    kind = Image.registered_extensions().get(suffix, "")
    if kind not in Image.SAVE:
        raise ConfigError(f"{name}: Pillow writes no such format; try .png")
    return kind


def quality_of(name: str, quality: int | None = None) -> int | None:
    """Return the quality that `image_bytes` writes a format with; None where it is lossless.

    Raises:
        ConfigError: Pillow writes no such format.
    """
    kind = _kind(name)
    return (quality or _LOSSY[kind]) if kind in _LOSSY else None


def image_bytes(image: Image.Image, name: str, quality: int | None = None) -> bytes:
    """Return an image as a file in the format of an extension; `-` means PNG.

    What the format does not hold of the metadata is left out; one line says so.

    Args:
        image: what `decode` returned.
        name: of the file.
        quality: of a lossy format, 1 to 100; None takes the least loss that is sensible.

    Raises:
        ConfigError: the format cannot hold it.
    """
    kind = _kind(name)
    if kind == "JPEG" and max(image.size) > _JPEG_SIDE:  # the library would say so on stderr, too
        raise ConfigError(f"{name}: JPEG holds at most {_JPEG_SIDE} pixels per side; try .png")
    options = _quality_options(image, kind, quality_of(name, quality))
    try:
        with _quietly():
            try:
                prepared, told, left_out = _prepared(image, kind)
                data = _save(prepared, kind, options | told)
            except MemoryError:
                raise
            except Exception:
                # Damaged metadata are no reason to keep the picture back.
                image, left_out = image.copy(), ["metadata that are damaged"]
                image.info.clear()
                data = _save(image, kind, options)
    except MemoryError:
        raise
    except Exception as exc:  # Pillow's plugins raise whatever comes
        raise ConfigError(f"{name}: cannot be written as {kind} ({reason_of(exc)})") from exc
    if left_out:
        _log.warning("%s: left out of the %s file: %s", name, kind, ", ".join(left_out))
    return data


def _prepared(image: Image.Image, kind: str) -> tuple[Image.Image, dict[str, Any], list[str]]:
    """Return an image as a format shows it, options for its metadata, and what it does not hold.

    What goes with metadata that are left out is done to the pixels.
    """
    if kind not in _KEEP_ORIENTATION:
        with suppress(Exception):  # in EXIF that is damaged there is none
            image = ImageOps.exif_transpose(image)
    found, applied = metadata_of(image), ""
    profile = found.get("icc_profile", b"")
    if profile and (kind in _SRGB or (profile[16:20] == GREY and kind not in _KEEP_GREY)):
        image = to_srgb(image, profile) or image
        del found["icc_profile"]
        applied = "a colour profile, through which it was converted to sRGB"
    metadata, left_out = fitting(found, kind)
    left_out += [applied] if applied else []
    options = _metadata_options(metadata, kind)
    if kind in _KEEP_RESOLUTION and (dpi := resolution(found.get("exif", b""))):
        options["dpi"] = dpi
    return image, options, left_out


def _save(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _quality_options(image: Image.Image, kind: str, quality: int | None) -> dict[str, Any]:
    if kind == "WEBP" and quality == LOSSLESS:
        return {"lossless": True}
    options: dict[str, Any] = {} if quality is None else {"quality": quality}
    if kind in ("JPEG", "MPO", "PDF"):
        options["subsampling"] = 0
    elif kind == "AVIF" and image.mode != "L":
        options["subsampling"] = "4:4:4"
    elif kind == "HEIF":
        options["chroma"] = 444
    return options


def _metadata_options(metadata: dict[str, bytes], kind: str) -> dict[str, Any]:
    """Return what a format's writer is told beside the pixels and their quality."""
    # Named even where there is none: some writers would take what the image had.
    options: dict[str, Any] = {"icc_profile": b""} | metadata
    if kind == "PNG" and "xmp" in options:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        xmp = options.pop("xmp").decode("utf-8", "replace")
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    elif kind == "TIFF" and "xmp" in options:
        exif = Image.Exif()
        exif.load(options.get("exif", b""))
        exif[_TIFF_XMP] = options.pop("xmp")
        options["exif"] = exif
    return options
