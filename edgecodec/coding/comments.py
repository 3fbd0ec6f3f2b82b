"""Comments of image files, which travel in the tags that EXIF has for them."""

from __future__ import annotations

import logging
import re
from typing import Any, Literal

from PIL import ExifTags, Image

EXIF_PREFIX = b"Exif\0\0"

_log = logging.getLogger("edgecodec")

_TAGS = {
    "Title": ExifTags.Base.ImageDescription,
    "Description": ExifTags.Base.ImageDescription,
    "Author": ExifTags.Base.Artist,
    "Copyright": ExifTags.Base.Copyright,
    "Comment": ExifTags.Base.UserComment,
    "comment": ExifTags.Base.UserComment,
}
"""By what PNG calls a text, and Pillow the comment of a JPEG or GIF file."""
_CODE_BYTES = 8
_EMPTY_TIFF = b"MM\0*\0\0\0\x08" + bytes(6)
_ASCII, _LONG, _UNDEFINED = 2, 4, 7
_IPTC_TAG = 33723
_IPTC_DATA = re.compile(rb"\x1c\x02[^\0]")
"""Of record 2, which describes the picture, any data set but its version."""


def with_comments(exif: bytes, image: Image.Image) -> bytes:
    """Return EXIF with the comments of a file in the tags for them, where nothing is said yet.

    All that was there stays where it is, as notes of cameras need it; directories with more
    entries follow behind.

    Args:
        exif: with its prefix, or empty.
        image: loaded.
    """
    if not (texts := _texts(image)):
        return exif
    try:
        said = _said(exif)
        new = {tag: text for tag, text in texts.items() if not said.get(tag)}
        other = [
            ExifTags.TAGS[tag] for tag, text in texts.items() if (said.get(tag) or text) != text
        ]
        exif = _Tiff(exif).with_texts(new) if new else exif
    except Exception:  # of EXIF that is damaged
        other = [ExifTags.TAGS[tag] for tag in texts]
    if other:
        names = ", ".join(sorted(other))
        _log.warning("comments were left out: the EXIF is damaged or says another %s", names)
    return exif


def tell_of_iptc(image: Image.Image) -> None:
    """Say in one line that captions in the form of IPTC are there: they do not travel."""
    blocks = image.info.get("photoshop")
    found = list(blocks.values()) if isinstance(blocks, dict) else []
    found += [getattr(image, "tag_v2", {}).get(_IPTC_TAG)]
    raw = any(f"Raw profile type {kind}" in image.info for kind in ("iptc", "8bim"))
    if raw or any(isinstance(v, bytes) and _IPTC_DATA.search(v) for v in found):
        _log.warning("left out: captions in the form of IPTC, which .ecx does not store")


def _texts(image: Image.Image) -> dict[int, str]:
    """Return what a file says in comments, by tag of EXIF."""
    found: dict[int, list[str]] = {}
    for name, tag in _TAGS.items():
        values: list[Any] = [image.info.get(name)]
        if name == "comment":  # of several in a JPEG file `info` has the last
            values = [v for kind, v in getattr(image, "applist", ()) if kind == "COM"] or values
        for value in values:
            text = _text(value)
            if text and text not in found.get(tag, ()):
                found.setdefault(tag, []).append(text)
    return {tag: "\n".join(texts) for tag, texts in found.items()}


def _text(value: object) -> str:
    """Return what a field of `info` or a tag says, if anything, in any encoding."""
    if isinstance(value, bytes):
        try:
            return _text(value.decode())
        except UnicodeDecodeError:
            return _text(value.decode("latin-1"))
    return value.strip("\0 \r\n\t") if isinstance(value, str) else ""


def _said(exif: bytes) -> dict[int, str]:
    """Return what EXIF says in the tags for comments; of blanks nothing."""
    tags = Image.Exif()
    tags.load(exif)
    known = set(_TAGS.values()) & {*tags}
    said = {tag: str(tags[tag]).encode("latin-1", "replace") for tag in known}
    comment = tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if isinstance(comment, bytes):
        code, text = comment[:_CODE_BYTES], comment[_CODE_BYTES:]
        if code.startswith(b"UNICODE"):
            order = "utf-16-le" if tags.endian == "<" else "utf-16-be"
            text = text.decode(order, "replace").encode()
        said[ExifTags.Base.UserComment] = text
    return {tag: _text(text) for tag, text in said.items()}


class _Tiff:
    """A TIFF structure that grows at its end.

    Raises:
        ValueError: what it points to lies outside.
    """

    def __init__(self, exif: bytes) -> None:
        self._data = bytearray(exif.removeprefix(EXIF_PREFIX) or _EMPTY_TIFF)
        self._order: Literal["little", "big"] = "little" if self._data[:2] == b"II" else "big"

    def with_texts(self, texts: dict[int, str]) -> bytes:
        """Return EXIF with texts in their tags."""
        main, following = self._directory(int.from_bytes(self._data[4:8], self._order))
        for tag, text in texts.items():
            if tag == ExifTags.Base.UserComment:
                pointer = main.get(ExifTags.IFD.Exif)
                inner, behind = (
                    self._directory(int.from_bytes(pointer[8:], self._order))
                    if pointer
                    else ({}, bytes(4))
                )
                inner[tag] = self._entry(tag, _UNDEFINED, self._comment(text))
                place = self._append(inner, behind).to_bytes(4, self._order)
                main[ExifTags.IFD.Exif] = self._entry(ExifTags.IFD.Exif, _LONG, place)
            else:
                main[tag] = self._entry(tag, _ASCII, text.encode() + b"\0")
        self._data[4:8] = self._append(main, following).to_bytes(4, self._order)
        return EXIF_PREFIX + self._data

    def _comment(self, text: str) -> bytes:
        if text.isascii():
            return b"ASCII\0\0\0" + text.encode()
        return b"UNICODE\0" + text.encode("utf-16-le" if self._order == "little" else "utf-16-be")

    def _directory(self, start: int) -> tuple[dict[int, bytes], bytes]:
        """Return the entries of a directory, 12 bytes each, by tag, and what follows them."""
        end = start + 2 + 12 * int.from_bytes(self._data[start : start + 2], self._order)
        if end > len(self._data):
            raise ValueError("a directory lies outside")
        entries = [bytes(self._data[i : i + 12]) for i in range(start + 2, end, 12)]
        following = bytes(self._data[end : end + 4]).ljust(4, b"\0")
        return {int.from_bytes(entry[:2], self._order): entry for entry in entries}, following

    def _entry(self, tag: int, kind: int, content: bytes) -> bytes:
        count = 1 if kind == _LONG else len(content)
        if len(content) > 4:
            content = self._place(content).to_bytes(4, self._order)
        head = tag.to_bytes(2, self._order) + kind.to_bytes(2, self._order)
        return head + count.to_bytes(4, self._order) + content.ljust(4, b"\0")

    def _append(self, entries: dict[int, bytes], following: bytes) -> int:
        content = b"".join(entries[tag] for tag in sorted(entries))
        return self._place(len(entries).to_bytes(2, self._order) + content + following)

    def _place(self, content: bytes) -> int:
        """Put something at the end, at an even place as TIFF wants it; return where."""
        self._data += bytes(len(self._data) % 2)
        place = len(self._data)
        self._data += content
        return place
