"""Pictures that no camera took: what training adds to photos, so that any content codes well.

Flat areas, gradients, shapes, text, plots, user interfaces and pixel art, drawn from a random
generator alone: the same numbers give the same picture wherever the same fonts are installed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from edgecodec.arrays import UInt8Array

Colour = tuple[int, int, int]
_Generator = np.random.Generator

_FONT_FOLDERS = {
    "linux": ("/usr/share/fonts", "/usr/local/share/fonts"),
    "darwin": ("/Library/Fonts", "/System/Library/Fonts"),
    "win32": ("C:/Windows/Fonts",),
}
_MOST_FONTS = 64
_LETTERS = "etaoinshrdlucmfwypvbgkETAOINSHRDLU0123456789"
_MARKS = ".,:;-+=/()%$#@&*!?'\""


@functools.cache
def _font_files() -> tuple[str, ...]:
    """Return the outline fonts of this machine; none is fine."""
    folders = [Path(f) for f in _FONT_FOLDERS.get(sys.platform, ())]
    files = sorted(
        str(p) for f in folders if f.is_dir() for end in ("ttf", "otf") for p in f.rglob(f"*.{end}")
    )
    step = -(-len(files) // _MOST_FONTS)
    return tuple(files[:: step or 1])


@functools.lru_cache(maxsize=256)
def _font(which: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    files = _font_files()
    if which < len(files):
        try:
            return ImageFont.truetype(files[which], size)
        except OSError:
            pass
    return ImageFont.load_default(size)


def _any_font(rng: _Generator, low: int, high: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Sizes people read are drawn most often.
    size = round(low * (high / low) ** rng.random())
    return _font(int(rng.integers(len(_font_files()) + 1)), size)


def _colour(rng: _Generator) -> Colour:
    """Return a colour; often white, black, grey or a primary."""
    kind = rng.random()
    if kind < 0.25:
        return (255, 255, 255)
    if kind < 0.4:
        return (0, 0, 0)
    if kind < 0.55:
        grey = int(rng.integers(256))
        return (grey, grey, grey)
    if kind < 0.7:
        r, g, b = (255 * int(v) for v in rng.integers(0, 2, 3))
        return (r, g, b)
    r, g, b = (int(v) for v in rng.integers(0, 256, 3))
    return (r, g, b)


def _pair(rng: _Generator) -> tuple[Colour, Colour]:
    """Return a ground and what is drawn on it, mostly well apart."""
    if rng.random() < 0.4:
        dark = int(rng.integers(0, 90)) if rng.random() < 0.5 else 0
        light = int(rng.integers(200, 256)) if rng.random() < 0.5 else 255
        pair = ((light,) * 3, (dark,) * 3)
        return pair if rng.random() < 0.7 else (pair[1], pair[0])
    return _colour(rng), _colour(rng)


def _word(rng: _Generator) -> str:
    letters = rng.choice(list(_LETTERS), int(rng.integers(1, 11)), p=_letter_chances())
    word = "".join(letters)
    if rng.random() < 0.15:
        word += _MARKS[int(rng.integers(len(_MARKS)))]
    return word.upper() if rng.random() < 0.08 else word


@functools.cache
def _letter_chances() -> npt.NDArray[np.float64]:
    weights = 1.0 / (3.0 + np.arange(len(_LETTERS)))
    chances: npt.NDArray[np.float64] = weights / weights.sum()
    return chances


def _box(rng: _Generator, size: int, least: int = 4) -> tuple[int, int, int, int]:
    left, top = (int(v) for v in rng.integers(-size // 8, size - least, 2))
    wide, high = (int(least + (size - least) * rng.random() ** 2) for _ in range(2))
    return left, top, left + wide, top + high


def _lines(
    draw: ImageDraw.ImageDraw,
    rng: _Generator,
    box: tuple[int, int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    ink: Colour,
) -> None:
    left, top, right, bottom = box
    pitch = float(rng.uniform(1.1, 1.9)) * font.getbbox("Hg")[3]
    y = top + float(rng.uniform(-0.5, 1.0)) * pitch
    while y < bottom:
        wide = max(1.0, font.getbbox("e")[2])
        count = int((right - left) / wide / 5) + 2
        if rng.random() < 0.9:  # else a line left empty
            words = " ".join(_word(rng) for _ in range(count))
            draw.text((left + float(rng.uniform(-1.0, 4.0)), y), words, fill=ink, font=font)
        y += pitch


def _flat(rng: _Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 4))):
        draw.rectangle(_box(rng, size, 16), fill=_colour(rng))
    return image


def _gradient(rng: _Generator, size: int) -> Image.Image:
    rows, columns = np.mgrid[:size, :size] / size
    angle, reach = rng.uniform(0, 2 * np.pi), float(rng.uniform(0.05, 1.5))
    if rng.random() < 0.6:
        t = 0.5 + reach * ((columns - 0.5) * np.cos(angle) + (rows - 0.5) * np.sin(angle))
    else:
        y, x = rng.uniform(0, 1, 2)
        t = reach * np.hypot(rows - y, columns - x)
    t = np.clip(t, 0, 1)[..., None]
    first, second = (np.array(_colour(rng), float) for _ in range(2))
    values = first + (second - first) * t
    if rng.random() < 0.3:
        values += rng.uniform(-0.5, 0.5, values.shape)  # dithered, as some programs do
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _shapes(rng: _Generator, size: int) -> Image.Image:
    image = (
        _gradient(rng, size) if rng.random() < 0.2 else Image.new("RGB", (size,) * 2, _colour(rng))
    )
    smooth = 2 if rng.random() < 0.6 else 1
    image = image.resize((size * smooth,) * 2)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 16))):
        box, fill = _box(rng, size * smooth), _colour(rng)
        line = int(rng.integers(1, 8))
        kind = rng.random()
        if kind < 0.35:
            draw.rectangle(box, fill=fill)
        elif kind < 0.5:
            draw.rectangle(box, outline=fill, width=line)
        elif kind < 0.7:
            draw.ellipse(box, fill=fill)
        elif kind < 0.85:
            draw.line(box, fill=fill, width=line)
        else:
            points = [tuple(int(v) for v in rng.integers(0, size * smooth, 2)) for _ in range(3)]
            draw.polygon(points, fill=fill)
    return image.resize((size, size), Image.Resampling.BOX) if smooth > 1 else image


def _text(rng: _Generator, size: int) -> Image.Image:
    ground, ink = _pair(rng)
    image = Image.new("RGB", (size, size), ground)
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.7:
        _lines(draw, rng, (0, 0, size, size), _any_font(rng, 9, 48), ink)
        return image
    for _ in range(int(rng.integers(1, 8))):
        x, y = (float(v) for v in rng.uniform(-size / 4, size, 2))
        words = " ".join(_word(rng) for _ in range(int(rng.integers(1, 4))))
        draw.text((x, y), words, fill=_colour(rng), font=_any_font(rng, 12, 120))
    return image


def _plot(rng: _Generator, size: int) -> Image.Image:
    ground, ink = ((255,) * 3, (0,) * 3) if rng.random() < 0.7 else _pair(rng)
    scale = 2
    side = size * scale
    image = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(image)
    left, top = (int(v) for v in rng.integers(0, side // 4, 2))
    right, bottom = side - int(rng.integers(0, side // 6)), side - int(rng.integers(0, side // 4))
    pitch = int(rng.integers(16, 64)) * scale
    if rng.random() < 0.6:
        grid = tuple((3 * g + i) // 4 for g, i in zip(ground, ink, strict=True))
        for x in range(left, right, pitch):
            draw.line((x, top, x, bottom), fill=grid, width=scale)
        for y in range(bottom, top, -pitch):
            draw.line((left, y, right, y), fill=grid, width=scale)
    xs = np.linspace(left, right, 60)
    for _ in range(int(rng.integers(1, 5))):
        ys = np.cumsum(rng.normal(0, 1, 60))
        ys = bottom - (ys - ys.min()) / max(1e-6, float(np.ptp(ys))) * (bottom - top)
        colour = _colour(rng)
        if rng.random() < 0.3:
            for x, y in zip(xs[::6], ys[::6], strict=True):
                draw.rectangle((x, min(y, bottom), x + pitch // 2, bottom), fill=colour)
        else:
            points = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
            draw.line(points, fill=colour, width=int(rng.integers(1, 4)) * scale)
    draw.rectangle((left, top, right, bottom), outline=ink, width=scale)
    font = _any_font(rng, 9 * scale, 16 * scale)
    for x in range(left, right, pitch):
        draw.text((x, bottom + 4), f"{int(rng.integers(1000)) / 10}", fill=ink, font=font)
    for y in range(bottom, top, -pitch):
        draw.text((max(0, left - 60), y - 12), f"{int(rng.integers(1000))}", fill=ink, font=font)
    return image.resize((size, size), Image.Resampling.BOX)


def _interface(rng: _Generator, size: int) -> Image.Image:
    dark = rng.random() < 0.3
    ground = int(rng.integers(16, 48)) if dark else int(rng.choice([255, 250, 245, 240, 232]))
    image = Image.new("RGB", (size, size), (ground,) * 3)
    draw = ImageDraw.Draw(image)
    ink = (int(rng.integers(190, 256)),) * 3 if dark else (int(rng.integers(0, 90)),) * 3
    accent = _colour(rng)
    font = _any_font(rng, 10, 18)
    y = int(rng.integers(-20, 10))
    while y < size:
        high = int(rng.integers(18, 60))
        x = int(rng.integers(-30, 12))
        while x < size:
            wide = int(rng.integers(24, 140))
            fill = (int(np.clip(ground + rng.integers(-24, 25), 0, 255)),) * 3
            kind = rng.random()
            if kind < 0.3:
                radius = int(rng.integers(0, 10))
                outline = ink if rng.random() < 0.5 else None
                draw.rounded_rectangle((x, y, x + wide, y + high - 6), radius, fill, outline)
            elif kind < 0.45:
                draw.rounded_rectangle((x, y, x + wide, y + high - 6), 4, accent)
            elif kind < 0.55:
                draw.ellipse((x, y, x + high - 8, y + high - 8), fill=_colour(rng))
            if kind < 0.85:
                words = " ".join(_word(rng) for _ in range(1 + wide // 60))
                draw.text((x + 5, y + high / 2 - 9), words, fill=ink, font=font)
            x += wide + int(rng.integers(4, 16))
        if rng.random() < 0.3:
            draw.line((0, y + high - 2, size, y + high - 2), fill=accent)
        y += high + int(rng.integers(0, 10))
    return image


def _pixel_art(rng: _Generator, size: int) -> Image.Image:
    zoom = int(rng.choice([1, 2, 3, 4, 6, 8]))
    side = -(-size // zoom)
    palette = np.array([_colour(rng) for _ in range(int(rng.integers(2, 12)))], np.uint8)
    # Patches of a smooth random field, so that colours keep together.
    rough = int(rng.integers(2, max(3, side // 8)))
    field = Image.fromarray(rng.uniform(0, 1, (rough, rough)).astype(np.float32))
    field = field.resize((side, side), Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(field), 0, 0.999)
    if rng.random() < 0.3:
        checks = np.add.outer(np.arange(side), np.arange(side)) % 2
        values = np.clip(values + checks * float(rng.uniform(0, 0.2)), 0, 0.999)
    pixels = palette[(values * len(palette)).astype(int)]
    return Image.fromarray(pixels.repeat(zoom, 0).repeat(zoom, 1)[:size, :size])


_KINDS: tuple[tuple[float, Callable[[_Generator, int], Image.Image]], ...] = (
    (0.12, _flat),
    (0.16, _gradient),
    (0.16, _shapes),
    (0.24, _text),
    (0.10, _plot),
    (0.14, _interface),
    (0.08, _pixel_art),
)
"""With how often each is drawn."""


def synthetic_picture(size: int, rng: np.random.Generator) -> UInt8Array:
    """Draw a picture.

    Args:
        size: of its sides, in pixels.
        rng: all that it depends on, besides the fonts installed.

    Returns:
        (size, size, 3) uint8.
    """
    chances = np.array([chance for chance, _ in _KINDS])
    kind = int(rng.choice(len(_KINDS), p=chances / chances.sum()))
    image = _KINDS[kind][1](rng, size)
    return np.array(image.convert("RGB"))
