"""Every writer's layout of every layer is found again, and what is not stays as it is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from edgecodec.bundle.manifest import Precision
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph, Value
from edgecodec.converters.writers.share_weights import _Pool, find_parts
from edgecodec.converters.writers.targets import TARGETS
from tests.converters.conftest import Residual, Traced


def wide(*, half: bool) -> Graph:
    """All layers of the codec: patches, blocks, an unshuffle and a shuffle."""
    module = nn.Sequential(
        nn.Conv2d(3, 32, 8, stride=8),
        Residual(32),
        nn.Conv2d(32, 48, 2, stride=2),
        nn.PixelUnshuffle(2),
        nn.Conv2d(192, 64, 3, padding=1),
        nn.Conv2d(64, 128, 1),
        nn.PixelShuffle(2),
    )
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        if half:
            parameter.copy_(parameter.half().float())
    return graph_from_module(module, stage="s", inputs={"x": 3}, outputs=["y"], size=(64, 64))


def write(graph: Graph, target: str, precision: Precision, folder: Path) -> dict[str, bytes]:
    chosen = TARGETS[target]
    path = folder / target / f"s.{precision}.{chosen.suffix}"
    path.parent.mkdir()
    chosen.load_writer()(graph, path, precision)
    return {p.name: p.read_bytes() for p in path.parent.iterdir()}


def size_of_weights(graph: Graph) -> int:
    return sum(n.weight.size for n in graph.nodes if isinstance(n, Conv2d))


@pytest.mark.parametrize("half", [True, False])
def test_four_targets_share_one_copy(tmp_path: Path, half: bool) -> None:
    graph, pool = wide(half=half), _Pool()
    literal = 0
    for target in TARGETS:
        for name, data in write(graph, target, "fp32", tmp_path).items():
            parts = find_parts(data, graph, pool)
            assert b"".join(parts.chunks(io.BytesIO(pool.data))) == data
            if not name.endswith(".xml"):
                literal = max(literal, len(parts.literals))
    weights = size_of_weights(graph) * (2 if half else 4)
    assert weights <= len(pool.data) < 1.02 * weights + 4096
    assert literal < 16_000 < weights / 10


def test_precisions_share_what_is_the_same(tmp_path: Path) -> None:
    graph, pool = wide(half=True), _Pool()
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        (tmp_path / precision).mkdir()
        (data,) = write(graph, "tflite", precision, tmp_path / precision).values()
        find_parts(data, graph, pool)
        size = len(pool.data)
        assert size < 1.02 * 2 * size_of_weights(graph) + 4096


def test_bf16_adds_no_weight(tmp_path: Path) -> None:
    graph, pool = wide(half=False), _Pool()
    sizes = []
    for precision in ("fp32", "bf16"):
        (tmp_path / precision).mkdir()
        for data in write(graph, "openvino", precision, tmp_path / precision).values():
            find_parts(data, graph, pool)
        sizes.append(len(pool.data))
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_any_layer_comes_back(traced: Traced, target: str, tmp_path: Path) -> None:
    pool = _Pool()
    for data in write(traced.graph, target, "fp32", tmp_path).values():
        parts = find_parts(data, traced.graph, pool)
        assert b"".join(parts.chunks(io.BytesIO(pool.data))) == data


def test_strings_that_repeat_or_overlap_are_taken_once() -> None:
    zeros, ones = np.zeros((64, 4, 1, 1), np.float32), np.ones((64, 4, 1, 1), np.float32)
    bias = np.zeros(64, np.float32)
    nodes = [
        Conv2d(v, ("x",), v, w, bias) for v, w in zip("abc", (zeros, ones, zeros), strict=True)
    ]
    values = {"x": Value("x", 4)} | {v: Value(v, 64) for v in "abc"}
    graph, pool = Graph("s", values, ("x",), ("a", "b", "c"), tuple(nodes)), _Pool()
    data = b"<" + bytes(700) + ones.astype("<f2").tobytes() + bytes(3000) + b">"
    parts = find_parts(data, graph, pool)
    assert b"".join(parts.chunks(io.BytesIO(pool.data))) == data
    assert len(parts.slices) == 6
    assert find_parts(b"nothing of it", graph, pool).slices == ()
