"""The golden vector: small pictures with everything a device must find in them.

A backend is judged by it before it is used; a decoder from another hand can be tested with it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgecodec.bundle.reading import short_id
from edgecodec.coding.layout import DEFAULT_TILE
from edgecodec.coding.pixels import to_levels
from edgecodec.converters.checks.parity import channels_first, channels_last
from edgecodec.converters.graph.nodes import Graph
from edgecodec.converters.int8.oracle import run_oracle
from edgecodec.converters.sources.photos import centre
from edgecodec.format.coder import LatentCoder
from edgecodec.format.container import Header, write_container
from edgecodec.runtimes.selection.golden import EXTREME

QUALITY = 60
HEIGHT, WIDTH = 96, 160
"""Not square and no power of two, so that a swapped side or a wrong stride shows."""
PATCH = 32
"""Pixels of a side of one colour: flat for at least one latent."""


@torch.inference_mode()
def make_golden(
    codec_stages: Sequence[nn.Module], tables: bytes, photo: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[Any]]:
    """Encode and decode the middle of a photo with the reference.

    Args:
        codec_stages: analysis and synthesis, torch modules.
        tables: content of `tables.bin`.
        photo: (H, W, 3), sides at least 32.

    Returns:
        What `edgecodec.bundle.reading.Bundle.golden` documents, and `quality` as an int64 scalar.
        `file` is a whole .ecx file of a single tile.
    """
    x, coder = centre(photo, HEIGHT, WIDTH), LatentCoder(tables)
    y, z, substream, y_hat, x_hat = _through(codec_stages, coder, x)
    *_, extreme, x_hat_extreme = _through(codec_stages, coder, full_colours())
    header = Header(x.shape[1], x.shape[0], "RGB", QUALITY, DEFAULT_TILE, short_id(tables))
    return {
        "x": x,
        "quality": np.array(QUALITY, np.int64),
        "file": np.frombuffer(write_container(header, [substream]), np.uint8),
        "y_hat": y_hat,
        "x_hat": x_hat,
        "y": y,
        "z": z,
        f"y_hat{EXTREME}": extreme,
        f"x_hat{EXTREME}": x_hat_extreme,
    }


def full_colours() -> npt.NDArray[np.uint8]:
    """Return black, white, bars, and each of three colours at full strength, (96, 64, 3)."""
    rows, columns = np.mgrid[:PATCH, :PATCH]
    bars = np.stack([columns // 8 & 1, columns // 16 & 1, rows // 12 & 1], -1)
    flat = [np.broadcast_to(colour, bars.shape) for colour in
            ((0, 0, 0), (1, 1, 1), (0, 1, 0), (0, 0, 1), (1, 0, 1))]  # fmt: skip
    left, right = np.concatenate([*flat[:2], bars]), np.concatenate(flat[2:])
    return (255 * np.concatenate([left, right], 1)).astype(np.uint8)


def _through(
    codec_stages: Sequence[nn.Module], coder: LatentCoder, x: npt.NDArray[np.uint8]
) -> tuple[Any, Any, bytes, npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Return y, z, the substream, y_hat and x_hat of a picture."""
    analysis, synthesis = codec_stages
    y, z = (channels_last(value)[0] for value in analysis(channels_first(x[None])))
    substream = coder.compress(QUALITY, y, z)
    _, y_hat = coder.decode(QUALITY, z.shape[0], z.shape[1], substream)
    x_hat = channels_last(synthesis(channels_first(y_hat[None])))[0]
    return y, z, substream, y_hat, to_levels(x_hat)


def add_exact(golden: Mapping[str, npt.NDArray[Any]], graph: Graph) -> dict[str, npt.NDArray[Any]]:
    """Return a golden vector with `x_hat_int8` and such, the one answer of an exact synthesis."""
    exact = dict(golden)
    for picture in ("", EXTREME):
        given = {"y_hat": golden[f"y_hat{picture}"][None].astype(np.float32)}
        exact[f"x_hat{picture}_int8"] = to_levels(run_oracle(graph, given)["x_hat"][0])
    return exact


def save_golden(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an .npz file, the same bytes each time.

    `numpy.savez` cannot: an array called `file` meets its own argument of that name.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, whatever the clock says
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getvalue())
