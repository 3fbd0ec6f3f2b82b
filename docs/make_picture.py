"""Make docs/demo.png: a detail of the demo photo, as it is, by edgecodec, and by JPEG.

    python docs/make_picture.py

JPEG gets the highest quality that needs no more bytes than the .ecx file.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import edgecodec
from edgecodec.evaluation.metrics import psnr_rgb

QUALITY = 20
BOX = (110, 40, 430, 300)
HERE = Path(__file__).parent


def jpeg_within(image: Image.Image, size: int) -> bytes:
    """Return the best JPEG of at most `size` bytes."""
    best = b""
    for quality in range(1, 96):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() > size:
            break
        best = buffer.getvalue()
    return best


def main() -> None:
    """Write the picture."""
    image = Image.open(HERE.parent / "edgecodec" / "data" / "demo.png").convert("RGB")
    ours = edgecodec.encode(image, quality=QUALITY)
    theirs = jpeg_within(image, len(ours))
    shown = [("original", image.width * image.height * 3, image)]
    shown.append(("edgecodec", len(ours), edgecodec.decode(ours)))
    shown.append(("JPEG", len(theirs), Image.open(io.BytesIO(theirs)).convert("RGB")))
    width, height = BOX[2] - BOX[0], BOX[3] - BOX[1]
    sheet = Image.new("RGB", (3 * width + 20, height + 24), "white")
    draw = ImageDraw.Draw(sheet)
    original = np.asarray(image)
    for k, (name, size, decoded) in enumerate(shown):
        left = k * (width + 10)
        sheet.paste(decoded.crop(BOX), (left, 24))
        text = f"{name}, {size:,} bytes"
        if k:
            text += f", PSNR {psnr_rgb(original, np.asarray(decoded)):.2f} dB"
        draw.text((left + 2, 4), text, fill="black", font_size=15)
    sheet.save(HERE / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
