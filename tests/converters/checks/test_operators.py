"""The operators of artefacts, as files hold them and as runtimes run them."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgecodec.bundle.manifest import Precision
from edgecodec.converters.checks.executed import Operation, Role, executed_operations
from edgecodec.converters.checks.operators import (
    MAKES_OUTPUT,
    MAKES_TRUNK,
    OpReport,
    report_operators,
)
from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.int8.quantize import quantize
from edgecodec.converters.int8.ranges import collect
from edgecodec.converters.writers.targets import TARGETS
from edgecodec.converters.writers.to_onnx import build_onnx
from edgecodec.model.config import CodecConfig
from edgecodec.model.network import NeuralCodec
from edgecodec.model.stages import build_stages
from edgecodec.runtimes.backends.openvino_backend import OpenVinoBackend
from edgecodec.runtimes.base import Artefact, StageName
from tests.converters.conftest import Residual, RunArtefact, chain
from tests.support.int8_networks import quantized

STAGES: tuple[StageName, ...] = ("analysis", "synthesis")
NARROW = CodecConfig(
    latent_channels=32,
    hyper_channels=16,
    fine_channels=32,
    coarse_channels=32,
    hyper_analysis_channels=16,
)
"""The default network with fewer channels: the same layers, in blocks of 16 as ever."""


@functools.cache
def graphs() -> dict[StageName, Graph]:
    torch.manual_seed(0)
    analysis, synthesis = build_stages(NeuralCodec(NARROW))
    return {
        "analysis": graph_from_module(
            analysis, stage="analysis", inputs={"x": 3}, outputs=("y", "z")
        ),
        "synthesis": graph_from_module(
            synthesis, stage="synthesis", inputs={"y_hat": 32}, outputs=("x_hat",)
        ),
    }


@functools.cache
def graph_of(stage: StageName, precision: Precision) -> Graph:
    graph = graphs()[stage]
    if precision != "int8":
        return graph
    rng = np.random.default_rng(0)
    (name,) = graph.inputs
    given = {
        "x": rng.integers(0, 256, (1, 64, 64, 3)).astype(np.float32),
        "y_hat": np.rint(rng.laplace(scale=100, size=(1, 6, 6, 32))).astype(np.float32),
    }
    return quantize(
        graph, collect(graph, [{name: given[name]}]), exact=stage == "synthesis"
    ).finish()


def report_of(graph: Graph, target: str, precision: Precision, folder: Path) -> OpReport:
    chosen, stage = TARGETS[target], graph.stage
    path = folder / f"{stage}.{precision}.{chosen.suffix}"
    operators = chosen.load_writer()(graph, path, precision)
    assert stage in STAGES
    executed = executed_operations(Artefact(stage, target, precision, path))
    return report_operators(graph, operators, executed)


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_default_network_has_no_avoidable_change_of_layout(
    stage: StageName, precision: Precision, target: str, tmp_path: Path
) -> None:
    found = report_of(graph_of(stage, precision), target, precision, tmp_path)
    assert found.avoidable == ()
    assert found.warnings() == []
    most = {"onnx": 8, "openvino": 6, "tflite": 0}[target]
    if (target, precision) == ("onnx", "int8"):
        most = 0  # there the shuffles alone move anything
    assert len(found.layout) <= most
    convolutions = sum(isinstance(n, Conv2d) for n in graphs()[stage].nodes)
    assert len(found.left) + found.int8 == (convolutions if precision == "int8" else 0)
    assert found.executed_int8 == found.int8
    assert sum(found.executed.values()) >= convolutions
    json.dumps(found.to_dict())


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_changes_no_layout(stage: StageName, tmp_path: Path) -> None:
    if OpenVinoBackend().lacks("bf16"):
        pytest.skip("this processor has no bfloat16")
    found = report_of(graph_of(stage, "bf16"), "openvino", "bf16", tmp_path)
    assert (found.avoidable, found.warnings()) == ((), [])


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite"])
def test_what_left_int8_is_named_with_the_reason(target: str, tmp_path: Path) -> None:
    found = report_of(graph_of("synthesis", "int8"), target, "int8", tmp_path)
    assert found.left == {"g_s.0": MAKES_TRUNK, "g_s.2": MAKES_TRUNK, "g_s.7": MAKES_OUTPUT}
    found = report_of(graph_of("analysis", "int8"), target, "int8", tmp_path)
    assert found.left == {"g_a.4": MAKES_TRUNK, "h_a.4": MAKES_OUTPUT}  # levels are codes


def executed_onnx(model: onnx.ModelProto, stage: StageName, folder: Path) -> Sequence[Operation]:
    path = folder / "a.onnx"
    onnx.save(model, path)
    found = executed_operations(Artefact(stage, "onnx", "int8", path))
    assert found is not None
    return found


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="blocks as on x86")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_avoidable_changes_of_layout_are_found(precision: Precision, tmp_path: Path) -> None:
    """In ONNX's own order ONNX Runtime changes the layout around every sum, or every block."""
    graph = graph_of("synthesis", precision)
    model = build_onnx(graph, precision)
    found = report_operators(graph, {}, executed_onnx(model, "synthesis", tmp_path))
    assert len(found.avoidable) >= 4
    (warning,) = found.warnings()
    assert warning.startswith(f"{len(found.avoidable)} avoidable layout changes: ")
    assert set(found.avoidable) < set(found.layout)


