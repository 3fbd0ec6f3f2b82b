"""int8 graphs as TFLite files: XNNPACK answers as the oracle does, to the bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.channel_order import with_dcr_shuffles
from edgecodec.converters.graph.convolutions import QuantizedConv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Coding, Dequantize, Quantize, Size, SpaceToDepth
from edgecodec.converters.int8.oracle import run_oracle
from edgecodec.converters.writers.to_tflite import write_tflite
from edgecodec.errors import ConversionError
from tests.support.exact_graphs import Draft, latents, replicating, synthesis_like

KERNELS = {
    "xnnpack": OpResolverType.AUTO,
    "built-in": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}
SIZES = ((1, 1), (5, 9), (8, 12))
VERSIONS = {
    "ADD": {1},
    "CONCATENATION": {1, 2},
    "CONV_2D": {1, 3, 6},
    "DEPTHWISE_CONV_2D": {3},
    "DEPTH_TO_SPACE": {1},
    "DEQUANTIZE": {2, 3},
    "FLOOR": {1},
    "MAXIMUM": {1},
    "MINIMUM": {1},
    "MUL": {1},
    "PAD": {2},
    "QUANTIZE": {1},
    "SPACE_TO_DEPTH": {2},
    "STRIDED_SLICE": {1, 2},
}
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}


def shuffled_codes() -> Graph:
    """Codes through both shuffles, groups, dilation and a stride: y_hat (16 channels) -> x (8)."""
    d = Draft(5, "y_hat", 16)
    x = d.snap("y_hat", 1024.0)
    x = d.add(Quantize("codes", (x,), "codes"), 16, Coding(16.0))
    x = d.add(SpaceToDepth("coarse", (x,), "coarse", 2), 64, Coding(16.0))
    x = d.quantized(x, 32, relu=True)
    x = d.quantized(x, 16, 3)
    _amend(d, stride=(2, 2))
    x = d.quantized(x, 32, relu=True)
    _amend(d, weight=d.integers((32, 8, 1, 1)), groups=2)
    x = d.quantized(x, 32, 3, depthwise=True, relu=True)
    _amend(d, dilation=(2, 2), padding=(2, 2, 2, 2))
    x = d.shuffle(d.quantized(x, 32, 1), 2)
    return d.finish(d.add(Dequantize("real", (x,), "real"), 8), "x")


def _amend(draft: Draft, **changes: Any) -> None:
    draft.nodes[-1] = replace(draft.nodes[-1], **changes)


def parse(path: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


def tensors(model: Any) -> dict[str, Any]:
    return {tensor.name.decode(): tensor for tensor in model.subgraphs[0].tensors}


def integers(model: Any, tensor: Any, dtype: type[np.generic]) -> Any:
    return np.frombuffer(bytes(model.buffers[tensor.buffer].data), dtype).reshape(tensor.shape)


def infer(interpreter: Any, x: Float32Array) -> Any:
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(index, x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def assert_exact_or_close(graph: Graph, path: Path, kernels: str, sizes: tuple[Size, ...]) -> None:
    write_tflite(graph, path, "int8", size=sizes[-1])
    interpreter = Interpreter(
        str(path), num_threads=1, experimental_op_resolver_type=KERNELS[kernels]
    )
    for seed, size in enumerate(sizes):
        y_hat = latents(seed, *size)
        (expected,) = run_oracle(graph, {"y_hat": y_hat}).values()
        found = infer(interpreter, y_hat)
        if kernels == "xnnpack":
            assert np.array_equal(found, expected)
        else:  # these round twice, and the first time may end halfway between two codes
            assert np.sqrt(np.mean(np.square(found - expected))) < 0.1 * expected.std()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("seed", range(3))
def test_synthesis_is_exact_at_any_size(seed: int, kernels: str, tmp_path: Path) -> None:
    assert_exact_or_close(synthesis_like(seed), tmp_path / "a.tflite", kernels, SIZES)


@pytest.mark.parametrize("kernels", KERNELS)
def test_replicated_borders_are_exact_at_any_size(kernels: str, tmp_path: Path) -> None:
    assert_exact_or_close(replicating(), tmp_path / "a.tflite", kernels, SIZES)


@pytest.mark.parametrize("kernels", KERNELS)
def test_shuffles_strides_and_groups_of_codes_are_exact(kernels: str, tmp_path: Path) -> None:
    sizes = ((2, 2), (6, 10), (16, 8))
    assert_exact_or_close(shuffled_codes(), tmp_path / "a.tflite", kernels, sizes)


def test_operators_have_the_first_version_that_every_set_of_kernels_has(tmp_path: Path) -> None:
    found: dict[str, set[int]] = defaultdict(set)
    for graph in (synthesis_like(), shuffled_codes(), replicating()):
        operators = write_tflite(graph, tmp_path / "a.tflite", "int8")
        codes = parse(tmp_path / "a.tflite").operatorCodes
        assert {NAMES[code.builtinCode] for code in codes} == set(operators)
        for code in codes:
            found[NAMES[code.builtinCode]].add(code.version)
    assert found == VERSIONS


def test_a_synthesis_needs_no_operator_beyond_its_nodes(tmp_path: Path) -> None:
    operators = write_tflite(synthesis_like(), tmp_path / "a.tflite", "int8")
    assert operators == {
        "ADD": 3 + 2,  # residuals, and one in each of two snaps
        "CONV_2D": 8,
        "DEPTHWISE_CONV_2D": 3,
        "DEPTH_TO_SPACE": 2,
        "DEQUANTIZE": 3 + 2,  # codes, and the float16 weights of two convolutions
        "FLOOR": 2,
        "MAXIMUM": 2,
        "MINIMUM": 2,
        "MUL": 4,
        "QUANTIZE": 3,
    }


@pytest.mark.parametrize("build", [synthesis_like, replicating])
def test_xnnpack_takes_the_whole_graph(build: Callable[[], Graph], tmp_path: Path) -> None:
    write_tflite(build(), tmp_path / "a.tflite", "int8")
    interpreter = Interpreter(str(tmp_path / "a.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    (whole,) = (
        operator for operator in interpreter._get_ops_details() if operator["op_name"] == "DELEGATE"
    )
    assert interpreter.get_input_details()[0]["index"] in whole["inputs"]
    assert whole["outputs"].tolist() == [interpreter.get_output_details()[0]["index"]]


@pytest.mark.parametrize("graph", [synthesis_like(), shuffled_codes()], ids=["synthesis", "codes"])
def test_integers_and_their_scales_read_back(graph: Graph, tmp_path: Path) -> None:
    write_tflite(graph, tmp_path / "a.tflite", "int8")
    model = parse(tmp_path / "a.tflite")
    found = tensors(model)
    written = with_dcr_shuffles(graph)
    for node in written.nodes:
        if isinstance(node, QuantizedConv2d):
            weight, bias = found[f"{node.name}.weight"], found[f"{node.name}.bias"]
            axes, channel_axis = ((1, 2, 3, 0), 3) if node.is_depthwise else ((0, 2, 3, 1), 0)
            assert np.array_equal(integers(model, weight, np.int8), node.weight.transpose(axes))
            assert np.array_equal(integers(model, bias, np.int32), node.bias)
            assert weight.quantization.quantizedDimension == channel_axis
            coding = written.values[node.inputs[0]].coding
            assert coding is not None
            assert np.array_equal(weight.quantization.scale, node.scale)
            assert np.array_equal(bias.quantization.scale, node.scale * np.float32(coding.scale))
            for tensor in (weight, bias):
                assert tensor.quantization.zeroPoint.tolist() == [0] * len(node.scale)
    for value in written.values.values():
        tensor = found[value.name]
        kind = schema.TensorType.FLOAT32 if value.coding is None else schema.TensorType.INT8
        assert tensor.type == kind
        if value.coding is not None:
            assert tensor.quantization.scale.tolist() == [value.coding.scale]
            assert tensor.quantization.zeroPoint.tolist() == [value.coding.zero_point]


def test_padding_keeps_the_coding(tmp_path: Path) -> None:
    write_tflite(shuffled_codes(), tmp_path / "a.tflite", "int8")
    found = tensors(parse(tmp_path / "a.tflite"))
    (padded,) = (tensor for name, tensor in found.items() if name.endswith(".padded"))
    assert padded.type == schema.TensorType.INT8
    assert padded.quantization.zeroPoint.tolist() == [-128]


def test_a_weight_takes_about_a_byte(tmp_path: Path) -> None:
    d = Draft(0, "y_hat", 256)
    graph = d.finish(d.block("y_hat"), "x")
    write_tflite(graph, tmp_path / "a.tflite", "int8")
    weights = sum(node.weight.size for node in graph.nodes if isinstance(node, QuantizedConv2d))
    assert weights < (tmp_path / "a.tflite").stat().st_size < 1.25 * weights


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_codes_are_written_as_int8_alone(precision: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=f"int8 graph cannot be written as {precision}"):
        write_tflite(synthesis_like(), tmp_path / "a.tflite", precision)
    assert not (tmp_path / "a.tflite").exists()


def test_int8_needs_codes(small_graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="without int8 codes cannot be written as int8"):
        write_tflite(small_graph, tmp_path / "a.tflite", "int8")
    assert not (tmp_path / "a.tflite").exists()
