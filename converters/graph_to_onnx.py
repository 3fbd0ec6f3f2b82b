"""Write a `Graph` as an ONNX model.

Opset 17 with IR version 8, which ONNX Runtime reads since 1.12. Inputs and outputs are float32
and channels-last with height and width free; one Transpose at each end leads to ONNX's
channels-first operations. Weights that float16 holds exactly are stored so behind a Cast, which a
runtime folds when it loads the model.

`fp16` means float16 throughout, weights rounded where they have to be, between casts at the
ends. A runtime without float16 kernels for an operation (ONNX Runtime on x86-64, for most)
computes it in float32 between casts of its own: smaller there, not faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecodec.converters.channel_order import with_dcr_shuffles
from edgecodec.converters.graph import (
    Add,
    Conv2d,
    DepthToSpace,
    Float32Array,
    Graph,
    Node,
    Relu,
    SpaceToDepth,
    fits_half,
    to_half,
)
from edgecodec.converters.precision import Precision, check_precision
from edgecodec.errors import ConversionError

OPSET = 17
IR_VERSION = 8
_TO_CHANNELS_FIRST = (0, 3, 1, 2)
_TO_CHANNELS_LAST = (0, 2, 3, 1)


def build_onnx(graph: Graph, precision: Precision = "fp32") -> onnx.ModelProto:
    """Return the model of a stage, checked by onnx.

    Raises:
        ConversionError: the precision is not available, or a weight is beyond its range.
    """
    check_precision(precision, ("fp32", "fp16"), graph.stage)
    model = _Writer(with_dcr_shuffles(graph), precision).write()
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ConversionError(f"onnx refuses the model written: {exc}", graph.stage) from exc
    return model


def write_onnx(graph: Graph, path: Path, precision: Precision = "fp32") -> dict[str, int]:
    """Write `<path>`; return how often each operator occurs.

    Raises:
        ConversionError: see `build_onnx`.
    """
    model = build_onnx(graph, precision)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


class _Writer:
    """Collects the nodes and tensors of one model."""

    def __init__(self, graph: Graph, precision: Precision) -> None:
        self.graph, self.precision = graph, precision
        self.half = precision == "fp16"
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def write(self) -> onnx.ModelProto:
        for name in self.graph.inputs:
            self._enter(name)
        for node in self.graph.nodes:
            self._node(node)
        for name in self.graph.outputs:
            self._leave(name)
        body = helper.make_graph(
            self.nodes,
            self.graph.stage,
            [self._interface(name) for name in self.graph.inputs],
            [self._interface(name) for name in self.graph.outputs],
            self.tensors,
        )
        model = helper.make_model(
            body,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgecodec",
        )
        helper.set_model_props(
            model, {"edgecodec.stage": self.graph.stage, "edgecodec.precision": self.precision}
        )
        return model

    def _interface(self, name: str) -> onnx.ValueInfoProto:
        channels = self.graph.values[name].channels
        shape: list[int | str] = [1, f"{name}_height", f"{name}_width", channels]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def _op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        node = helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)

    def _enter(self, name: str) -> None:
        source = name
        if self.half:
            source = f"{name}.half"
            self._op("Cast", [name], source, to=TensorProto.FLOAT16)
        self._op("Transpose", [source], f"{name}.nchw", perm=_TO_CHANNELS_FIRST)

    def _leave(self, name: str) -> None:
        last = f"{name}.half" if self.half else name
        self._op("Transpose", [f"{name}.nchw"], last, perm=_TO_CHANNELS_LAST)
        if self.half:
            self._op("Cast", [last], name, to=TensorProto.FLOAT)

    def _constant(self, name: str, array: npt.NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _weight(self, name: str, array: Float32Array) -> str:
        if self.half:
            return self._constant(name, to_half(array, name, self.graph.stage))
        if not fits_half(array):
            return self._constant(name, array)
        stored = self._constant(f"{name}.half", array.astype(np.float16))
        self._op("Cast", [stored], name, to=TensorProto.FLOAT)
        return name

    def _node(self, node: Node) -> None:
        inputs, output = [f"{name}.nchw" for name in node.inputs], f"{node.output}.nchw"
        match node:
            case Conv2d():
                self._convolution(node, inputs[0], output)
            case Relu():
                self._op("Relu", inputs, output)
            case Add():
                self._op("Add", inputs, output)
            case DepthToSpace():
                mode = node.order.upper()
                self._op("DepthToSpace", inputs, output, blocksize=node.block, mode=mode)
            case SpaceToDepth():
                self._op("SpaceToDepth", inputs, output, blocksize=node.block)

    def _convolution(self, node: Conv2d, source: str, output: str) -> None:
        bias = node.bias
        weight = self._weight(f"{node.name}.weight", node.weight)
        stored = to_half(bias, f"{node.name}.bias", self.graph.stage) if self.half else bias
        top, left, bottom, right = node.padding
        self._op(
            "Conv",
            [source, weight, self._constant(f"{node.name}.bias", stored)],
            output,
            kernel_shape=node.weight.shape[2:],
            strides=node.stride,
            pads=(top, left, bottom, right),
            dilations=node.dilation,
            group=node.groups,
        )
