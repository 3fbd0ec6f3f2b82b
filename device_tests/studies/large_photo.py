"""Memory and time of a large photo, in a process of its own so that its peak can be read.

    python -m edgecodec.device_tests.studies.large_photo --megapixels 24

Prints JSON: peak resident memory, and seconds per megapixel for this size and for one megapixel.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.codec import Codec
from edgecodec.device_tests.measuring.process import peak_bytes

RUNS = 3


def textured(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return a picture with detail at all scales, made in strips to spare memory.

    Args:
        height: rows.
        width: columns.

    Returns:
        (height, width, 3) uint8, the same for the same size.
    """
    rng = np.random.default_rng(0)
    out = np.empty((height, width, 3), np.uint8)
    x = np.arange(width, dtype=np.float32)
    for top in range(0, height, 256):
        y = np.arange(top, min(height, top + 256), dtype=np.float32)[:, None]
        waves = sum(40 / k * np.sin(x * (0.011 * k * k) + y * (0.007 * k)) for k in (1.0, 2.0, 4.0))
        grain = rng.normal(0, 6, (len(y), width)).astype(np.float32)
        for channel, shift in enumerate((-20, 0, 25)):
            out[top : top + 256, :, channel] = np.clip(128 + waves + shift + grain, 0, 255)
    return out


def seconds_per_megapixel(codec: Codec, pixels: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Return the time of encoding and of decoding, each the best of a few runs."""
    coding, decoding = [], []
    for _ in range(RUNS):
        begin = time.perf_counter()
        data = codec.encode(pixels, 60)
        middle = time.perf_counter()
        codec.decode(data)
        coding.append(middle - begin)
        decoding.append(time.perf_counter() - middle)
    megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
    return min(coding) / megapixels, min(decoding) / megapixels


def measure(megapixels: float, backend: str, bundle: str | None) -> dict[str, Any]:
    """Encode and decode one megapixel, then the large picture, and compare.

    Args:
        megapixels: size of the large picture, of shape 3:2.
        backend: name or `auto`.
        bundle: the model; None takes the shipped one.
    """
    with Codec(bundle, backend) as codec:
        small = seconds_per_megapixel(codec, textured(816, 1224))
        height = round((megapixels * 1e6 / 1.5) ** 0.5)
        pixels = textured(height, height * 3 // 2)
        large = seconds_per_megapixel(codec, pixels)
        used = {s: codec.choice(s).backend for s in ("analysis", "synthesis")}
    return {
        "backends": used,
        "size": [pixels.shape[1], pixels.shape[0]],
        "peak_bytes": peak_bytes(),
        "encode_s_per_megapixel": {"1 MP": small[0], "large": large[0]},
        "decode_s_per_megapixel": {"1 MP": small[1], "large": large[1]},
        "encode_ratio": large[0] / small[0],
        "decode_ratio": large[1] / small[1],
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Memory and time of a large photo.")
    parser.add_argument("--megapixels", type=float, default=24.0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--bundle")
    args = parser.parse_args()
    print(json.dumps(measure(args.megapixels, args.backend, args.bundle), indent=1))


if __name__ == "__main__":
    main()
