"""Small networks of the supported layers, and a way to run any artefact of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from edgecodec.arrays import Float32Array
from edgecodec.bundle.manifest import Precision
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Size
from edgecodec.converters.writers.targets import TARGETS
from edgecodec.runtimes.base import Artefact, Session, SessionOptions
from edgecodec.runtimes.registry import get_backend

RunArtefact = Callable[[Graph, str, Precision, Float32Array], dict[str, Float32Array]]


@dataclass(frozen=True)
class Case:
    """A network, its input channels, and sizes it takes, odd ones included."""

    build: Callable[[], nn.Module]
    channels: int
    sizes: tuple[Size, ...]


class Residual(nn.Module):
    def __init__(
        self, channels: int, kernel: int = 3, mode: Literal["zeros", "replicate"] = "zeros"
    ) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, padding_mode=mode
        )
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.leave(self.depthwise(torch.relu(self.enter(x)))))


class SumThenRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        return torch.add(torch.relu(left + self.right(x)), left)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        kept: Tensor = self.relu(x)  # changes x, too
        kept += x
        return kept


class TwoShuffles(nn.Module):
    """Two readers of one convolution: none of them may permute it for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return nn.functional.pixel_shuffle(x, 2) + nn.functional.pixel_shuffle(torch.relu(x), 2)


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


ANY: tuple[Size, ...] = ((1, 1), (5, 9), (8, 3))
EVEN: tuple[Size, ...] = ((2, 4), (8, 6))
CASES = {
    "residual": Case(lambda: Residual(6), 6, ANY),
    "sum_then_relu": Case(SumThenRelu, 3, ANY),
    "in_place": Case(InPlace, 3, ANY),
    "relu_first": Case(chain(nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU()), 3, ANY),
    "patches_of_8": Case(chain(nn.Conv2d(3, 5, 8, stride=8)), 3, ((8, 16), (24, 11))),
    "patches_of_2": Case(chain(nn.Conv2d(3, 5, 2, stride=2)), 3, ((2, 2), (5, 7))),
    "strided_and_padded": Case(
        chain(nn.Conv2d(3, 4, 3, stride=2, padding=1)), 3, ((1, 1), (8, 8), (7, 10))
    ),
    "padded_on_two_sides": Case(
        chain(nn.Conv2d(3, 4, (3, 5), padding=(0, 2))), 3, ((3, 1), (6, 7))
    ),
    "padded_beyond_same": Case(chain(nn.Conv2d(3, 4, 3, padding=2)), 3, ANY),
    "same_with_even_kernel": Case(chain(nn.Conv2d(3, 4, 2, padding="same")), 3, ANY),
    "dilated": Case(chain(nn.Conv2d(3, 4, 3, padding=2, dilation=2)), 3, ANY),
    "grouped": Case(chain(nn.Conv2d(4, 6, 3, padding=1, groups=2)), 4, ANY),
    "multiplied_depthwise": Case(chain(nn.Conv2d(3, 9, 3, padding=1, groups=3)), 3, ANY),
    "strided_depthwise": Case(
        chain(nn.Conv2d(3, 3, 3, stride=2, padding=1, groups=3)), 3, ((1, 1), (6, 5))
    ),
    "replicated": Case(
        chain(
            nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 5, padding=2, groups=4, padding_mode="replicate")
        ),
        3,
        ANY,
    ),
    "replicated_on_three_sides": Case(
        chain(nn.Conv2d(3, 8, 1), nn.ReplicationPad2d((3, 1, 0, 4)), nn.ReLU(), nn.PixelShuffle(2)),
        3,
        ANY,
    ),
    "replicated_alone": Case(chain(nn.ReplicationPad2d(1)), 3, ANY),
    "shuffle": Case(chain(nn.Conv2d(3, 24, 1), nn.ReLU(), nn.PixelShuffle(2)), 3, ANY),
    "shuffle_by_8": Case(chain(nn.Conv2d(4, 192, 1), nn.PixelShuffle(8)), 4, ((1, 1), (2, 3))),
    "shuffle_of_a_sum": Case(chain(Residual(12), nn.PixelShuffle(2)), 12, ANY),
    "shuffle_of_groups": Case(
        chain(nn.Conv2d(4, 8, 1, groups=2), nn.PixelShuffle(2), nn.ReLU()), 4, ANY
    ),
    "two_shuffles": Case(TwoShuffles, 3, ANY),
    "unshuffle": Case(chain(nn.PixelUnshuffle(2), nn.Conv2d(12, 5, 3, padding=1)), 3, EVEN),
    "unshuffle_to_depthwise": Case(
        chain(nn.PixelUnshuffle(2), nn.Conv2d(12, 12, 3, padding=1, groups=12)), 3, EVEN
    ),
    "unshuffle_and_shuffle": Case(
        chain(nn.PixelUnshuffle(2), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(3, 1, 1)), 3, EVEN
    ),
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same weights every time; one thread, as these networks are tiny."""
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Traced:
    """A case as torch has it and as the converters do: input `x_in`, output `x_out`."""

    case: Case
    module: nn.Module
    graph: Graph


@functools.cache
def trace(name: str) -> Traced:
    case = CASES[name]
    module = case.build().eval()
    graph = graph_from_module(
        module, stage="s", inputs={"x_in": case.channels}, outputs=["x_out"], size=(16, 16)
    )
    return Traced(case, module, graph)


@pytest.fixture(params=sorted(CASES))
def traced(request: pytest.FixtureRequest) -> Traced:
    return trace(request.param)


@pytest.fixture
def run_artefact(tmp_path: Path) -> Iterator[RunArtefact]:
    """Write a graph for a target, load it with the backend a device would use, run it."""
    sessions: dict[Path, Session] = {}

    def run(
        graph: Graph, target: str, precision: Precision, x: Float32Array
    ) -> dict[str, Float32Array]:
        chosen = TARGETS[target]
        path = tmp_path / f"{graph.stage}.{precision}.{chosen.suffix}"
        if path not in sessions:
            chosen.load_writer()(graph, path, precision)
            artefact = Artefact("synthesis", target, precision, path)
            sessions[path] = get_backend(chosen.backend).load(artefact, SessionOptions(threads=1))
        return sessions[path].run({graph.inputs[0]: x})

    yield run
    for session in sessions.values():
        session.close()


@pytest.fixture
def small_graph() -> Graph:
    """A strided, a depthwise and a shuffled layer, with weights of both kinds.

    The first weight is not exactly half, all others are.
    """
    module = nn.Sequential(
        nn.Conv2d(3, 16, 2, stride=2), Residual(16), nn.Conv2d(16, 12, 1), nn.PixelShuffle(2)
    )
    with torch.no_grad():
        for parameter in list(module.parameters())[2:]:
            parameter.copy_(parameter.half().float())
    return graph_from_module(module, stage="synthesis", inputs={"y_hat": 3}, outputs=["x_hat"])
