r"""EXIF, XMP and colour profiles between Pillow and the container.

Inside, in the container and in `info` of a decoded image, each has one form:

    exif         `Exif\0\0`, then a TIFF structure
    xmp          an XMP packet without claims on what does not travel
    icc_profile  a profile for the colours of the pixels: RGB, or grey for grey pictures
"""

from __future__ import annotations

import logging
import math
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image

from edgecodec.coding.comments import EXIF_PREFIX, tell_of_iptc, with_comments

if TYPE_CHECKING:
    from xml.dom import minidom

UNKNOWN_DPI = 72
"""What stands for a resolution where there is none (EXIF 2.32, XResolution)."""

_log = logging.getLogger("edgecodec")

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
_TIFF_TAGS = frozenset(
    (*range(254, 267), *range(277, 282), *range(288, 294), *range(317, 348), *range(512, 533))
) | {273, 284, 297, 301, 700, 33723, 34377, 34675, 37724}
"""Tags of a TIFF file that describe its own pixels and strips, or what travels apart from EXIF."""

_GONE = {
    "http://ns.adobe.com/hdr-gain-map/1.0/": ("gain map", ""),
    "http://ns.apple.com/HDRGainMap/1.0/": ("gain map", ""),
    "http://ns.google.com/photos/1.0/container/": ("attached files", ""),
    "http://ns.google.com/photos/1.0/camera/": ("video", "Motion|MicroVideo"),
    "http://ns.adobe.com/xmp/note/": ("extended XMP", "HasExtendedXMP"),
}
"""By namespace, what an XMP packet claims of other parts of its file, which do not travel, and how
the names of these claims begin."""


_ALL = ("icc_profile", "exif", "xmp")
_HOLDS = {
    **dict.fromkeys(("AVIF", "HEIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP"), _ALL),
    "JXL": ("exif", "xmp"),
}
"""By format, what Pillow or its plug-in writes."""
_LIMITS = {
    (kind, name): (1 << 16) - 3 - overhead
    for kind in ("JPEG", "MPO")
    for name, overhead in (("exif", 0), ("xmp", len(_XMP_SEGMENT)))
}
"""Bytes that go into one segment."""
_WORDS = {"icc_profile": "a colour profile", "exif": "EXIF", "xmp": "XMP"}


def one_form(exif: bytes) -> bytes:
    """Return EXIF with its prefix, once, however it came; empty where there is none."""
    content = re.sub(b"^(Exif\0\0)+", b"", exif)
    return EXIF_PREFIX + content if content else b""


def read_ahead(image: Image.Image) -> None:
    """Read EXIF of a TIFF file that cannot be read once its pixels are loaded and it is closed."""
    if hasattr(image, "tag_v2"):
        with suppress(Exception):  # what is damaged is told when it is needed
            for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
                image.getexif().get_ifd(ifd)


def metadata_of(image: Image.Image) -> dict[str, bytes]:
    """Return `icc_profile`, `exif` and `xmp` of a loaded image, each in its one form.

    Comments are in EXIF; of captions in the form of IPTC one line says that they are left out.
    """
    tell_of_iptc(image)
    attached = _raw_profile(image, "APP1")
    is_xmp = attached.startswith(_XMP_SEGMENT)
    exif = _field(image, "exif") or _raw_profile(image, "exif") or (b"" if is_xmp else attached)
    xmp = _field(image, "xmp") or _raw_profile(image, "xmp")
    found = {
        "icc_profile": _field(image, "icc_profile")
        or _raw_profile(image, "icc")
        or _raw_profile(image, "icm"),
        "exif": with_comments(one_form(exif or _tags(image)), image),
        "xmp": without_claims(xmp or (attached[len(_XMP_SEGMENT) :] if is_xmp else b"")),
    }
    return {name: value for name, value in found.items() if value}


def _field(image: Image.Image, name: str) -> bytes:
    value = image.info.get(name)
    if isinstance(value, str):
        value = value.encode()
    return value if isinstance(value, bytes) else b""


def _raw_profile(image: Image.Image, kind: str) -> bytes:
    """Return what ImageMagick keeps in a text of a PNG file: name, length, hexadecimal digits."""
    text = image.info.get(f"Raw profile type {kind}")
    if not isinstance(text, str):
        return b""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        _log.warning("the raw profile %s is damaged: left out", kind)
        return b""


