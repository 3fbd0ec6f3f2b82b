"""The ONNX file: what is stored how, and that old and unoptimised runtimes take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from edgecodec.converters.graph.channel_order import with_dcr_shuffles
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.tensors import fits_half
from edgecodec.converters.writers.to_onnx import build_onnx, write_onnx
from edgecodec.errors import ConversionError


def stored(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_weights_read_back_exactly_and_half_where_that_is_exact(small_graph: Any) -> None:
    tensors = stored(build_onnx(small_graph))
    kinds = set()
    for node in with_dcr_shuffles(small_graph).nodes:
        if isinstance(node, Conv2d):
            half = tensors.get(f"{node.name}.weight.half")
            found = tensors[f"{node.name}.weight"] if half is None else half
            assert (half is not None) == fits_half(node.weight)
            assert np.array_equal(found.astype(np.float32), node.weight)
            assert np.array_equal(tensors[f"{node.name}.bias"], node.bias)
            assert tensors[f"{node.name}.bias"].dtype == np.float32
            kinds.add(found.dtype.name)
    assert kinds == {"float16", "float32"}


def test_model_is_old_enough_and_named(small_graph: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    operators = write_onnx(small_graph, path)
    model = onnx.load(path)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    (source,), (result,) = model.graph.input, model.graph.output
    assert (source.name, result.name) == ("y_hat", "x_hat")
    dims = source.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [1, "y_hat_height", "y_hat_width", 3]
    assert sum(operators.values()) == len(model.graph.node)
    assert operators["Conv"] == 5


def test_fp16_computes_in_half_alone(small_graph: Any) -> None:
    model = build_onnx(small_graph, "fp16")
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert [node.input[0] for node in casts] == ["y_hat", "x_hat.half"]
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_optimisations_do_not_matter(small_graph: Any, precision: Any) -> None:
    data = build_onnx(small_graph, precision).SerializeToString()
    x = np.random.default_rng(0).normal(size=(1, 6, 10, 3)).astype(np.float32)
    results = []
    for level in (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 3
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"y_hat": x})[0])
    assert np.abs(results[0] - results[1]).max() < (1e-5 if precision == "fp32" else 1e-2)


def test_file_is_the_same_every_time(small_graph: Any) -> None:
    first, second = (build_onnx(small_graph).SerializeToString(deterministic=True) for _ in "ab")
    assert first == second


def test_fp16_refuses_a_weight_beyond_its_range(small_graph: Any) -> None:
    next(node for node in small_graph.nodes if isinstance(node, Conv2d)).bias[0] = 1e6
    with pytest.raises(ConversionError, match=r"synthesis: .*bias is beyond the range of fp16"):
        build_onnx(small_graph, "fp16")
