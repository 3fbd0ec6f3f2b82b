"""Machines whose int8 kernels compute otherwise: the golden vector lets pass what gives the bits.

The machine is the oracle with another rounding or another sum in its place; its answers are those
that the arithmetic named gives, not made up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.arrays import Float32Array, Float64Array
from edgecodec.bundle.manifest import MANIFEST, ArtefactEntry, Manifest
from edgecodec.bundle.reading import GOLDEN, Bundle
from edgecodec.bundle.writing import hash_files, writing_bundle
from edgecodec.coding.pixels import to_levels
from edgecodec.converters.graph.convolutions import QuantizedConv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Coding, Node
from edgecodec.converters.int8 import oracle
from edgecodec.converters.writers.to_onnx import write_onnx
from edgecodec.converters.writers.to_tflite import write_tflite
from edgecodec.errors import BackendError
from edgecodec.runtimes.backends.tflite_backend import TfliteBackend
from edgecodec.runtimes.base import Artefact, RunSettings, Session, SessionOptions
from edgecodec.runtimes.selection.selector import shared
from tests.support import exact_graphs
from tests.support.exact_graphs import Draft, latents

Arithmetic = tuple[object, str, Callable[..., Any]]
"""Where a function is, its name, and what takes its place."""
BUDGET_S = 0.05


def decoder(seed: int = 0) -> Graph:
    """Latents to a picture sixteen times as large."""
    d = Draft(seed, "y_hat", 16)
    x = d.block(d.block(d.snap("y_hat", 2048.0)))
    x = d.whole(d.snap(x, 2048.0), 768, 13)
    return d.finish(d.shuffle(x, 16), "x_hat")


def write_bundle(folder: Path, graph: Graph) -> Bundle:
    """Write a bundle of an exact synthesis alone, for ONNX Runtime and for TFLite."""
    path, y_hat = folder / "exact.bundle", latents(1, 4, 6)
    x_hat = oracle.run_oracle(graph, {"y_hat": y_hat})["x_hat"][0]
    inside = (x_hat > 0) & (x_hat < 255)
    assert inside.mean() > 0.1  # the others are clipped and tell little
    with writing_bundle(path) as root:
        write_onnx(graph, root / "synthesis.int8.onnx", "int8")
        write_tflite(graph, root / "synthesis.int8.tflite", "int8")
        np.savez(
            root / GOLDEN,
            x=np.zeros((64, 96, 3), np.uint8),
            y=np.zeros((4, 6, 16), np.float32),
            z=np.zeros((2, 3, 4), np.float32),
            y_hat=y_hat[0].astype(np.int16),
            x_hat=to_levels(x_hat),
            x_hat_int8=to_levels(x_hat),
        )
        entries = tuple(
            ArtefactEntry("synthesis", target, "int8", f"synthesis.int8.{target}", 0, exact=True)
            for target in ("onnx", "tflite")
        )
        manifest = Manifest("exact", "0" * 16, "0" * 16, 16, 4, 16, 32, 0, 0, entries, {}, {})
        manifest = Manifest(**{**vars(manifest), "files": hash_files(root)})
        (root / MANIFEST).write_text(manifest.to_json())
    return Bundle(path)


class Machine:
    """A session that computes a graph with arithmetic of its own."""

    def __init__(self, graph: Graph, arithmetic: Arithmetic) -> None:
        self.graph, self.arithmetic = graph, arithmetic

    def run(self, inputs: dict[str, Float32Array]) -> dict[str, Float32Array]:
        with pytest.MonkeyPatch.context() as patch:
            owner, name, function = self.arithmetic
            patch.setattr(owner, name, function)
            return oracle.run_oracle(self.graph, inputs)

    def close(self) -> None:
        """Nothing is held."""


def install(monkeypatch: pytest.MonkeyPatch, graph: Graph, arithmetic: Arithmetic) -> None:
    """Let TFLite's backend be such a machine."""

    def load(self: TfliteBackend, artefact: Artefact, options: SessionOptions) -> Session:
        return Machine(graph, arithmetic)  # type: ignore[return-value]

    monkeypatch.setattr(TfliteBackend, "load", load)


