"""Which convolutions become int8."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.int8.plan import (
    make_plan,
    reaches_output,
    shuffles_after,
    square_of,
    stream_of,
    sums_after,
)
from tests.converters.conftest import Residual, chain
from tests.support.int8_networks import NETWORKS, network


def traced(module: nn.Module, outputs: tuple[str, ...] = ("x_hat",)) -> Graph:
    return graph_from_module(
        module.eval(), stage="synthesis", inputs={"y_hat": 6}, outputs=outputs, size=(16, 16)
    )


def int8(graph: Graph) -> list[int]:
    """Which of the convolutions, in the order they run."""
    plan = make_plan(graph)
    names = [node.name for node in graph.nodes if isinstance(node, Conv2d)]
    assert plan.int8 <= set(names)
    return [i for i, name in enumerate(names) if name in plan.int8]


EXPECTED = {
    "residual": [1, 2, 3, 4, 5, 6],
    "synthesis": [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13],
    "chain": [0, 1],
    "replicated": [1, 2, 3, 4, 5, 6],
    "residual_alone": [0, 1, 2],
    "shuffle_of_a_sum": [1, 2, 3, 4, 5, 6],
    "shuffled_output": [1, 2, 3],
    "unshuffle": [0],
    "unshuffled_trunk": [1, 2, 3, 4, 5, 6],
    "shuffle_then_relu": [0, 1],
    "padded_last": [0],
    "padded_last_of_a_trunk": [1, 2, 3],
    "several_readers": [1, 2],
    "two_convolutions": [0],
    "relu_of_sums": [1, 2, 3, 4, 5],
    "two_trunks": [1, 2, 3, 5, 6, 7, 8, 9, 10],
    "input_read_twice": [0, 1, 2, 3],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_branches_become_int8_and_trunks_do_not(name: str) -> None:
    assert int8(network(name).graph) == EXPECTED[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_whole(name: str) -> None:
    graph = network(name).graph
    plan = make_plan(graph)
    assert {*graph.inputs, *graph.outputs} <= plan.trunk
    for node in graph.nodes:
        if isinstance(node, Conv2d):
            end, _ = shuffles_after(graph, node.output)
            assert (node.name in plan.int8) == (node.output not in plan.trunk)
            assert end not in graph.outputs or node.name not in plan.int8


def test_relus_become_part_of_convolutions_that_nothing_else_reads() -> None:
    graph = network("residual").graph
    plan = make_plan(graph)
    assert len(plan.fused) == 2
    for value, relu in plan.fused.items():
        convolution = graph.producer(value)
        assert convolution is not None
        assert convolution.name in plan.int8
        assert graph.consumers(value) == [relu]
    assert make_plan(network("shuffle_then_relu").graph).fused.keys() == {"conv2d", "conv2d_1"}


def test_an_output_that_others_read_stays_whole() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 8, 1)
            self.third = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(x)
            return y, self.third(torch.relu(self.second(y)))

    assert int8(traced(Two(), ("y", "z"))) == [1]


def test_a_sum_of_a_value_with_itself_has_no_branch() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            kept: Tensor = self.second(x + x)
            return kept

    assert int8(traced(Twice())) == []


def test_shuffles_are_followed_while_nothing_else_reads() -> None:
    graph = traced(
        chain(nn.Conv2d(6, 64, 1), nn.PixelShuffle(2), nn.PixelShuffle(2), nn.Conv2d(4, 3, 1))()
    )
    first = graph.nodes[0].output
    end, passed = shuffles_after(graph, first)
    assert (end, len(passed)) == (graph.nodes[2].output, 2)
    assert square_of(graph, first) == 16
    assert square_of(graph, end) == 1
    assert not reaches_output(graph, first)


def test_what_a_trunk_value_leads_to() -> None:
    graph = traced(chain(nn.Conv2d(6, 8, 1), Residual(8), Residual(8), nn.PixelShuffle(2))())
    first = graph.nodes[0].output
    assert len(stream_of(graph, first)) == 3
    assert sums_after(graph, first) == 2
    assert reaches_output(graph, first)
    assert square_of(graph, first) == 4
