"""Groups of layers, and graphs in which one alone is int8."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from edgecodec.bundle.manifest import Precision
from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.int8.draft import Draft
from edgecodec.converters.int8.groups import TRUNK, Group, layer_groups, with_group
from edgecodec.converters.int8.quantize import quantize
from tests.converters.conftest import RunArtefact
from tests.support.int8_networks import NETWORKS, inputs, network


@functools.cache
def drafted(name: str, exact: bool) -> Draft:
    found = network(name)
    return quantize(found.graph, found.seen, exact=exact)


def integers(graph: Graph) -> set[str]:
    return {n.name.removeprefix("int8.") for n in graph.nodes if isinstance(n, QuantizedConv2d)}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_all_layers_once(name: str, exact: bool) -> None:
    draft = drafted(name, exact)
    groups = layer_groups(draft)
    layers = [layer for group in groups for layer in group.layers]
    assert len(set(layers)) == len(layers)
    every = {node.name for node in draft.graph.nodes if isinstance(node, Conv2d)}
    assert set(layers) == (every if exact else draft.plan.int8)
    assert len({group.name for group in groups}) == len(groups)
    assert [group.name for group in groups if not draft.plan.int8 & set(group.layers)] == (
        [TRUNK] if exact else []
    )


def test_a_branch_is_a_group_named_after_its_ends() -> None:
    groups = layer_groups(drafted("residual", True))
    assert [group.name for group in groups] == ["1.enter .. 1.leave", "2.enter .. 2.leave", TRUNK]
    assert groups[0].layers == ("1.enter", "1.depthwise", "1.leave")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_group_is_int8_and_costs_less_than_all(
    name: str, exact: bool, run_artefact: RunArtefact
) -> None:
    draft, x = drafted(name, exact), inputs(99, (24, 20))
    expected = network(name).expected(x)

    def error(graph: Graph, stage: str) -> float:
        named = Graph(stage, graph.values, graph.inputs, graph.outputs, graph.nodes)
        precision: Precision = "int8" if graph.has_codes else "fp32"
        found = run_artefact(named, "onnx", precision, x)["x_hat"]
        return float(np.sqrt(np.mean(np.square(found - expected))))

    whole = error(draft.finish(), "whole")
    for i, group in enumerate(layer_groups(draft)):
        graph = with_group(draft, group)
        assert (graph.inputs, graph.outputs) == (draft.graph.inputs, draft.graph.outputs)
        assert integers(graph) == (set() if group.name == TRUNK else set(group.layers))
        assert 0 < error(graph, f"group{i}") < 1.2 * whole


@pytest.mark.parametrize("name", NETWORKS)
def test_no_group_is_the_float_graph(name: str, run_artefact: RunArtefact) -> None:
    draft, x = drafted(name, True), inputs(99, (8, 6))
    graph = with_group(draft, Group("nothing", (), frozenset()))
    assert not graph.has_codes
    found = run_artefact(graph, "onnx", "fp32", x)["x_hat"]
    expected = network(name).expected(x)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_all_groups_are_the_int8_graph(run_artefact: RunArtefact) -> None:
    draft, x = drafted("synthesis", True), inputs(99, (8, 6))
    makes = frozenset(node.output for node in draft.graph.nodes)
    graph = with_group(draft, Group("everything", (), makes))
    found = run_artefact(graph, "onnx", "int8", x)["x_hat"]
    whole = draft.finish()
    whole = Graph("whole", whole.values, whole.inputs, whole.outputs, whole.nodes)
    assert np.array_equal(found, run_artefact(whole, "onnx", "int8", x)["x_hat"])
