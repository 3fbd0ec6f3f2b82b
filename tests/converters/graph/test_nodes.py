"""Checks, sizes and identity of the graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph, Value, infer_sizes
from edgecodec.converters.graph.nodes import (
    Add,
    Coding,
    DepthToSpace,
    Dequantize,
    Node,
    Quantize,
    Scale,
    Snap,
)
from edgecodec.converters.graph.tensors import fits_half, to_half
from edgecodec.errors import ConversionError


def conv(source: str, output: str, inputs: int, outputs: int) -> Conv2d:
    weight = np.arange(outputs * inputs, dtype=np.float32).reshape(outputs, inputs, 1, 1)
    return Conv2d(f"to_{output}", (source,), output, weight, np.zeros(outputs, np.float32))


def graph_of(*nodes: Node, **channels: int) -> Graph:
    values = {name: Value(name, count) for name, count in channels.items()}
    return Graph("stage", values, ("x",), (nodes[-1].output,), nodes)


@pytest.mark.parametrize(
    ("nodes", "channels"),
    [
        ([conv("x", "y", 3, 4)], {"x": 2, "y": 4}),
        ([conv("x", "y", 3, 4)], {"x": 3, "y": 5}),
        ([DepthToSpace("d", ("x",), "y", 2)], {"x": 6, "y": 1}),
        ([conv("x", "h", 3, 4), Add("a", ("x", "h"), "y")], {"x": 3, "h": 4, "y": 3}),
        ([conv("missing", "y", 3, 4)], {"x": 3, "y": 4}),
        ([conv("x", "x", 3, 3)], {"x": 3}),
        ([conv("x", "y", 3, 4), conv("x", "y", 3, 4)], {"x": 3, "y": 4}),
    ],
)
def test_graph_refuses_parts_that_do_not_fit(nodes: list[Node], channels: dict[str, int]) -> None:
    with pytest.raises(ConversionError, match="stage: "):
        graph_of(*nodes, **channels)


def test_infer_sizes_refuses_a_size_no_node_can_take() -> None:
    node = replace(conv("x", "y", 3, 4), weight=np.zeros((4, 3, 3, 3), np.float32))
    graph = graph_of(node, x=3, y=4)
    assert infer_sizes(graph, {"x": (3, 9)}) == {"x": (3, 9), "y": (1, 7)}
    with pytest.raises(ConversionError, match="cannot take the size"):
        infer_sizes(graph, {"x": (2, 9)})
    with pytest.raises(ConversionError, match="no size given for x"):
        infer_sizes(graph, {})


def test_weights_digest_sees_numbers_and_wiring_but_no_names() -> None:
    first = graph_of(conv("x", "h", 3, 3), conv("h", "y", 3, 3), x=3, h=3, y=3)
    renamed = graph_of(conv("x", "k", 3, 3), conv("k", "z", 3, 3), x=3, k=3, z=3)
    rewired = graph_of(conv("x", "h", 3, 3), conv("x", "y", 3, 3), x=3, h=3, y=3)
    changed = replace(conv("h", "y", 3, 3), bias=np.full(3, 1e-7, np.float32))
    other = graph_of(conv("x", "h", 3, 3), changed, x=3, h=3, y=3)
    assert first.weights_digest() == renamed.weights_digest()
    assert len({g.weights_digest() for g in (first, rewired, other)}) == 3


def int8_graph(**changes: Any) -> Graph:
    """Every kind of node that int8 adds; a change replaces a field of the node it names."""
    weight, ones = np.ones((3, 3, 1, 1), np.int8), np.ones(3, np.float32)
    codings = {"codes": Coding(2.0, -128), "made": Coding(1.0)}
    nodes: list[Any] = [
        Scale("scale", ("x",), "scaled", ones),
        Snap("snap", ("scaled",), "snapped", 64.0),
        Quantize("quantize", ("snapped",), "codes"),
        QuantizedConv2d("conv", ("codes",), "made", weight, np.zeros(3, np.int32), scale=ones),
        Dequantize("dequantize", ("made",), "y"),
    ]
    for i, node in enumerate(nodes):
        if node.name in changes:
            nodes[i] = replace(node, **changes[node.name])
    values = {
        name: Value(name, 3, changes.get(name, codings.get(name)))
        for name in ("x", "scaled", "snapped", "codes", "made", "y")
    }
    return Graph("stage", values, ("x",), ("y",), tuple(nodes))


def test_weights_digest_sees_all_that_int8_has() -> None:
    twos = np.full(3, 2.0, np.float32)
    variants = [
        int8_graph(),
        int8_graph(scale={"factor": twos}),
        int8_graph(snap={"limit": 32.0}),
        int8_graph(conv={"scale": twos}),
        int8_graph(conv={"bias": np.ones(3, np.int32)}),
        int8_graph(codes=Coding(4.0, -128)),
        int8_graph(codes=Coding(2.0, 0)),
        int8_graph(made=Coding(2.0)),
    ]
    assert len({graph.weights_digest() for graph in variants}) == len(variants)
    assert int8_graph().weights_digest() == int8_graph(conv={"name": "other"}).weights_digest()


def test_fits_half_is_exact() -> None:
    assert fits_half(np.array([0.0, 1.5, -65504.0, 2.0**-24], np.float32))
    for value in (1.0 + 2.0**-11, 70000.0, 2.0**-25, 0.1):
        assert not fits_half(np.array([value], np.float32))


def test_to_half_refuses_what_would_become_infinite() -> None:
    with pytest.raises(ConversionError, match=r"stage: w is beyond the range of fp16"):
        to_half(np.array([70000.0], np.float32), "w", "stage")