def test_int8_convolutions_that_are_none_are_found(tmp_path: Path) -> None:
    """Without a QuantizeLinear behind it no runtime makes a convolution one of integers."""
    graph = quantized("residual", True)
    model = build_onnx(graph, "int8")
    (node,) = (n for n in model.graph.node if n.name == "2.leave.sum")
    node.op_type, node.domain = "Conv", ""
    (behind,) = (n for n in model.graph.node if node.output[0] in n.input)
    behind.op_type = "Identity"
    del behind.input[1:]
    (back,) = (n for n in model.graph.node if behind.output[0] in n.input)
    back.op_type = "Identity"
    del back.input[1:]
    found = report_operators(graph, {}, executed_onnx(model, "synthesis", tmp_path))
    assert (found.executed_int8, found.int8) == (5, 6)
    assert "only 5 of 6 int8 convolutions as integers" in "; ".join(found.warnings())


def test_a_target_that_cannot_tell_has_its_own_operators_alone(tmp_path: Path) -> None:
    graph = graphs()["synthesis"]
    found = report_of(graph, "torch", "fp32", tmp_path)
    assert found.operators["conv2d"] == sum(isinstance(n, Conv2d) for n in graph.nodes)
    assert (found.executed, found.layout, found.executed_int8) == ({}, (), None)
    assert found.warnings() == []


def operation(name: str, role: Role, source: str) -> Operation:
    return Operation(role, name, role, (source,) if source else (), (name,))


@pytest.mark.parametrize(
    ("roles", "avoidable"),
    [
        ("end layout compute layout end", []),
        ("end compute layout compute end", [2]),
        ("end compute layout layout compute end", [2, 3]),
        ("end compute layout shuffle layout compute end", []),
        ("end pass layout pass compute layout pass pass shuffle compute layout end", []),
        ("end compute layout pass layout compute end", [2, 4]),
    ],
)
def test_a_change_of_layout_needs_a_shuffle_or_an_end(roles: str, avoidable: list[int]) -> None:
    names = roles.split()
    executed = [
        operation(f"n{i}", role, f"n{i - 1}" if i else "")  # type: ignore[arg-type]
        for i, role in enumerate(names)
    ]
    found = report_operators(graphs()["analysis"], {}, executed)
    assert found.avoidable == tuple(f"n{i}" for i in avoidable)
    assert len(found.layout) == names.count("layout")


def test_a_trunk_that_a_shuffle_makes_keeps_its_numbers(run_artefact: RunArtefact) -> None:
    """A convolution that changes nothing is put there."""
    module = chain(torch.nn.Conv2d(3, 16, 1), torch.nn.PixelShuffle(2), Residual(4))()
    graph = graph_from_module(module.eval(), stage="s", inputs={"x": 3}, outputs=["y"], size=(8, 8))
    x = np.random.default_rng(0).normal(size=(1, 5, 7, 3)).astype(np.float32)
    found = run_artefact(graph, "onnx", "fp32", x)["y"]
    with torch.inference_mode():
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - expected).max() < 1e-5


def test_integers_are_counted_in_graphs_alone() -> None:
    graph = graph_of("synthesis", "int8")
    found = report_operators(graph, {}, None)
    assert found.int8 == sum(isinstance(n, QuantizedConv2d) for n in graph.nodes) == 20
    assert replace(found, executed_int8=19).warnings() != []