def coded(rounded: Float64Array, coding: Coding) -> Float64Array:
    return np.clip(rounded, -128 - coding.zero_point, 127 - coding.zero_point)


def halves_up(graph: Graph, node: Node, real: Float64Array, coding: Coding) -> Float64Array:
    return coded(np.floor(real + 0.5), coding)


def halves_away(graph: Graph, node: Node, real: Float64Array, coding: Coding) -> Float64Array:
    return coded(np.trunc(real + np.copysign(0.5, real)), coding)


def downwards(graph: Graph, node: Node, real: Float64Array, coding: Coding) -> Float64Array:
    return coded(np.floor(real), coding)


def twice(graph: Graph, node: Node, real: Float64Array, coding: Coding) -> Float64Array:
    """As fixed-point kernels do: with a few bits more first, then to codes."""
    return coded(np.floor(np.floor(real * 32 + 0.5) / 32 + 0.5), coding)


def saturating(node: QuantizedConv2d, x: Float64Array) -> Float64Array:
    """Add pairs of products in 16 bits, as x86 does without VNNI: unsigned codes by weights."""
    if node.weight.shape[2:] != (1, 1):
        return exact_products(node, x)
    whole = node.weight[:, :, 0, 0].astype(np.int64)
    codes = x.astype(np.int64) - int(x.min())  # zero points aside, as they are taken out again
    offset = int(x.min()) * whole.sum(1)
    products = codes[:, :, None, :] * whole
    pairs = products.reshape(*products.shape[:3], -1, 2).sum(-1)
    total: Float64Array = np.clip(pairs, -(1 << 15), (1 << 15) - 1).sum(-1) + offset
    return total.astype(np.float64)


exact_products = QuantizedConv2d.products


@pytest.mark.parametrize("rounding", [halves_up, halves_away])
def test_halves_may_be_rounded_in_any_way(
    rounding: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = decoder()
    bundle = write_bundle(tmp_path, graph)
    install(monkeypatch, graph, (oracle, "_rounded", rounding))
    verdict = shared.choose(
        bundle, RunSettings(1), stages=("synthesis",), budget_s=BUDGET_S
    ).stages[0]
    assert {choice.backend for choice in verdict.ranked} == {"onnxruntime", "tflite"}


@pytest.mark.parametrize("rounding", [downwards, twice])
def test_other_roundings_are_rejected_and_another_runtime_is_chosen(
    rounding: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = decoder()
    bundle = write_bundle(tmp_path, graph)
    install(monkeypatch, graph, (oracle, "_rounded", rounding))
    verdict = shared.choose(
        bundle, RunSettings(1), stages=("synthesis",), budget_s=BUDGET_S
    ).stages[0]
    assert [choice.backend for choice in verdict.ranked] == ["onnxruntime"]
    (rejected,) = (choice for choice in verdict.rejected if choice.backend == "tflite")
    assert "x_hat differs from the reference" in rejected.reason
    assert "allowed 0" in rejected.reason
    with pytest.raises(BackendError, match=r"^tflite: .*x_hat differs from the reference"):
        shared.choose(bundle, RunSettings(1, backend="tflite"), stages=("synthesis",))


def test_sums_of_pairs_may_saturate_as_weights_have_seven_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = decoder()
    bundle = write_bundle(tmp_path, graph)
    install(monkeypatch, graph, (QuantizedConv2d, "products", saturating))
    assert (
        shared.choose(bundle, RunSettings(1, backend="tflite"), stages=("synthesis",))
        .stages[0]
        .best.ok
    )


def test_a_machine_that_saturates_is_rejected_for_weights_of_eight_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def integers(self: Draft, shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
        return self.rng.integers(-127, 128, shape).astype(np.int8)

    monkeypatch.setattr(exact_graphs.Draft, "integers", integers)
    graph = decoder()
    bundle = write_bundle(tmp_path, graph)
    assert (
        shared.choose(bundle, RunSettings(1, backend="tflite"), stages=("synthesis",))
        .stages[0]
        .best.ok
    )
    install(monkeypatch, graph, (QuantizedConv2d, "products", saturating))
    with pytest.raises(BackendError, match=r"^tflite: .*x_hat differs from the reference"):
        shared.choose(bundle, RunSettings(2, backend="tflite"), stages=("synthesis",))
