"""Shuffles change their order without changing a number, and without new nodes where possible."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgecodec.converters.graph.channel_order import dcr_order, with_dcr_shuffles
from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import (
    Coding,
    DepthToSpace,
    Dequantize,
    Quantize,
    Scale,
    SpaceToDepth,
)
from edgecodec.converters.int8.oracle import run_oracle
from tests.support.exact_graphs import Draft, latents, replicating, synthesis_like


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shuffle_puts_every_element_where_torch_does(
    target: str, channels: int, run_artefact: Any
) -> None:
    module = nn.PixelShuffle(4)
    graph = graph_from_module(
        module, stage="s", inputs={"x": 16 * channels}, outputs=["y"], size=(2, 2)
    )
    x = np.arange(2 * 3 * 16 * channels, dtype=np.float32).reshape(1, 2, 3, -1)
    expected = module(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(run_artefact(graph, target, "fp32", x)["y"], expected)


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite"])
def test_unshuffle_puts_every_element_where_torch_does(target: str, run_artefact: Any) -> None:
    module = nn.PixelUnshuffle(2)
    graph = graph_from_module(module, stage="s", inputs={"x": 3}, outputs=["y"], size=(2, 2))
    x = np.arange(4 * 6 * 3, dtype=np.float32).reshape(1, 4, 6, 3)
    expected = module(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(run_artefact(graph, target, "fp32", x)["y"], expected)


def test_dcr_order_of_two_channels_and_a_block_of_two() -> None:
    assert dcr_order(2, 2).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_convolution_next_to_a_shuffle_is_permuted_in_place() -> None:
    module = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 1), nn.ReLU(), nn.PixelShuffle(2))
    graph = graph_from_module(module, stage="s", inputs={"x": 3}, outputs=["y"])
    changed = with_dcr_shuffles(graph)
    assert len(changed.nodes) == len(graph.nodes)
    before = next(node for node in graph.nodes if isinstance(node, Conv2d))
    after = next(node for node in changed.nodes if isinstance(node, Conv2d))
    assert not np.array_equal(before.weight, after.weight)
    assert sorted(before.weight.ravel()) == sorted(after.weight.ravel())


def test_every_case_ends_in_dcr_order(traced: Any) -> None:
    for node in with_dcr_shuffles(traced.graph).nodes:
        assert not isinstance(node, DepthToSpace | SpaceToDepth) or node.order == "dcr"


def assert_equal_in_dcr_order(graph: Graph, added: int = 0) -> None:
    changed = with_dcr_shuffles(graph)
    shuffles = [n for n in changed.nodes if isinstance(n, DepthToSpace | SpaceToDepth)]
    assert {node.order for node in shuffles} == {"dcr"}
    assert len(changed.nodes) == len(graph.nodes) + added
    y_hat = latents(1, 4, 6)
    (name,) = graph.outputs
    expected = run_oracle(graph, {"y_hat": y_hat})[name]
    assert np.array_equal(run_oracle(changed, {"y_hat": y_hat})[name], expected)


def test_an_int8_graph_stays_equal() -> None:
    assert_equal_in_dcr_order(synthesis_like())
    assert_equal_in_dcr_order(replicating())


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("branches", [1, 2])
def test_shuffle_of_codes_or_behind_their_scale(coded: bool, branches: int) -> None:
    d = Draft(0, "y_hat", 16)
    x = d.add(Quantize("q", (d.snap("y_hat", 2048.0),), "q"), 16, Coding(16.0))
    x = d.quantized(x, 16)
    if coded:
        x = d.shuffle(x, 2)
        x = d.add(Dequantize("d", (x,), "d"), 4)
    else:
        x = d.add(Dequantize("d", (x,), "d"), 16)
        factor = (2.0 ** d.rng.integers(0, 4, 16)).astype(np.float32)
        x = d.add(Scale("s", (x,), "s", factor), 16)
        x = d.shuffle(x, 2)
    graph = d.finish(x, "x_hat")
    if branches == 2:  # the convolution has another reader, which wants its old order
        (source,) = (
            graph.producer(n.inputs[0]) for n in graph.nodes if isinstance(n, DepthToSpace)
        )
        assert source is not None
        extra = Dequantize("extra", (source.output,), "extra")
        d.add(extra, 16) if coded else d.add(Scale("extra", (source.output,), "extra", factor), 16)
        graph = Graph("synthesis", d.values, d.inputs, ("x_hat",), tuple(d.nodes))
    assert_equal_in_dcr_order(graph, added=branches - 1)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
def test_unshuffle_of_codes_or_before_their_scale(coded: bool, depthwise: bool) -> None:
    d = Draft(0, "y_hat", 16)
    if coded:
        x = d.add(Quantize("q", (d.snap("y_hat", 2048.0),), "q"), 16, Coding(16.0))
        x = d.add(SpaceToDepth("u", (x,), "u", 2), 64, Coding(16.0))
    else:
        x = d.add(SpaceToDepth("u", ("y_hat",), "u", 2), 64)
        factor = (2.0 ** d.rng.integers(-3, 1, 64)).astype(np.float32)
        x = d.add(Scale("s", (x,), "s", factor), 64)
        x = d.add(Quantize("q", (d.snap(x, 2048.0),), "q"), 64, Coding(16.0))
    x = d.quantized(x, 64 if depthwise else 8, 3, depthwise=depthwise)
    x = d.add(Dequantize("d", (x,), "d"), d.values[x].channels)
    assert_equal_in_dcr_order(d.finish(x, "x_hat"), added=int(depthwise))


def test_rows_and_scales_of_an_int8_convolution_move_together() -> None:
    d = Draft(0, "y_hat", 16)
    x = d.quantized(d.add(Quantize("q", (d.snap("y_hat", 2048.0),), "q"), 16, Coding(16.0)), 16)
    x = d.shuffle(x, 2)
    graph = d.finish(d.add(Dequantize("d", (x,), "d"), 4), "x_hat")
    before, after = (
        next(node for node in g.nodes if isinstance(node, QuantizedConv2d))
        for g in (graph, with_dcr_shuffles(graph))
    )
    order = dcr_order(4, 2)
    assert np.array_equal(after.weight, before.weight[order])
    assert np.array_equal(after.bias, before.bias[order])
    assert np.array_equal(after.scale, before.scale[order])