def _tags(image: Image.Image) -> bytes:
    """Return EXIF of what is said elsewhere: in tags of a TIFF file, in XMP, as a resolution."""
    try:
        found, exif = image.getexif(), Image.Exif()
        for tag in found:
            if tag not in _TIFF_TAGS and tag not in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
                exif[tag] = _as_bytes(found[tag])
        for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if ifd in found and (tags := dict(found.get_ifd(ifd))):
                if ExifTags.IFD.Interop in tags:
                    tags[ExifTags.IFD.Interop] = dict(found.get_ifd(ExifTags.IFD.Interop))
                exif[ifd] = tags
        dpi = image.info.get("dpi", (0, 0))
        if ExifTags.Base.XResolution not in exif and _is_resolution(dpi):
            exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = map(float, dpi)
            exif[ExifTags.Base.ResolutionUnit] = 2  # inches
        return exif.tobytes() if len(exif) else b""
    except MemoryError:
        raise
    except Exception as exc:  # of metadata that are damaged Pillow raises whatever comes
        _log.warning("the EXIF of the picture is damaged: left out (%s)", exc)
        return b""


def _as_bytes(value: Any) -> Any:
    """Return a text that is not ASCII as the file has it: of others Pillow would write "?"."""
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def _is_resolution(dpi: Any) -> bool:
    """Say whether it is one: not what files hold that know none."""
    if not isinstance(dpi, tuple) or len(dpi) != 2:
        return False
    return all(math.isfinite(n) and n > 1 and round(n) != UNKNOWN_DPI for n in map(float, dpi))


def resolution(exif: bytes) -> tuple[float, float] | None:
    """Return dots per inch, horizontally and vertically, where EXIF says them."""
    try:
        tags = Image.Exif()
        tags.load(exif)
        unit = {2: 1.0, 3: 2.54}[tags.get(ExifTags.Base.ResolutionUnit, 2)]
        names = (ExifTags.Base.XResolution, ExifTags.Base.YResolution)
        x, y = (float(tags[name]) * unit for name in names)
    except Exception:  # damaged, or not there
        return None
    return (x, y) if _is_resolution((x, y)) else None


def fitting(metadata: dict[str, bytes], kind: str) -> tuple[dict[str, bytes], list[str]]:
    """Return what of the metadata a format holds, and what it does not, in words."""
    kept, left_out = {}, []
    for name, value in metadata.items():
        if name in _HOLDS.get(kind, ()) and len(value) <= _LIMITS.get((kind, name), len(value)):
            kept[name] = value
        else:
            left_out.append(f"{_WORDS[name]} of {len(value)} bytes")
    if "exif" in _HOLDS.get(kind, ()) and "exif" not in kept and "exif" in metadata:
        kept |= _least_exif(metadata["exif"])
    return kept, left_out


def _least_exif(exif: bytes) -> dict[str, bytes]:
    """Return what of EXIF a picture cannot be shown without: how it is to be turned."""
    tags, least = Image.Exif(), Image.Exif()
    with suppress(Exception):  # of EXIF that is damaged nothing
        tags.load(exif)
        least[ExifTags.Base.Orientation] = tags[ExifTags.Base.Orientation]
    return {"exif": least.tobytes()} if len(least) else {}


def without_claims(xmp: bytes) -> bytes:
    """Return an XMP packet without what it says of a gain map, a video or more XMP in its file.

    Only the pixels travel: a viewer would look for the rest in vain, or multiply with a map that
    is not there. What was left out is said in one line.
    """
    xmp = xmp.strip(b"\0")
    if not any(name.encode() in xmp for name in _GONE):
        return xmp
    from xml.dom import minidom  # noqa: PLC0415 - for few pictures

    try:
        if b"<!" in xmp.replace(b"<!--", b""):
            raise ValueError("a document type")  # it may define entities, of any size
        packet = minidom.parseString(xmp)
        told = _drop_claims(packet.documentElement) if packet.documentElement else set()
        kept = b""
        if any(map(_says_something, packet.getElementsByTagNameNS(_RDF, "Description"))):
            kept = "".join(node.toxml() for node in packet.childNodes).encode()
    except Exception:  # no XMP that anybody could read
        told, kept = {"what cannot be read of it"}, b""
    if told:
        _log.warning("left out of the XMP: %s, which .ecx does not store", ", ".join(sorted(told)))
    return kept


def _drop_claims(element: minidom.Element) -> set[str]:
    """Remove claims from an element of XMP; return what they were of."""
    told = set()
    for attribute in list(element.attributes.values()):
        if what := _claim(attribute):
            told.add(what)
        if what or _GONE.get(attribute.value, ("", "."))[1] == "":  # nothing uses its prefix
            element.removeAttributeNode(attribute)
    for child in list(element.childNodes):
        if child.nodeType == child.ELEMENT_NODE:
            if what := _claim(child):
                element.removeChild(child)
                told.add(what)
            else:
                told |= _drop_claims(child)
    return told


def _says_something(description: minidom.Element) -> bool:
    names = {a.localName for a in description.attributes.values() if a.prefix != "xmlns"}
    return bool(names - {"about"}) or any(
        child.nodeType == child.ELEMENT_NODE for child in description.childNodes
    )


def _claim(node: minidom.Element | minidom.Attr) -> str:
    what, names = _GONE.get(node.namespaceURI or "", ("", ""))
    return what if what and re.match(names, node.localName or "") else ""
