"""Small networks to quantize, and inputs to measure and to try them with."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.int8.quantize import quantize
from edgecodec.converters.int8.ranges import Statistics, collect
from tests.converters.conftest import Residual, chain

INPUTS = 6
SIZE = (10, 12)


class SeveralReaders(nn.Module):
    """A convolution read by a ReLU, a sum and another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(INPUTS, 8, 1)
        self.second, self.third = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.second(torch.relu(x)) + self.third(x)
        last: Tensor = self.last(x)
        return last


class TwoConvolutionsSummed(nn.Module):
    """The operand computed first comes second in the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(INPUTS, 8, 1), nn.Conv2d(INPUTS, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        right = self.right(x)
        last: Tensor = self.last(self.left(x) + right)
        return last


class ReluOfSums(nn.Module):
    """The trunk goes through ReLUs, and is then summed, quantized and convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(INPUTS, 8, 1), Residual(8)
        self.second, self.third = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(self.first(x)))
        x = torch.relu(x + self.third(torch.relu(self.second(x))))
        last: Tensor = self.last(x)
        return last


class TwoTrunks(nn.Module):
    """The sum of two residual streams."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(INPUTS, 8, 1), Residual(8))
        self.right = nn.Sequential(nn.Conv2d(INPUTS, 8, 1), Residual(8))
        self.last = nn.Sequential(Residual(8), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.last(self.left(x) + self.right(x))
        return last


class TwoShufflesOfOne(nn.Module):
    """Codes that two pixel shuffles read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide = nn.Conv2d(INPUTS, 8, 1), nn.Conv2d(8, 16, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(16, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(torch.relu(self.first(x)))
        fine = self.left(nn.functional.pixel_shuffle(x, 2))
        coarse = torch.relu(self.right(x))
        fine = fine + nn.functional.pixel_shuffle(torch.cat([coarse[:, :0], coarse], 1), 1)
        last: Tensor = self.last(fine)
        return last


class InputReadTwice(nn.Module):
    """The input is read as codes and as part of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(INPUTS, 8, 3, padding=1), nn.Conv2d(8, INPUTS, 1)
        self.last = nn.Conv2d(INPUTS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.second(torch.relu(self.first(x)))
        x = x + self.second(torch.relu(self.first(x)))
        last: Tensor = self.last(x)
        return last


NETWORKS = {
    "residual": chain(nn.Conv2d(INPUTS, 8, 1), Residual(8), Residual(8), nn.Conv2d(8, 3, 1)),
    "synthesis": chain(
        nn.Conv2d(INPUTS, 12, 1),
        Residual(12),
        Residual(12),
        nn.Conv2d(12, 32, 1),
        nn.PixelShuffle(2),
        Residual(8),
        Residual(8),
        nn.Conv2d(8, 48, 1),
        nn.PixelShuffle(4),
    ),
    "chain": chain(
        nn.Conv2d(INPUTS, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)
    ),
    "replicated": chain(
        nn.Conv2d(INPUTS, 8, 3, padding=1, padding_mode="replicate"), Residual(8, 5, "replicate"),
        nn.PixelShuffle(2), Residual(2, 3, "replicate"), nn.ReplicationPad2d(1),
        nn.Conv2d(2, 3, 3),
    ),
    "residual_alone": lambda: Residual(INPUTS),
    "shuffle_of_a_sum": chain(
        nn.Conv2d(INPUTS, 8, 1), Residual(8), nn.PixelShuffle(2), Residual(2), nn.Conv2d(2, 3, 1)
    ),
    "shuffled_output": chain(nn.Conv2d(INPUTS, 12, 1), Residual(12), nn.PixelShuffle(2)),
    "unshuffle": chain(
        nn.PixelUnshuffle(2),
        nn.Conv2d(4 * INPUTS, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 12, 1),
        nn.PixelShuffle(2),
    ),
    "unshuffled_trunk": chain(
        nn.Conv2d(INPUTS, 4, 1), Residual(4), nn.PixelUnshuffle(2), Residual(16),
        nn.Conv2d(16, 3, 1),
    ),
    "shuffle_then_relu": chain(
        nn.Conv2d(INPUTS, 16, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    ),
    "padded_last": chain(
        nn.Conv2d(INPUTS, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1),
        nn.PixelShuffle(2),
    ),
    "padded_last_of_a_trunk": chain(
        nn.Conv2d(INPUTS, 8, 1), Residual(8), nn.Conv2d(8, 3, 3, padding=1)
    ),
    "several_readers": SeveralReaders,
    "two_convolutions": TwoConvolutionsSummed,
    "relu_of_sums": ReluOfSums,
    "two_trunks": TwoTrunks,
    "input_read_twice": InputReadTwice,
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network as torch has it, as a graph, and what was seen of it."""

    module: nn.Module
    graph: Graph
    seen: Mapping[str, Statistics]

    def expected(self, x: Float32Array) -> Float32Array:
        with torch.inference_mode():
            y = self.module(torch.from_numpy(x.transpose(0, 3, 1, 2)))
        return np.ascontiguousarray(y.permute(0, 2, 3, 1).numpy())


def inputs(seed: int, size: tuple[int, int] = SIZE) -> Float32Array:
    """(1, height, width, INPUTS) whole numbers that correlate, channels of several magnitudes."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(1, *size, 1))
    y = mean + 0.6 * rng.laplace(size=(1, *size, INPUTS))
    scale: npt.NDArray[np.float64] = np.geomspace(20, 1500, INPUTS)
    return np.rint(y * scale).astype(np.float32)


def measure(module: nn.Module) -> Network:
    graph = graph_from_module(
        module, stage="synthesis", inputs={"y_hat": INPUTS}, outputs=["x_hat"], size=(16, 16)
    )
    return Network(
        module, graph, collect(graph, [{"y_hat": inputs(i, (40, 40))} for i in range(4)])
    )


def build(name: str) -> nn.Module:
    """Return a network of its own; `chain` gives the same layers every time."""
    module = copy.deepcopy(NETWORKS[name]()).eval()
    torch.manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return module


@functools.cache
def network(name: str) -> Network:
    return measure(build(name))


@functools.cache
def quantized(name: str, exact: bool) -> Graph:
    found = network(name)
    return quantize(found.graph, found.seen, exact=exact).finish()
