"""Collect the nodes and tensors of an ONNX model in ONNX's own order, channels first.

The public side is float32, channels last, height and width free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecodec.arrays import Float32Array
from edgecodec.bundle.manifest import Precision
from edgecodec.converters.graph.convolutions import Conv2d, Convolution, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import (
    Add,
    DepthToSpace,
    Dequantize,
    Node,
    Quantize,
    Relu,
    ReplicatePad,
    Scale,
    Snap,
    SpaceToDepth,
)
from edgecodec.converters.graph.tensors import fits_half, to_half
from edgecodec.errors import ConversionError

OPSET = 17
IR_VERSION = 8
TO_CHANNELS_FIRST = (0, 3, 1, 2)
TO_CHANNELS_LAST = (0, 2, 3, 1)
_UNSIGNED = 128
"""Added to codes and zero points: int8 is stored as uint8."""


class ChannelsFirst:
    """Writes ONNX's own order, one Transpose at each end."""

    rows = 2
    """Axis of the rows; columns follow."""

    def __init__(self, graph: Graph, precision: Precision) -> None:
        self.graph, self.precision = graph, precision
        self.half = precision == "fp16"
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}

    def write(self) -> onnx.ModelProto:
        """Return the model.

        Raises:
            ConversionError: a weight is beyond its range, or codes would enter or leave.
        """
        for name in self.graph.inputs:
            self._enter(name)
        for node in self.graph.nodes:
            self._node(node)
        for name in self.graph.outputs:
            self._leave(name)
        domains = dict.fromkeys(["", *(node.domain for node in self.nodes)])
        body = helper.make_graph(
            self.nodes,
            self.graph.stage,
            [self._interface(name) for name in self.graph.inputs],
            [self._interface(name) for name in self.graph.outputs],
            list(self.tensors.values()),
        )
        model = helper.make_model(
            body,
            opset_imports=[helper.make_opsetid(d, 1 if d else OPSET) for d in domains],
            ir_version=IR_VERSION,
            producer_name="edgecodec",
        )
        helper.set_model_props(
            model, {"edgecodec.stage": self.graph.stage, "edgecodec.precision": self.precision}
        )
        return model

    def _interface(self, name: str) -> onnx.ValueInfoProto:
        value = self.graph.values[name]
        if value.coding is not None:
            raise ConversionError(f"{name} is int8; what enters and leaves is float32", self.stage)
        shape: list[int | str] = [1, f"{name}_height", f"{name}_width", value.channels]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    @property
    def stage(self) -> str:
        """What errors call the graph."""
        return self.graph.stage

    def _op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def _inner(self, name: str) -> str:
        """Return what a value is called inside."""
        return f"{name}.nchw"

    def _enter(self, name: str) -> None:
        source = name
        if self.half:
            source = self._op("Cast", [name], f"{name}.half", to=TensorProto.FLOAT16)
        self._op("Transpose", [source], self._inner(name), perm=TO_CHANNELS_FIRST)

    def _leave(self, name: str) -> None:
        last = f"{name}.half" if self.half else name
        self._op("Transpose", [self._inner(name)], last, perm=TO_CHANNELS_LAST)
        if self.half:
            self._op("Cast", [last], name, to=TensorProto.FLOAT)

    def _constant(self, name: str, array: npt.NDArray[Any]) -> str:
        self.tensors[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def _number(self, name: str, number: float) -> str:
        return self._constant(name, np.array(number, np.float32))

    def _weight(self, name: str, array: Float32Array) -> str:
        if self.half:
            return self._constant(name, to_half(array, name, self.stage))
        if not fits_half(array):
            return self._constant(name, array)
        stored = self._constant(f"{name}.half", array.astype(np.float16))
        return self._op("Cast", [stored], name, to=TensorProto.FLOAT)

    def _bias(self, name: str, array: Float32Array) -> str:
        return self._constant(name, to_half(array, name, self.stage) if self.half else array)

    def _coding(self, value: str) -> tuple[str, str]:
        """Return the scale and the zero point of a coded value."""
        coding = self.graph.values[value].coding
        assert coding is not None  # Graph has checked it
        zero_point = np.array(coding.zero_point + _UNSIGNED, np.uint8)
        return (
            self._number(f"{value}.scale", coding.scale),
            self._constant(f"{value}.zero_point", zero_point),
        )

    def _node(self, node: Node) -> None:
        inputs, output = [self._inner(name) for name in node.inputs], self._inner(node.output)
        match node:
            case Conv2d():
                self._convolution(node, inputs[0], output)
            case QuantizedConv2d():
                self._quantized_convolution(node, inputs[0], output)
            case Quantize():
                self._op("QuantizeLinear", [*inputs, *self._coding(node.output)], output)
            case Dequantize():
                self._op("DequantizeLinear", [*inputs, *self._coding(node.inputs[0])], output)
            case Scale():
                self._scale(node, inputs[0], output)
            case Snap():
                self._snap(node, inputs[0], output)
            case Relu():
                self._op("Relu", inputs, output)
            case Add():
                self._op("Add", inputs, output)
            case DepthToSpace() | SpaceToDepth():
                self._shuffle(node, inputs[0], output)
            case ReplicatePad():
                self._pad(node, inputs[0], output)

    def _scale(self, node: Scale, source: str, output: str) -> None:
        """Multiply; beside a DequantizeLinear or a convolution by one of each channel.

        OpenVINO (2026.4 on x86-64) would make a Mul behind a DequantizeLinear part of the int8
        convolution before it, and that gives wrong numbers when a picture of free size is a single
        position there; one beside a float32 convolution it would make part of the weights.
        """
        name, factor = f"{node.name}.factor", node.factor[:, None, None]
        (value,) = node.inputs
        before, after = self.graph.producer(value), self.graph.consumers(node.output)
        alone = self.graph.consumers(value) == [node] and value not in self.graph.outputs
        fits = (isinstance(before, Conv2d) and alone) or any(isinstance(n, Conv2d) for n in after)
        if isinstance(before, Dequantize) or fits:
            weight = self._constant(name, factor[:, None])
            group = len(factor)
            self._op("Conv", [source, weight], output, kernel_shape=(1, 1), group=group)
        else:
            self._op("Mul", [source, self._constant(name, factor)], output)

    def _snap(self, node: Snap, source: str, output: str) -> None:
        low = self._number(f"{node.name}.low", -node.limit)
        high = self._number(f"{node.name}.high", node.limit)
        clipped = self._op("Clip", [source, low, high], f"{node.name}.clipped")
        if node.offset == 0:
            self._op("Floor", [clipped], output)
            return
        whole = self._op("Floor", [clipped], f"{node.name}.whole")
        self._op("Add", [whole, self._number(f"{node.name}.offset", node.offset)], output)

    def _shuffle(self, node: DepthToSpace | SpaceToDepth, source: str, output: str) -> None:
        if isinstance(node, DepthToSpace):
            mode = node.order.upper()
            self._op("DepthToSpace", [source], output, blocksize=node.block, mode=mode)
        else:
            self._op("SpaceToDepth", [source], output, blocksize=node.block)

    def _pad(self, node: ReplicatePad, source: str, output: str) -> None:
        top, left, bottom, right = node.padding
        amounts = np.zeros(8, np.int64)
        amounts[[self.rows, self.rows + 1, self.rows + 4, self.rows + 5]] = top, left, bottom, right
        stored = self._constant(f"{node.name}.amounts", amounts)
        self._op("Pad", [source, stored], output, mode="edge")

    def _convolution(self, node: Conv2d, source: str, output: str) -> None:
        weight = self._weight(f"{node.name}.weight", node.weight)
        bias = self._bias(f"{node.name}.bias", node.bias)
        self._conv(node, [source, weight, bias], output)

    def _quantized_convolution(self, node: QuantizedConv2d, source: str, output: str) -> None:
        """Between a DequantizeLinear and a QuantizeLinear of its own, as runtimes look for it.

        Without the latter float32 comes out.
        """
        coding = self.graph.values[node.inputs[0]].coding
        assert coding is not None  # Graph has checked it
        weight = self._real(f"{node.name}.weight", node.weight, node.scale)
        bias = self._real(f"{node.name}.bias", node.bias, node.scale * np.float32(coding.scale))
        real = self._dequantized(node, source)
        if self.graph.values[node.output].coding is None:
            self._conv(node, [real, weight, bias], output)
            return
        total = self._conv(node, [real, weight, bias], f"{node.name}.sum")
        self._op("QuantizeLinear", [total, *self._coding(node.output)], output)

    def _dequantized(self, node: QuantizedConv2d, source: str) -> str:
        given = [source, *self._coding(node.inputs[0])]
        return self._op("DequantizeLinear", given, f"{node.name}.real")

    def _real(
        self, name: str, codes: npt.NDArray[np.int8] | npt.NDArray[np.int32], scale: Float32Array
    ) -> str:
        """Return a weight or bias that is stored as integers."""
        given = [
            self._constant(f"{name}.codes", codes),
            self._constant(f"{name}.scale", scale),
            self._constant(f"{name}.zero_point", np.zeros(len(scale), codes.dtype)),
        ]
        return self._op("DequantizeLinear", given, name, axis=0)

    def _conv(self, node: Convolution, inputs: Sequence[str], output: str) -> str:
        top, left, bottom, right = node.padding
        return self._op(
            "Conv",
            inputs,
            output,
            kernel_shape=node.weight.shape[2:],
            strides=node.stride,
            pads=(top, left, bottom, right),
            dilations=node.dilation,
            group=node.groups,
        )
