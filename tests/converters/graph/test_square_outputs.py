"""A synthesis that ends in a shuffle gives squares instead, and nothing else is changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgecodec.coding.pixels import as_picture, square_side
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import DepthToSpace
from edgecodec.converters.graph.square_outputs import with_square_output

LATENTS = np.random.default_rng(3).integers(-40, 40, (1, 3, 5, 4)).astype(np.float32)


def graph_of(module: nn.Module) -> Graph:
    return graph_from_module(
        module, stage="synthesis", inputs={"y_hat": 4}, outputs=("x_hat",), size=(4, 4)
    )


def ending_in(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    names = [f"layer_{i}" for i in range(len(layers))]
    return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))


def expected(module: nn.Module) -> np.ndarray[Any, np.dtype[np.float32]]:
    with torch.inference_mode():
        given = torch.from_numpy(LATENTS).permute(0, 3, 1, 2)
        return np.asarray(module(given).permute(0, 2, 3, 1).numpy())


SQUARES: dict[str, tuple[int, Callable[[], list[nn.Module]]]] = {
    "a convolution": (8, lambda: [nn.Conv2d(4, 192, 1), nn.PixelShuffle(8)]),
    "two shuffles": (
        4,
        lambda: [
            nn.Conv2d(4, 8, 1),
            nn.PixelShuffle(2),
            nn.Conv2d(2, 48, 3, padding=1),
            nn.PixelShuffle(4),
        ],
    ),
    "a ReLU between": (2, lambda: [nn.Conv2d(4, 12, 1), nn.ReLU(), nn.PixelShuffle(2)]),
    "a ReLU after it": (2, lambda: [nn.Conv2d(4, 12, 1), nn.PixelShuffle(2), nn.ReLU()]),
    "a transposed convolution": (2, lambda: [nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1)]),
}


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite", "torch"])
@pytest.mark.parametrize("kind", SQUARES)
def test_squares_are_the_picture(kind: str, target: str, run_artefact: Any) -> None:
    side, layers = SQUARES[kind]
    module = ending_in(*layers())
    graph = with_square_output(graph_of(module))
    found = run_artefact(graph, target, "fp32", LATENTS)["x_hat"]
    picture = expected(module)
    assert square_side(found.shape[3]) == side
    assert found.shape[1:3] == (picture.shape[1] // side, picture.shape[2] // side)
    np.testing.assert_allclose(as_picture(found), picture, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", SQUARES)
def test_only_the_shuffle_goes(kind: str) -> None:
    graph = graph_of(ending_in(*SQUARES[kind][1]()))
    changed = with_square_output(graph)
    shuffles = [[n for n in g.nodes if isinstance(n, DepthToSpace)] for g in (graph, changed)]
    assert len(shuffles[1]) == len(shuffles[0]) - 1
    assert len(changed.nodes) == len(graph.nodes) - 1
    assert changed.outputs == ("x_hat",)


class _Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 12, 1), nn.Conv2d(4, 12, 1)
        self.end = nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        end: torch.Tensor = self.end(self.a(x) + self.b(x))
        return end


OTHERS: dict[str, Callable[[], list[nn.Module]]] = {
    "no shuffle": lambda: [nn.Conv2d(4, 3, 1)],
    "a side that latents do not have": lambda: [nn.Conv2d(4, 27, 1), nn.PixelShuffle(3)],
    "channels apart": lambda: [nn.Conv2d(4, 12, 1, groups=2), nn.PixelShuffle(2)],
    "a sum": lambda: [_Sum()],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_all_else_stays_as_it_is(kind: str) -> None:
    graph = graph_of(ending_in(*OTHERS[kind]()))
    assert with_square_output(graph) is graph


def test_input_that_is_only_shuffled_stays_as_it_is() -> None:
    module = ending_in(nn.PixelShuffle(2))
    graph = graph_from_module(
        module, stage="synthesis", inputs={"y_hat": 12}, outputs=("x_hat",), size=(4, 4)
    )
    assert with_square_output(graph) is graph
