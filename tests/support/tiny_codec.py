"""A whole codec in a few kilobytes, so that decoding takes microseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgecodec.bundle.manifest import MANIFEST, Manifest
from edgecodec.bundle.reading import GOLDEN, TABLES, Bundle, short_id
from edgecodec.bundle.writing import hash_files
from edgecodec.codec import Codec
from edgecodec.converters.checks.golden import save_golden
from tests.runtimes.conftest import write_tiny_bundle
from tests.support.streams import likely_tables

LATENT, HYPER = 4, 3


def write_tiny_codec(folder: Path, targets: tuple[str, ...] = ("onnx",)) -> Path:
    """Write a bundle of graphs, tables and a golden vector that agree; return its path."""
    path = write_tiny_bundle(folder, targets)
    tables = likely_tables(7, LATENT, HYPER, 5, 4, 3).to_bytes()
    (path / TABLES).write_bytes(tables)
    _list_files(path, short_id(tables))
    with np.load(path / GOLDEN) as archive:
        golden = dict(archive)
    with Codec(path, "onnxruntime") as codec:
        data = codec.encode(golden["x"], 50, tile=4096)
        golden["y_hat"] = codec.decode_latents(data)
        golden["x_hat"] = np.asarray(codec.decode(data))
    golden.update(file=np.frombuffer(data, np.uint8), quality=np.array(50))
    save_golden(path / GOLDEN, golden)
    _list_files(path, short_id(tables))
    return path


def _list_files(path: Path, tables_id: str) -> None:
    manifest: Manifest
    with Bundle(path) as bundle:
        manifest = replace(bundle.manifest, tables_id=tables_id, files=hash_files(path))
    (path / MANIFEST).write_text(manifest.to_json())
