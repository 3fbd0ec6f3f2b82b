"""Small networks as int8: exact ones give one answer everywhere, close to the float one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.convolutions import QuantizedConv2d
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Dequantize
from edgecodec.converters.int8.oracle import run_oracle
from edgecodec.converters.int8.quantize import quantize
from edgecodec.converters.int8.ranges import collect
from edgecodec.errors import ConversionError
from tests.converters.conftest import Residual, RunArtefact, chain
from tests.support.int8_networks import (
    INPUTS,
    NETWORKS,
    build,
    inputs,
    measure,
    network,
    quantized,
)

TRIED = (24, 20)
LEAST_DB = 24.0
"""Signal to error ratio on inputs like those of calibration."""


def ratio_db(found: Float32Array, expected: Float32Array) -> float:
    error = np.mean(np.square(found - expected, dtype=np.float64))
    return float(10 * np.log10(np.var(expected, dtype=np.float64) / error))


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_graphs_are_close_to_the_network(name: str) -> None:
    x = inputs(99, TRIED)
    found = run_oracle(quantized(name, True), {"y_hat": x})["x_hat"]
    assert ratio_db(found, network(name).expected(x)) > LEAST_DB


@pytest.mark.parametrize("name", NETWORKS)
def test_free_graphs_are_close_to_the_network(name: str, run_artefact: RunArtefact) -> None:
    x = inputs(99, TRIED)
    found = run_artefact(quantized(name, False), "onnx", "int8", x)["x_hat"]
    assert ratio_db(found, network(name).expected(x)) > LEAST_DB


@pytest.mark.parametrize("name", NETWORKS)
def test_no_input_makes_exact_graphs_ambiguous(name: str) -> None:
    """The oracle refuses a value halfway between codes and a number beyond 24 bits."""
    graph, rng, shape = quantized(name, True), np.random.default_rng(4), (1, 6, 8, INPUTS)
    signs = rng.choice([-32767.0, 32767.0], shape)
    for x in (
        np.full(shape, 32767.0),
        np.full(shape, -32768.0),
        np.zeros(shape),
        signs,
        rng.integers(-32768, 32768, shape),
        rng.integers(-3, 4, shape),
        8.0 * inputs(5, shape[1:3]),
    ):
        run_oracle(graph, {"y_hat": x.astype(np.float32)})


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_runtime_gives_the_bits_of_the_oracle(
    name: str, target: str, run_artefact: RunArtefact
) -> None:
    if (name, target) == ("unshuffled_trunk", "openvino"):
        pytest.skip("OpenVINO does not compile it: 'overflow while multiplying dim and stride'")
    graph = quantized(name, True)
    x = inputs(7, (6, 10))
    x[0, :3] = np.random.default_rng(0).integers(-32768, 32768, x[0, :3].shape)
    expected = run_oracle(graph, {"y_hat": x})["x_hat"]
    assert np.array_equal(run_artefact(graph, target, "int8", x)["x_hat"], expected)


@pytest.mark.parametrize("exact", [True, False])
def test_names_are_those_of_the_float_graph(exact: bool) -> None:
    for name in NETWORKS:
        graph, plain = quantized(name, exact), network(name).graph
        assert (graph.inputs, graph.outputs) == (plain.inputs, plain.outputs)
        assert len({node.name for node in graph.nodes}) == len(graph.nodes)
        assert any(isinstance(node, QuantizedConv2d) for node in graph.nodes)


def test_exact_weights_have_seven_bits_and_odd_divisors() -> None:
    for node in quantized("synthesis", True).nodes:
        if isinstance(node, QuantizedConv2d):
            assert np.abs(node.weight).max() <= 63
    for graph in (quantized("synthesis", True), quantized("unshuffled_trunk", True)):
        for node in graph.nodes:
            if isinstance(node, QuantizedConv2d):
                coding = graph.values[node.inputs[0]].coding
                assert coding is not None
                divisor = np.rint(1 / (node.scale * coding.scale))
                assert (divisor % 2 == 1).all()
                assert np.array_equal(
                    node.scale * np.float32(coding.scale), (1 / divisor).astype(np.float32)
                )


def test_padding_of_the_trunk_is_refused_by_name() -> None:
    padded = chain(nn.Conv2d(INPUTS, 8, 3, padding=1), Residual(8), nn.Conv2d(8, 3, 1))()
    found = measure(padded)
    name = found.graph.nodes[0].name
    with pytest.raises(ConversionError, match=f"synthesis: {name} pads the trunk"):
        quantize(found.graph, found.seen, exact=True).finish()
    quantize(found.graph, found.seen, exact=False).finish()


def test_a_network_without_branches_is_refused() -> None:
    found = measure(nn.Sequential(nn.Conv2d(INPUTS, 12, 1), nn.PixelShuffle(2)))
    with pytest.raises(ConversionError, match="no convolution beside its trunk"):
        quantize(found.graph, found.seen, exact=True).finish()


def changed(**parts: Any) -> nn.Module:
    """The residual network with some parameters replaced, by name."""
    module = build("residual")
    with torch.no_grad():
        for name, change in parts.items():
            change(module.get_parameter(name.replace("_", ".")))
    return module


DAMAGES = {
    "dead_in_a_block": changed(**{"1_enter_bias": lambda p: p[:3].fill_(-1e6)}),
    "a_whole_block_dead": changed(**{"1_enter_bias": lambda p: p.fill_(-1e6)}),
    "no_weights_at_all": changed(
        **{"1_leave_weight": lambda p: p.zero_(), "1_leave_bias": lambda p: p.zero_()}
    ),
    "constant_channel": changed(
        **{"0_weight": lambda p: p[2].zero_(), "0_bias": lambda p: p[2].fill_(37.0)}
    ),
    "dead_trunk_channel": changed(
        **{
            "0_weight": lambda p: p[2].zero_(),
            "0_bias": lambda p: p[2].zero_(),
            "1_leave_weight": lambda p: p[2].zero_(),
            "1_leave_bias": lambda p: p[2].zero_(),
            "2_leave_weight": lambda p: p[2].zero_(),
            "2_leave_bias": lambda p: p[2].zero_(),
        }
    ),
    "constant_in_a_block": changed(
        **{"1_enter_weight": lambda p: p[1].zero_(), "1_enter_bias": lambda p: p[1].fill_(0.3)}
    ),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_dead_and_constant_channels_do_no_harm(
    damage: str, exact: bool, run_artefact: RunArtefact
) -> None:
    found = measure(DAMAGES[damage])
    graph, x = quantize(found.graph, found.seen, exact=exact).finish(), inputs(99, TRIED)
    if exact:
        result = run_oracle(graph, {"y_hat": x})["x_hat"]
        run_oracle(graph, {"y_hat": np.sign(x) * np.float32(32767)})
    else:
        result = run_artefact(graph, "onnx", "int8", x)["x_hat"]
    assert ratio_db(result, found.expected(x)) > LEAST_DB


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_calibration_on_one_flat_input_runs(value: float) -> None:
    plain = network("synthesis").graph
    flat = np.full((1, 4, 4, INPUTS), value, np.float32)
    graph = quantize(plain, collect(plain, [{"y_hat": flat}]), exact=True).finish()
    found = run_oracle(graph, {"y_hat": flat})["x_hat"]
    expected = network("synthesis").expected(flat)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    run_oracle(graph, {"y_hat": inputs(1)})


def test_a_second_reader_in_other_units_gets_its_own_copy() -> None:
    graph = quantized("input_read_twice", True)
    reads = {node.inputs[0] for node in graph.nodes if isinstance(node, Dequantize)}
    assert len(reads) == 2


def test_outputs_are_real_numbers_whatever_the_units() -> None:
    """A sum as an output: the trunk has units of its own up to there."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Conv2d(INPUTS, 4, 1), Residual(4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.first(x)
            y = self.body(x)
            return y, torch.relu(y)

    module = Two().eval()
    graph: Graph = graph_from_module(
        module, stage="synthesis", inputs={"y_hat": INPUTS}, outputs=("a", "b")
    )
    seen = collect(graph, [{"y_hat": inputs(i, (40, 40))} for i in range(2)])
    exact = quantize(graph, seen, exact=True).finish()
    x = inputs(99, TRIED)
    found = run_oracle(exact, {"y_hat": x})
    with torch.inference_mode():
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    for name, value in zip(("a", "b"), expected, strict=True):
        assert ratio_db(found[name], value.permute(0, 2, 3, 1).numpy()) > LEAST_DB


def test_files_are_written_for_every_target(tmp_path: Path) -> None:
    from edgecodec.converters.writers.targets import TARGETS

    for target in ("onnx", "openvino", "tflite"):
        operators = TARGETS[target].load_writer()(
            quantized("synthesis", False), tmp_path / f"a.{TARGETS[target].suffix}", "int8"
        )
        assert sum(operators.values()) > 10
