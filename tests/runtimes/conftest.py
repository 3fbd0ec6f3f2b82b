"""A bundle small enough to be written by every test run, with an oracle in NumPy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecodec.arrays import Float32Array
from edgecodec.bundle.manifest import MANIFEST, ArtefactEntry, Manifest
from edgecodec.bundle.reading import GOLDEN, TABLES, Bundle
from edgecodec.bundle.writing import hash_files, writing_bundle
from edgecodec.coding.pixels import to_levels
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.graph import Graph, Value
from edgecodec.converters.graph.nodes import DepthToSpace, Relu
from edgecodec.converters.writers.to_onnx import write_onnx
from edgecodec.converters.writers.to_openvino import write_openvino
from edgecodec.converters.writers.to_tflite import write_tflite
from edgecodec.converters.writers.to_torch import write_torch
from edgecodec.runtimes import registry
from edgecodec.runtimes.selection.selector import shared

SUFFIX = {"onnx": "onnx", "openvino": "xml", "tflite": "tflite", "torch": "pt"}
WRITERS: dict[str, Callable[..., dict[str, int]]] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "tflite": write_tflite,
    "torch": write_torch,
}
CHANNELS = {"x": 3, "h": 8, "r": 8, "y": 4, "z": 3}


def _weights(seed: int, shape: tuple[int, ...], scale: float) -> Float32Array:
    values = np.random.default_rng(seed).normal(0.0, scale, shape)
    return values.astype(np.float16).astype(np.float32)


def _patches(x: Float32Array, weight: Float32Array, bias: Float32Array) -> Float32Array:
    """Convolve with a stride equal to the kernel: (h, w, I) -> (h / k, w / k, O)."""
    k = weight.shape[2]
    h, w, c = x.shape
    blocks = x.reshape(h // k, k, w // k, k, c)
    result: Float32Array = np.einsum("hiwjc,ocij->hwo", blocks, weight, optimize=True) + bias
    return result.astype(np.float32)


class Tiny:
    """Two stages of a few hundred weights, as graphs and in NumPy."""

    def __init__(self) -> None:
        self.w8, self.b8 = _weights(1, (8, 3, 8, 8), 0.02), _weights(2, (8,), 1.0)
        self.w2, self.b2 = _weights(3, (4, 8, 2, 2), 0.2), _weights(4, (4,), 1.0)
        self.wz, self.bz = _weights(5, (3, 4, 2, 2), 0.1), _weights(6, (3,), 1.0)
        self.ws, self.bs = _weights(7, (768, 4, 1, 1), 0.1), _weights(8, (768,), 20.0) + 128.0
        self.bs = self.bs.astype(np.float16).astype(np.float32)

    def analyse(self, x: Float32Array) -> dict[str, Float32Array]:
        """Map x (1, H, W, 3) to y and z."""
        h = np.maximum(_patches(x[0], self.w8, self.b8), 0.0)
        y = _patches(h, self.w2, self.b2)
        return {"y": y[None], "z": _patches(y, self.wz, self.bz)[None]}

    def synthesise(self, y_hat: Float32Array) -> dict[str, Float32Array]:
        """Map y_hat (1, h, w, 4) to x_hat."""
        wide = _patches(y_hat[0], self.ws, self.bs)
        h, w = wide.shape[:2]
        pixels = wide.reshape(h, w, 3, 16, 16).transpose(0, 3, 1, 4, 2)
        return {"x_hat": np.ascontiguousarray(pixels.reshape(1, 16 * h, 16 * w, 3))}

    def graph(self, stage: str) -> Graph:
        """Return a stage as converters know it."""
        if stage == "analysis":
            return Graph(
                stage=stage,
                values={name: Value(name, channels) for name, channels in CHANNELS.items()},
                inputs=("x",),
                outputs=("y", "z"),
                nodes=(
                    Conv2d("c8", ("x",), "h", self.w8, self.b8, stride=(8, 8)),
                    Relu("relu", ("h",), "r"),
                    Conv2d("c2", ("r",), "y", self.w2, self.b2, stride=(2, 2)),
                    Conv2d("cz", ("y",), "z", self.wz, self.bz, stride=(2, 2)),
                ),
            )
        return Graph(
            stage=stage,
            values={n: Value(n, c) for n, c in (("y_hat", 4), ("wide", 768), ("x_hat", 3))},
            inputs=("y_hat",),
            outputs=("x_hat",),
            nodes=(
                Conv2d("wide", ("y_hat",), "wide", self.ws, self.bs),
                DepthToSpace("shuffle", ("wide",), "x_hat", 16),
            ),
        )


def write_tiny_bundle(folder: Path, targets: tuple[str, ...] = tuple(SUFFIX)) -> Path:
    """Write a bundle with fp32 artefacts of the tiny network and return its path."""
    tiny, path = Tiny(), folder / "tiny.bundle"
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 96, 3), np.uint8)
    y_hat = rng.integers(-200, 200, (4, 6, 4), np.int16)
    latents = tiny.analyse(x[None].astype(np.float32))
    x_hat = tiny.synthesise(y_hat[None].astype(np.float32))["x_hat"][0]
    with writing_bundle(path) as root:
        entries = []
        for target in targets:
            (root / target).mkdir()
            for stage in ("analysis", "synthesis"):
                name = f"{target}/{stage}.fp32.{SUFFIX[target]}"
                WRITERS[target](tiny.graph(stage), root / name, "fp32")
                entries.append(ArtefactEntry(stage, target, "fp32", name, 0))
        np.savez(
            root / GOLDEN,
            x=x,
            y_hat=y_hat,
            x_hat=to_levels(x_hat),
            y=latents["y"][0],
            z=latents["z"][0],
        )
        manifest = Manifest("tiny", "0" * 16, "0" * 16, 4, 3, 16, 32, 0, 0, tuple(entries), {}, {})
        manifest = Manifest(**{**vars(manifest), "files": hash_files(root)})
        (root / MANIFEST).write_text(manifest.to_json())
    return path


def with_bf16(bundle: Bundle, path: Path) -> Path:
    """Write a bundle that has OpenVINO's fp32 artefacts of another one as bf16, too."""
    entries = list(bundle.manifest.artefacts)
    for entry in bundle.manifest.artefacts:
        if (entry.target, entry.precision) == ("openvino", "fp32"):
            name = entry.path.replace("fp32", "bf16")
            entries.append(replace(entry, precision="bf16", path=name))
    with writing_bundle(path) as root:
        for name in (GOLDEN, TABLES):
            if (bundle.root / name).is_file():
                shutil.copyfile(bundle.root / name, root / name)
        for entry in bundle.manifest.artefacts:
            whole = bundle.artefact_file(entry)
            (root / entry.path).parent.mkdir(exist_ok=True)
            for file in whole.parent.glob(f"{whole.stem}.*"):
                copy = (root / entry.path).with_suffix(file.suffix)
                shutil.copyfile(file, copy)
                if (entry.target, entry.precision) == ("openvino", "fp32"):
                    shutil.copyfile(file, copy.with_name(copy.name.replace("fp32", "bf16")))
        manifest = replace(bundle.manifest, artefacts=tuple(entries), files=hash_files(root))
        (root / MANIFEST).write_text(manifest.to_json())
    return path


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle(tiny_bundle)


@pytest.fixture(autouse=True)
def _forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no test see what another one registered or measured."""
    monkeypatch.setenv("EDGECODEC_CACHE", str(tmp_path / "cache"))
    registry.refresh()
    shared.clear()
    yield
    registry.refresh()
    shared.clear()
