"""int8 of a network that need not be exact: levels are read as codes, branches end in float32."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgecodec.arrays import Float32Array
from edgecodec.converters.checks.executed import executed_operations
from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Coding, Dequantize, Quantize, Relu, Scale
from edgecodec.converters.graph.tensors import channels_first, channels_last
from edgecodec.converters.graph.unrounded import unrounded
from edgecodec.converters.int8.oracle import run_oracle
from edgecodec.converters.int8.quantize import quantize
from edgecodec.converters.int8.ranges import collect
from edgecodec.converters.writers.share_weights import _Pool, find_parts
from edgecodec.converters.writers.targets import TARGETS
from edgecodec.runtimes.base import Artefact
from tests.converters.conftest import Residual, RunArtefact
from tests.support.exact_graphs import Draft, latents

RUNTIMES = ("onnx", "openvino", "tflite")


def levels(seed: int, height: int = 64, width: int = 96) -> Float32Array:
    """(1, height, width, 3) levels that correlate, black and white among them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (1, height // 8, width // 8, 3)).repeat(8, 1).repeat(8, 2)
    x = np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255)
    x[0, 0, 0], x[0, 0, 1] = 0, 255
    return np.rint(x).astype(np.float32)


@functools.cache
def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 16, 8, stride=8), Residual(16), Residual(16),
        nn.Conv2d(16, 24, 2, stride=2), Residual(24),
    ).eval()  # fmt: skip


@functools.cache
def traced() -> Graph:
    return graph_from_module(
        network(), stage="analysis", inputs={"x": 3}, outputs=["y"], size=(64, 64)
    )


@functools.cache
def int8() -> Graph:
    return quantize(
        traced(), collect(traced(), [{"x": levels(i)} for i in range(4)]), exact=False
    ).finish()


def deviation(found: Float32Array, expected: Float32Array) -> float:
    return float(np.sqrt(np.mean(np.square(found - expected))) / expected.std())


def float_answer(x: Float32Array) -> Float32Array:
    with torch.inference_mode():
        return channels_last(network()(channels_first(x)))


def test_levels_are_codes_as_they_are() -> None:
    first = int8().nodes[0]
    assert isinstance(first, Quantize)
    coding = int8().values[first.output].coding
    assert coding is not None
    assert (coding.scale, coding.zero_point) == (1.0, -128)


def test_float32_comes_of_the_first_convolution_and_goes_into_others_of_the_trunk() -> None:
    made = [n for n in int8().nodes if isinstance(n, QuantizedConv2d)]
    whole = [n.weight.shape[2:] for n in made if int8().values[n.output].coding is None]
    assert whole == [(8, 8)]
    assert [n.weight.shape[2:] for n in int8().nodes if isinstance(n, Conv2d)] == [(2, 2)]


def test_numbers_of_codes_go_with_their_rounding() -> None:
    graph, free = int8(), unrounded(int8())
    assert any(isinstance(node, Dequantize) for node in graph.nodes)
    assert not any(isinstance(node, Dequantize) for node in free.nodes)
    scales = [node for node in free.nodes if isinstance(node, Scale)]
    assert all(node.output == "y" for node in scales)  # which has units of its own
    assert len(free.nodes) < len(graph.nodes)


def test_codes_that_are_read_as_codes_too_are_left() -> None:
    graph = int8()
    node = next(n for n in graph.nodes if isinstance(n, Dequantize))
    twin = replace(node, name="twin", output="twin")
    values = {**graph.values, "twin": replace(graph.values[node.output], name="twin")}
    nodes = list(graph.nodes)
    nodes.insert(nodes.index(node), twin)
    doubled = replace(graph, values=values, nodes=tuple(nodes))
    assert node in unrounded(doubled).nodes
    assert node not in unrounded(graph).nodes


@pytest.mark.parametrize("target", RUNTIMES)
def test_runtimes_answer_nearly_as_the_float_network(
    target: str, run_artefact: RunArtefact
) -> None:
    for size in ((64, 96), (32, 32), (96, 32)):
        x = levels(5, *size)
        found = run_artefact(int8(), target, "int8", x)["y"]
        assert found.shape == (1, size[0] // 16, size[1] // 16, 24)
        assert deviation(found, float_answer(x)) < 0.05, size


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_runtimes_that_make_numbers_of_codes_do_it_as_the_oracle(
    target: str, run_artefact: RunArtefact
) -> None:
    d = Draft(3, "x", 16)
    codes = d.add(Quantize("codes", ("x",), "codes"), 16, Coding(16.0))
    middle = d.quantized(codes, 16, relu=True)
    name = d.quantized(middle, 24)
    made = d.nodes[-1]
    assert isinstance(made, QuantizedConv2d)
    d.nodes[-1] = replace(
        made, scale=np.full(24, 2.0**-9, np.float32)
    )  # the oracle wants whole bits
    real = d.add(Dequantize("real", (name,), "real"), 24)
    factor = (2.0 ** d.rng.integers(0, 4, 24)).astype(np.float32)
    scaled = d.add(Scale("scaled", (real,), "scaled", factor), 24)
    graph = replace(d.finish(d.add(Relu("last", (scaled,), "last"), 24), "y"), stage="analysis")
    free = unrounded(graph)
    x = latents(0, 32, 64) + np.float32(0.25)  # no value halfway between codes
    found = run_artefact(graph, target, "int8", x)["y"]
    expected = run_oracle(free, {"x": x})["y"]
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4 * float(expected.max()))
    assert np.abs(found - np.rint(found)).max() > 0.1


def write(target: str, folder: Path) -> Artefact:
    path = folder / f"analysis.int8.{TARGETS[target].suffix}"
    TARGETS[target].load_writer()(int8(), path, "int8")
    return Artefact("analysis", target, "int8", path)


@pytest.mark.parametrize("target", RUNTIMES)
def test_every_convolution_is_run_with_integers(target: str, tmp_path: Path) -> None:
    found = executed_operations(write(target, tmp_path))
    assert found is not None
    assert sum(op.integer for op in found) == sum(
        isinstance(node, QuantizedConv2d) for node in int8().nodes
    )


def test_onnx_runtime_scales_and_adds_no_bias_apart(tmp_path: Path) -> None:
    kinds = [node.op_type for node in onnx.load(write("onnx", tmp_path).path).graph.node]
    ends = sum(
        unrounded(int8()).values[node.output].coding is None
        for node in unrounded(int8()).nodes
        if isinstance(node, QuantizedConv2d)
    )
    assert kinds.count("MatMulIntegerToFloat") == ends
    assert kinds.count("Mul") <= 1


@pytest.mark.parametrize("target", RUNTIMES)
def test_weights_are_found_for_sharing(target: str, tmp_path: Path) -> None:
    path = write(target, tmp_path).path
    data = path.with_suffix(".bin").read_bytes() if target == "openvino" else path.read_bytes()
    sizes = [n.weight.size for n in int8().nodes if isinstance(n, QuantizedConv2d)]
    found = find_parts(data, int8(), _Pool())
    assert len(found.literals) <= len(data) - sum(size for size in sizes if size >= 256)
