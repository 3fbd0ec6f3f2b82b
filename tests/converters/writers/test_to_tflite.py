"""The TFLite file, read back through the schema: operators, versions, constants, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecodec.converters.graph.channel_order import with_dcr_shuffles
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.tensors import fits_half
from edgecodec.converters.writers.to_tflite import write_tflite

LATEST_VERSION = {"DEQUANTIZE": 3, "CONV_2D": 6, "DEPTHWISE_CONV_2D": 2}
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}


def parse(path: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


def constants(model: Any) -> dict[str, Any]:
    kinds = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}
    return {
        tensor.name.decode(): np.frombuffer(
            bytes(model.buffers[tensor.buffer].data), kinds[tensor.type]
        ).reshape(tensor.shape)
        for tensor in model.subgraphs[0].tensors
        if model.buffers[tensor.buffer].data is not None and tensor.type in kinds
    }


def test_operators_are_few_old_and_no_transpose(traced: Any, tmp_path: Path) -> None:
    operators = write_tflite(traced.graph, tmp_path / "a.tflite", size=(16, 16))
    model = parse(tmp_path / "a.tflite")
    for code in model.operatorCodes:
        name = NAMES[code.builtinCode]
        assert name not in ("TRANSPOSE", "CUSTOM", "RESHAPE")
        assert 1 <= code.version <= LATEST_VERSION.get(name, 1)
        assert code.deprecatedBuiltinCode == code.builtinCode
        assert name in operators


def test_constants_read_back_exactly_and_half_where_that_is_exact(
    small_graph: Graph, tmp_path: Path
) -> None:
    write_tflite(small_graph, tmp_path / "a.tflite")
    found = constants(parse(tmp_path / "a.tflite"))
    for node in with_dcr_shuffles(small_graph).nodes:
        if isinstance(node, Conv2d):
            name = f"{node.name}.weight" + (".half" if fits_half(node.weight) else "")
            axes = (1, 2, 3, 0) if node.is_depthwise else (0, 2, 3, 1)
            assert np.array_equal(found[name].astype(np.float32), node.weight.transpose(axes))
            assert np.array_equal(found[f"{node.name}.bias"], node.bias)
    assert sum(array.dtype == np.float16 for array in found.values()) == 4


def test_fp16_stores_half_alone_and_says_so(small_graph: Graph, tmp_path: Path) -> None:
    write_tflite(small_graph, tmp_path / "a.tflite", "fp16")
    model = parse(tmp_path / "a.tflite")
    assert {array.dtype for array in constants(model).values()} == {np.dtype(np.float16)}
    (entry,) = model.metadata
    assert entry.name == b"reduced_precision_support"
    assert bytes(model.buffers[entry.buffer].data) == b"fp16accfp16"


def test_relu_is_fused_unless_its_input_is_wanted_elsewhere(tmp_path: Path) -> None:
    from torch import Tensor, nn, relu

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(relu(self.first(x)))
            return relu(x + relu(x))

    graph = graph_from_module(Network(), stage="s", inputs={"x": 3}, outputs=["y"])
    operators = write_tflite(graph, tmp_path / "a.tflite")
    # The one RELU left reads the second convolution, which the sum reads, too.
    assert operators == {"ADD": 1, "CONV_2D": 2, "RELU": 1}


def test_interface_is_named_and_its_size_free(small_graph: Graph, tmp_path: Path) -> None:
    write_tflite(small_graph, tmp_path / "a.tflite", size=(8, 4))
    interpreter = Interpreter(str(tmp_path / "a.tflite"), num_threads=1)
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["y_hat"], "outputs": ["x_hat"]}
    }
    (details,) = interpreter.get_input_details()
    assert details["name"] == "y_hat"
    assert details["shape"].tolist() == [1, 8, 4, 3]
    assert details["shape_signature"].tolist() == [1, -1, -1, 3]
    runner = interpreter.get_signature_runner()
    for size in ((2, 2), (12, 6), (4, 20)):
        assert runner(y_hat=np.zeros((1, *size, 3), np.float32))["x_hat"].shape == (1, *size, 3)


def test_kernels_agree(small_graph: Graph, tmp_path: Path) -> None:
    write_tflite(small_graph, tmp_path / "a.tflite", size=(6, 10))
    x = np.random.default_rng(1).normal(size=(1, 6, 10, 3)).astype(np.float32)
    results = []
    for kernels in (
        OpResolverType.AUTO,
        OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        OpResolverType.BUILTIN_REF,
    ):
        interpreter = Interpreter(
            str(tmp_path / "a.tflite"), num_threads=1, experimental_op_resolver_type=kernels
        )
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        results.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    assert max(np.abs(result - results[0]).max() for result in results) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_constants_are_aligned_as_the_schema_asks(
    small_graph: Graph, tmp_path: Path, precision: Any
) -> None:
    write_tflite(small_graph, tmp_path / "a.tflite", precision)
    data = (tmp_path / "a.tflite").read_bytes()
    assert data[4:8] == b"TFL3"
    found = constants(parse(tmp_path / "a.tflite"))
    assert all(data.index(array.tobytes()) % 16 == 0 for array in found.values() if array.size > 64)
