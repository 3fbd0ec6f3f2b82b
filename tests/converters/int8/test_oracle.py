"""The oracle against torch in float64, and its refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Node, Quantize, Snap
from edgecodec.converters.int8.oracle import run_oracle
from edgecodec.errors import ConversionError
from tests.converters.conftest import Traced
from tests.support.exact_graphs import latents, synthesis_like


def test_float_graphs_come_out_as_torch_has_them(traced: Traced) -> None:
    """With weights and inputs that are small integers every sum is exact in both."""
    state = traced.module.state_dict()
    rng = np.random.default_rng(1)
    whole = {k: torch.from_numpy(rng.integers(-3, 4, v.shape)).float() for k, v in state.items()}
    traced_nodes: list[Node] = []
    names = iter(whole)
    for node in traced.graph.nodes:
        if isinstance(node, Conv2d):
            weight = whole[next(names)].numpy()
            bias = whole[next(names)].numpy() if np.any(node.bias) else node.bias
            node = replace(node, weight=weight, bias=bias)
        traced_nodes.append(node)
    graph = replace(traced.graph, nodes=tuple(traced_nodes))
    traced.module.load_state_dict(whole)
    try:
        for height, width in traced.case.sizes:
            x = rng.integers(-9, 10, (1, height, width, traced.case.channels)).astype(np.float32)
            with torch.inference_mode():
                want = traced.module(torch.from_numpy(x).permute(0, 3, 1, 2))
            found = run_oracle(graph, {"x_in": x})["x_out"]
            assert np.array_equal(found, want.permute(0, 2, 3, 1).numpy())
    finally:
        traced.module.load_state_dict(state)


def test_an_exact_graph_runs_and_uses_its_range() -> None:
    y = latents(1, 6, 9)
    x_hat = run_oracle(synthesis_like(), {"y_hat": y})["x_hat"]
    assert x_hat.shape == (1, 48, 72, 3)
    assert len(np.unique(x_hat)) > 1000
    moved = run_oracle(synthesis_like(), {"y_hat": y + (y < 100)})["x_hat"]
    assert not np.array_equal(x_hat, moved)


def with_node(graph: Graph, kind: type, **changes: Any) -> Graph:
    done = False
    nodes: list[Any] = []
    for node in graph.nodes:
        if isinstance(node, kind) and not done:
            nodes.append(replace(cast(Any, node), **changes))
            done = True
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def test_a_value_halfway_between_two_codes_is_refused() -> None:
    graph = synthesis_like()
    (first,) = [n for n in graph.nodes if isinstance(n, QuantizedConv2d)][:1]
    bad = with_node(
        graph, QuantizedConv2d, bias=first.bias + 1, scale=first.scale / first.scale / 64
    )
    with pytest.raises(ConversionError, match="halfway"):
        run_oracle(bad, {"y_hat": latents(1, 6, 9)})


def test_a_number_beyond_24_bits_is_refused() -> None:
    bad = with_node(synthesis_like(), Snap, limit=2.0**24)
    with pytest.raises(ConversionError, match="24 bits"):
        run_oracle(bad, {"y_hat": np.full((1, 2, 2, 16), 8388607.0, np.float32)})
    assert any(isinstance(node, Quantize) for node in bad.nodes)
