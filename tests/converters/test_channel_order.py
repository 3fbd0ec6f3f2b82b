"""Shuffles change their order without changing a number, and without new nodes where possible."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgecodec.converters.channel_order import dcr_order, with_dcr_shuffles
from edgecodec.converters.graph import Conv2d, DepthToSpace, SpaceToDepth
from edgecodec.converters.torch_to_graph import graph_from_module


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
