"""Write a `Graph` as OpenVINO IR (.xml with a .bin beside it), through its ONNX model.

`fp32` keeps every number as it is: weights that float16 holds exactly are stored as float16, all
others as float32, and after writing they are read back and compared. A runtime should ask for it
with INFERENCE_PRECISION_HINT=f32, because OpenVINO computes in bf16 or f16 where the processor can.

`fp16` is the same network with *every* constant float16, rounded where it has to be, biases too.
OpenVINO decides the arithmetic when it compiles, not the file: the file declares
rt_info/edgecodec/precision = fp16, and a runtime answers it with INFERENCE_PRECISION_HINT=f16.
Where the processor has no f16 arithmetic the runtime asks for f32, with the rounded constants.

`bf16` stores what `fp32` stores, to the byte, and declares precision = bf16, which a runtime
answers with INFERENCE_PRECISION_HINT=bf16: OpenVINO then rounds weights and what passes between
layers to the eight bits of bfloat16 when it compiles. It is for processors that have bfloat16.

`int8` is for graphs that have int8 codes: weights are stored as int8 and biases as int32, beside
FakeQuantize operations, from which OpenVINO makes integer convolutions when it compiles. What lies
between those is float32, as for `fp32`, and needs the same INFERENCE_PRECISION_HINT=f32.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import openvino
import openvino.opset8 as opset

from edgecodec.bundle.manifest import PRECISIONS, Precision
from edgecodec.converters.graph.channel_order import with_dcr_shuffles
from edgecodec.converters.graph.convolutions import Convolution
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.tensors import fits_half, to_half
from edgecodec.converters.graph.unrounded import unrounded
from edgecodec.converters.writers.onnx_layouts import PictureLast
from edgecodec.converters.writers.targets import check_graph_precision
from edgecodec.converters.writers.to_onnx import build_onnx
from edgecodec.errors import ConversionError

_WORTH_HALF = 256


def write_openvino(graph: Graph, path: Path, precision: Precision = "fp32") -> dict[str, int]:
    """Write `<path>` (.xml) and its .bin; return how often each operator occurs.

    Raises:
        ConversionError: the precision is not available for this graph, or OpenVINO changed a
            constant.
    """
    check_graph_precision(graph, precision, PRECISIONS)
    if graph.stage == "analysis":  # which need not be the same on every runtime
        graph = unrounded(graph)
    model = _convert(build_onnx(graph, "int8" if precision == "int8" else "fp32", PictureLast))
    if precision != "fp16":
        _store_as_half(model)
    model.set_rt_info(precision, ["edgecodec", "precision"])
    openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
    written = openvino.Core().read_model(path)
    _check_constants(with_dcr_shuffles(graph), written, precision)
    return dict(sorted(Counter(op.get_type_name() for op in written.get_ordered_ops()).items()))


def _convert(model: onnx.ModelProto) -> Any:
    with tempfile.TemporaryDirectory(prefix="edgecodec-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return openvino.convert_model(path)


def _store_as_half(model: Any) -> None:
    """Keep constants in float16 behind a Convert, where that loses nothing.

    The ONNX model stores them so, but OpenVINO folds its casts while reading it.
    """
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Constant" and op.get_element_type() == openvino.Type.f32:
            array = np.asarray(op.get_data(), np.float32)
            if array.size >= _WORTH_HALF and fits_half(array):
                stored = opset.constant(
                    array.astype(np.float16), name=f"{op.get_friendly_name()}.half"
                )
                op.output(0).replace(opset.convert(stored, "f32").output(0))


def _check_constants(graph: Graph, model: Any, precision: Precision) -> None:
    """Compare every weight and bias with those written, whatever OpenVINO made of the graph.

    Raises:
        ConversionError: one is not there.
    """
    stored = {
        _key(np.asarray(op.get_data()))
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Constant"
    }
    for node in graph.nodes:
        if not isinstance(node, Convolution):
            continue
        for what, array in node.arrays().items():
            expected = array
            if not array.any():
                continue  # OpenVINO may leave out a sum with zero
            if precision == "fp16" and not fits_half(array):
                expected = to_half(array, f"{node.name}.{what}", graph.stage)
            forms = [expected]
            if what == "weight":
                forms.append(np.ascontiguousarray(expected.transpose(0, 3, 1, 2)))
            if not any(_key(form) in stored for form in forms):
                raise ConversionError(f"OpenVINO changed {node.name}.{what}", graph.stage)


def _key(array: npt.NDArray[Any]) -> tuple[str, bytes]:
    """Return kind and bytes of an array; its shape may have gained ones (bias, grouped weights)."""
    if array.dtype.kind == "f":
        array = array.astype(np.float32) + np.float32(0.0)  # adding zero makes -0 and 0 one
        return "f", array.tobytes()
    return array.dtype.name, array.tobytes()
