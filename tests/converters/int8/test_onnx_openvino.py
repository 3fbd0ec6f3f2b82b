"""int8 files for ONNX Runtime and OpenVINO: the oracle's numbers, by int8 convolutions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino
import pytest
from onnx import TensorProto, numpy_helper

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.channel_order import with_dcr_shuffles
from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Coding, Dequantize, Node, Quantize, Scale, SpaceToDepth
from edgecodec.converters.int8.oracle import run_oracle
from edgecodec.converters.writers.onnx_layouts import ChannelsLast, PictureLast
from edgecodec.converters.writers.onnx_model import ChannelsFirst
from edgecodec.converters.writers.to_onnx import build_onnx, write_onnx
from edgecodec.converters.writers.to_openvino import _check_constants, write_openvino
from edgecodec.errors import ConversionError
from tests.support.exact_graphs import Draft, latents, replicating, synthesis_like

SIZES = ((1, 1), (5, 9), (8, 3), (16, 24))
LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
WRITERS = {"onnx": write_onnx, "openvino": write_openvino}


def analysis_like(seed: int = 0) -> Graph:
    """A float32 layer of larger stride and one of more than a position, and shuffles of codes."""
    d = Draft(seed, "y_hat", 16)
    x = d.snap(d.add(SpaceToDepth("unshuffle", ("y_hat",), "unshuffle", 2), 64), 2048.0)
    weight = np.zeros((8, 64, 3, 3), np.float32)
    weight[:, :8, 1, 1] = np.eye(8)
    weight[:, 8:16, 0, 2] = 2 * np.eye(8)
    bias = np.full(8, 0.5, np.float32)  # quarters stay away from the middle between codes
    node = Conv2d("wide", (x,), "wide", weight, bias, padding=(1, 1, 1, 1))
    x = d.snap(d.add(node, 8), 2048.0)
    x = d.add(Quantize("codes", (x,), "codes"), 8, Coding(8.0))
    x = d.add(SpaceToDepth("coded", (x,), "coded", 1), 8, Coding(8.0))
    x = d.quantized(x, 8, 3, relu=True)
    x = d.quantized(d.quantized(x, 32), 32, 3, depthwise=True, relu=True)
    x = d.shuffle(x, 2)
    return d.finish(d.add(Dequantize("last", (x,), "last"), 8), "x_hat")


GRAPHS: dict[str, tuple[Any, tuple[tuple[int, int], ...]]] = {
    "synthesis": (synthesis_like, SIZES),
    "replicating": (replicating, SIZES),
    "analysis": (analysis_like, ((2, 2), (6, 10), (4, 18))),
}


def session(data: bytes, level: str, written: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if written is not None:
        options.optimized_model_filepath = str(written)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def expected(graph: Graph, x: Float32Array) -> Float32Array:
    return run_oracle(graph, {"y_hat": x})["x_hat"]


@pytest.mark.parametrize("kind", sorted(GRAPHS))
@pytest.mark.parametrize("writer", [ChannelsFirst, ChannelsLast, PictureLast])
@pytest.mark.parametrize("level", sorted(LEVELS))
def test_onnx_runtime_answers_as_the_oracle(
    kind: str, writer: type[ChannelsFirst], level: str
) -> None:
    build, sizes = GRAPHS[kind]
    for seed in range(3):
        graph = build(seed)
        model = build_onnx(graph, "int8", writer)
        loaded = session(model.SerializeToString(), level)
        for size in sizes:
            x = latents(seed, *size)
            (found,) = loaded.run(None, {"y_hat": x})
            assert np.array_equal(found, expected(graph, x)), (seed, size)


@pytest.mark.parametrize("kind", sorted(GRAPHS))
@pytest.mark.parametrize("target", sorted(WRITERS))
def test_backends_answer_as_the_oracle(kind: str, target: str, run_artefact: Any) -> None:
    build, sizes = GRAPHS[kind]
    for seed in range(3):
        graph = replace(build(seed), stage=f"{kind}{seed}")
        for size in sizes:
            x = latents(seed, *size)
            found = run_artefact(graph, target, "int8", x)["x_hat"]
            assert np.array_equal(found, expected(graph, x)), (seed, size)


def test_onnx_runtime_convolves_integers_and_transposes_nothing(tmp_path: Path) -> None:
    graph = synthesis_like()
    write_onnx(graph, tmp_path / "a.onnx", "int8")
    session((tmp_path / "a.onnx").read_bytes(), "all", tmp_path / "optimised.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    quantized = sum(isinstance(node, QuantizedConv2d) for node in graph.nodes)
    assert found["QLinearConv"] == quantized
    assert found["Conv"] == 0
    assert found["Transpose"] == 2  # one a shuffle


def test_openvino_convolves_integers(tmp_path: Path) -> None:
    graph = synthesis_like()
    write_openvino(graph, tmp_path / "a.xml", "int8")
    core = openvino.Core()
    compiled = core.compile_model(tmp_path / "a.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def info(op: Any, key: str) -> str:
        return str(op.get_rt_info()[key].astype(str))

    kinds = Counter(
        info(op, "runtimePrecision")
        for op in compiled.get_runtime_model().get_ops()
        if info(op, "layerType") == "Convolution"
    )
    quantized = sum(isinstance(node, QuantizedConv2d) for node in graph.nodes)
    assert kinds["u8"] + kinds["i8"] == quantized
    assert kinds["f32"] == sum(isinstance(node, Conv2d | Scale) for node in graph.nodes[1:])


def test_onnx_stores_the_integers_of_the_graph() -> None:
    graph = synthesis_like()
    model = build_onnx(graph, "int8", ChannelsLast)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert {p.key: p.value for p in model.metadata_props}["edgecodec.precision"] == "int8"
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in with_dcr_shuffles(graph).nodes:
        if isinstance(node, QuantizedConv2d):
            for what, array in (("weight", node.weight), ("bias", node.bias)):
                found = numpy_helper.to_array(stored[f"{node.name}.{what}.codes"])
                assert found.dtype == array.dtype
                assert np.array_equal(found, array)
        elif isinstance(node, Conv2d):
            assert stored[f"{node.name}.weight.half"].data_type == TensorProto.FLOAT16


def many_weights(outputs: int = 256) -> Graph:
    d = Draft(0, "y_hat", 256)
    x = d.add(Quantize("q", (d.snap("y_hat", 2048.0),), "q"), 256, Coding(16.0))
    x = d.quantized(d.quantized(x, 256, relu=True), outputs)
    return d.finish(d.add(Dequantize("d", (x,), "d"), outputs), "x_hat")


@pytest.mark.parametrize("target", sorted(WRITERS))
def test_a_weight_takes_a_byte(target: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.onnx" if target == "onnx" else "a.xml")
    WRITERS[target](many_weights(), path, "int8")
    weights, channels = 2 * 256 * 256, 2 * 256
    size = (path if target == "onnx" else path.with_suffix(".bin")).stat().st_size
    assert weights < size < weights + 16 * channels + 4000


def test_openvino_file_names_its_precision(tmp_path: Path) -> None:
    write_openvino(synthesis_like(), tmp_path / "a.xml", "int8")
    model = openvino.Core().read_model(tmp_path / "a.xml")
    assert model.get_rt_info(["edgecodec", "precision"]).astype(str) == "int8"
    assert str(model.input("y_hat").get_partial_shape()) == "[1,?,?,16]"


@pytest.mark.parametrize("what", ["weight", "bias", "scale"])
def test_a_changed_integer_is_noticed(what: str, tmp_path: Path) -> None:
    write_openvino(synthesis_like(), tmp_path / "a.xml", "int8")
    model = openvino.Core().read_model(tmp_path / "a.xml")
    graph = with_dcr_shuffles(synthesis_like())
    node = next(node for node in graph.nodes if isinstance(node, QuantizedConv2d))
    array = getattr(node, what).copy()
    array[0] *= 2
    fields: dict[str, Any] = {what: array}
    changed: Node = replace(node, **fields)
    nodes = tuple(changed if each is node else each for each in graph.nodes)
    _check_constants(graph, model, "int8")
    with pytest.raises(ConversionError, match=rf"OpenVINO changed {node.name}.{what}"):
        _check_constants(replace(graph, nodes=nodes), model, "int8")


@pytest.mark.parametrize("target", sorted(WRITERS))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_int8_graph_is_nothing_else(target: str, precision: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=f"int8 graph cannot be written as {precision}"):
        WRITERS[target](synthesis_like(), tmp_path / "a", precision)


@pytest.mark.parametrize("target", sorted(WRITERS))
def test_a_float_graph_is_not_int8(target: str, small_graph: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="without int8 codes cannot be written as int8"):
        WRITERS[target](small_graph, tmp_path / "a", "int8")


def test_codes_do_not_leave() -> None:
    d = Draft(0, "y_hat", 16)
    d.add(Quantize("q", ("y_hat",), "q"), 16, Coding(16.0))
    graph = Graph("synthesis", d.values, d.inputs, ("q",), tuple(d.nodes))
    with pytest.raises(ConversionError, match="what enters and leaves is float32"):
        build_onnx(graph, "int8")
