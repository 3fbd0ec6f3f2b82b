"""Speed and size of the entropy coder on the latents of real photos.

    python -m edgecodec.device_tests.studies.entropy_coding IMAGES... --qualities 10,50,90

Encoding is everything from the floats of the analysis to the bytes of the substream, decoding
everything back to the integers of the synthesis, hyper-synthesis included both times.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.bundle.reading import Bundle
from edgecodec.cli.common import whole_numbers
from edgecodec.codec import Codec
from edgecodec.coding.image_files import expand_images, load_rgb
from edgecodec.coding.layout import Layout
from edgecodec.coding.pixels import read_padded
from edgecodec.format.coder import LatentCoder
from edgecodec.format.container import MAX_TILE
from edgecodec.format.tables import scale_of

RUNS = 15


def information_content(s: npt.NDArray[np.int16], index: npt.NDArray[np.uint8]) -> float:
    """Return the bits that the model's own Gaussians give to symbols.

    Args:
        s: symbols, any shape.
        index: scale indexes of the same shape; symbols at index 0 cost nothing.
    """
    bits = 0.0
    for level in np.unique(index[index > 0]).tolist():
        values, counts = np.unique(np.abs(s[index == level]), return_counts=True)
        inverse = 1.0 / (scale_of(level) * math.sqrt(2.0))
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            low, high = math.erfc((value - 0.5) * inverse), math.erfc((value + 0.5) * inverse)
            bits -= count * math.log2(max(0.5 * (low - high), 1e-300))
    return bits


def best_ms(function: Callable[[], object]) -> tuple[float, float]:
    """Return the smallest and the median time of some calls in milliseconds."""
    samples = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        function()
        samples.append(1e3 * (time.perf_counter() - begin))
    return min(samples), float(np.median(samples))


def measure_image(
    codec: Codec, coder: LatentCoder, path: Path, qualities: Sequence[int]
) -> list[dict[str, Any]]:
    """Return one row per quality for an image of a single tile."""
    pixels = load_rgb(path)
    height, width = pixels.shape[:2]
    layout = Layout(height, width, MAX_TILE)
    window = layout.analysis_window(layout.tile_at(0))
    out = codec.run_stage("analysis", {"x": read_padded(pixels, window)})
    y, z_raw = out["y"][0], out["z"][0]
    rows = []
    for quality in qualities:
        z = coder.quantize_hyper(quality, z_raw)
        s, index = coder.quantize(quality, z, y)
        encode = partial(coder.compress, quality, y, z_raw)
        data = encode()
        decode = partial(coder.decode, quality, z.shape[0], z.shape[1], data)
        index_z = np.broadcast_to(coder.tables.index_z[quality - 1], z.shape)
        ideal = (information_content(s, index) + information_content(z, index_z)) / 8
        rows.append(
            {
                "image": path.name,
                "quality": quality,
                "bytes": len(data),
                "ideal_bytes": ideal,
                "encode_ms": best_ms(encode),
                "decode_ms": best_ms(decode),
            }
        )
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Speed and size of the entropy coder.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--qualities", type=whole_numbers(1, 100), default=(10, 50, 90))
    parser.add_argument("--coder", choices=("c", "numpy"), default="c")
    parser.add_argument("--bundle")
    args = parser.parse_args()
    bundle = Bundle(args.bundle)
    coder = LatentCoder(bundle.tables(), args.coder)
    with Codec(bundle) as codec:
        rows = [
            row
            for path in expand_images(args.images)
            for row in measure_image(codec, coder, path, args.qualities)
        ]
    summary = []
    for quality in args.qualities:
        own = [row for row in rows if row["quality"] == quality]
        total, ideal = sum(r["bytes"] for r in own), sum(r["ideal_bytes"] for r in own)
        summary.append(
            {
                "quality": quality,
                "images": len(own),
                "bytes_per_image": total / len(own),
                "over_information_content_percent": 100 * (total / ideal - 1),
                "encode_ms_best_mean": float(np.mean([r["encode_ms"][0] for r in own])),
                "encode_ms_best_worst": max(r["encode_ms"][0] for r in own),
                "encode_ms_median_mean": float(np.mean([r["encode_ms"][1] for r in own])),
                "decode_ms_best_mean": float(np.mean([r["decode_ms"][0] for r in own])),
                "decode_ms_best_worst": max(r["decode_ms"][0] for r in own),
                "decode_ms_median_mean": float(np.mean([r["decode_ms"][1] for r in own])),
            }
        )
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
