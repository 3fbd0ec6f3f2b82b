"""Write a `Graph` as a TFLite flatbuffer, without TensorFlow.

Channels-last throughout, so that no TRANSPOSE remains; pixel shuffles get TFLite's channel order
by permuting the convolution before them. ReLU is fused into the operation before it. Operators
have the lowest version that knows them, for tflite-runtime 2.14 and older. Height and width are
free: `resize_tensor_input` (or a signature runner) sets them.

`fp32` stores weights that float16 holds exactly as float16 behind a DEQUANTIZE, which XNNPACK
unpacks once and TFLite's own kernels compute once. `fp16` stores every constant so, rounded where
it has to be, and declares `reduced_precision_support = fp16accfp16`: XNNPACK then computes in
float16 where the processor does (Arm v8.2 and later) and in float32 elsewhere, as do TFLite's own
kernels.

`int8` is for graphs with codes (docs/exact-int8.md). Their tensors are int8 with the scale and zero
point of the coding, weights int8 with a scale per output channel; what is float32 stays it, weights
as in `fp32`. XNNPACK, which rounds once, gives the bits of the oracle; TFLite's own kernels scale
in fixed point, round twice, and may give others.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from edgecodec.arrays import Float32Array
from edgecodec.bundle.manifest import Precision
from edgecodec.converters.graph.channel_order import with_dcr_shuffles
from edgecodec.converters.graph.convolutions import Conv2d, Convolution, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph, Value, infer_sizes
from edgecodec.converters.graph.nodes import (
    Add,
    DepthToSpace,
    Dequantize,
    Node,
    Quantize,
    Relu,
    ReplicatePad,
    Scale,
    Size,
    Snap,
    SpaceToDepth,
)
from edgecodec.converters.graph.tensors import fits_half, to_half
from edgecodec.converters.writers.targets import check_graph_precision
from edgecodec.converters.writers.tflite_model import Kind, ModelBuilder


def write_tflite(
    graph: Graph, path: Path, precision: Precision = "fp32", *, size: Size = (64, 64)
) -> dict[str, int]:
    """Write `<path>`; return how often each operator occurs.

    Args:
        graph: the stage.
        path: .tflite file.
        precision: `fp32` or `fp16`; `int8` for a graph with codes, and for no other.
        size: height and width of the inputs until a runtime resizes them.

    Raises:
        ConversionError: the precision is not available, or a weight is beyond its range.
    """
    check_graph_precision(graph, precision)
    writer = _Writer(with_dcr_shuffles(graph), precision, size)
    path.write_bytes(writer.write())
    return dict(sorted(Counter(writer.builder.used).items()))


_FEW = 8


class _Writer:
    """Translates node by node; tensors of a fused ReLU's input are never made."""

    def __init__(self, graph: Graph, precision: Precision, size: Size) -> None:
        self.graph, self.half = graph, precision == "fp16"
        self.sizes = infer_sizes(graph, dict.fromkeys(graph.inputs, size))
        self.builder = ModelBuilder(f"edgecodec {graph.stage} {precision}")
        self.tensors: dict[str, int] = {}

    def write(self) -> bytes:
        for name in self.graph.inputs:
            self._activation(name)
        for node in self.graph.nodes:
            if not self._is_fused(node) and not self._is_read_whole(node):
                self._node(node)
        if self.half:
            self.builder.metadata("reduced_precision_support", b"fp16accfp16")
        inputs = {name: self.tensors[name] for name in self.graph.inputs}
        outputs = {name: self.tensors[name] for name in self.graph.outputs}
        return self.builder.finish(self.graph.stage, inputs, outputs)

    def _activation(self, name: str) -> int:
        if name not in self.tensors:
            self.tensors[name] = self._new(name, self.graph.values[name], self.sizes[name])
        return self.tensors[name]

    def _new(self, name: str, like: Value, size: Size) -> int:
        """Add a tensor with the channels and coding of a value."""
        coding = None if like.coding is None else (like.coding.scale, like.coding.zero_point)
        return self.builder.activation(name, (1, *size, like.channels), coding=coding)

    def _fused_relu(self, node: Node) -> Relu | None:
        """Return the ReLU that alone reads a convolution or sum."""
        readers = self.graph.consumers(node.output)
        if not isinstance(node, Conv2d | Add) or node.output in self.graph.outputs:
            return None
        return readers[0] if len(readers) == 1 and isinstance(readers[0], Relu) else None

    def _is_fused(self, node: Node) -> bool:
        if not isinstance(node, Relu):
            return False
        before = self.graph.producer(node.inputs[0])
        return before is not None and self._fused_relu(before) is node

    def _takes_squares(self, node: QuantizedConv2d) -> bool:
        side = node.weight.shape[2]
        touching = node.weight.shape[2:] == (side, side) == node.stride
        return touching and all(size % side == 0 for size in self.sizes[node.inputs[0]])

    def _makes_numbers(self, node: Node) -> bool:
        """Return whether a node is a convolution of codes of which float32 comes out."""
        coding = self.graph.values[node.output].coding
        return isinstance(node, QuantizedConv2d) and coding is None

    def _is_read_whole(self, node: Node) -> bool:
        """Return whether codes are made for nobody: see `_hybrid`."""
        readers = self.graph.consumers(node.output)
        return isinstance(node, Quantize) and all(self._makes_numbers(n) for n in readers)

    def _hybrid(self, node: QuantizedConv2d) -> None:
        """Add a convolution of float32 with int8 weights.

        No kernel here makes float32 of codes, but these choose codes for themselves.
        """
        (name,) = node.inputs
        before = self.graph.producer(name)
        if isinstance(before, Quantize):
            source = self._activation(before.inputs[0])
        else:
            source = self.builder.activation(
                f"{name}.numbers", (1, *self.sizes[name], self.graph.values[name].channels)
            )
            self.builder.simple(Kind.DEQUANTIZE, [self._activation(name)], source)
        coding = self.graph.values[name].coding
        assert coding is not None  # Graph has checked that
        outputs, channels, side, _ = node.weight.shape
        columns, stride = node.weight.transpose(0, 2, 3, 1), node.stride
        if channels < _FEW and self._takes_squares(node):
            # Kernels take channels by eight, and waste what is missing.
            height, width = self.sizes[node.output]
            squares = self.builder.activation(
                f"{node.name}.squares", (1, height, width, side * side * channels)
            )
            self.builder.shuffle(Kind.SPACE_TO_DEPTH, source, squares, side)
            source, columns, stride = squares, columns.reshape(outputs, 1, 1, -1), (1, 1)
        weight = self.builder.constant(f"{node.name}.weight", columns, scale=node.scale, axis=0)
        bias = node.bias * (node.scale.astype(np.float64) * coding.scale)
        stored = self.builder.constant(f"{node.name}.bias", bias.astype(np.float32))
        self.builder.convolution(
            [source, weight, stored],
            self._activation(node.output),
            same=False,
            stride=stride,
            dilation=node.dilation,
            relu=False,
            multiplier=None,
            grouped=False,
        )

    def _node(self, node: Node) -> None:
        if isinstance(node, QuantizedConv2d) and self._makes_numbers(node):
            self._hybrid(node)
            return
        relu = self._fused_relu(node)
        inputs = [self._activation(name) for name in node.inputs]
        output = self._activation(node.output if relu is None else relu.output)
        match node:
            case Conv2d() | QuantizedConv2d():
                self._convolution(node, inputs[0], output, relu=relu is not None)
            case Quantize():
                self.builder.simple(Kind.QUANTIZE, inputs, output)
            case Dequantize():
                self.builder.simple(Kind.DEQUANTIZE, inputs, output)
            case Scale():
                factor = self.builder.constant(f"{node.name}.factor", node.factor)
                self.builder.simple(Kind.MUL, [*inputs, factor], output)
            case Snap():
                self._snap(node, inputs[0], output)
            case Add():
                self.builder.add(inputs, output, relu=relu is not None)
            case Relu():
                self.builder.simple(Kind.RELU, inputs, output)
            case DepthToSpace():
                self.builder.shuffle(Kind.DEPTH_TO_SPACE, inputs[0], output, node.block)
            case SpaceToDepth():
                self.builder.shuffle(Kind.SPACE_TO_DEPTH, inputs[0], output, node.block)
            case ReplicatePad():
                self._replicate(node, inputs[0], output)

    def _constant(self, name: str, array: Float32Array, *, bias: bool) -> int:
        """Store an array; behind a DEQUANTIZE where float16 is wanted or loses nothing."""
        if self.half or (fits_half(array) and not bias):
            half = to_half(array, name, self.graph.stage)
            stored = self.builder.constant(f"{name}.half", half)
            output = self.builder.activation(name, array.shape, fixed=True)
            self.builder.simple(Kind.DEQUANTIZE, [stored], output)
            return output
        return self.builder.constant(name, array)

    def _convolution(self, node: Convolution, source: int, output: int, *, relu: bool) -> None:
        axes = (1, 2, 3, 0) if node.is_depthwise else (0, 2, 3, 1)
        same = _is_same_padding(node)
        if any(node.padding) and not same:
            source = self._pad(node, source)
        self.builder.convolution(
            [source, *self._parameters(node, axes)],
            output,
            same=same,
            stride=node.stride,
            dilation=node.dilation,
            relu=relu,
            multiplier=node.weight.shape[0] // node.groups if node.is_depthwise else None,
            grouped=node.groups > 1,
        )

    def _parameters(self, node: Convolution, axes: tuple[int, int, int, int]) -> tuple[int, int]:
        """Store weight and bias; integers with what a step of each output channel stands for."""
        names = f"{node.name}.weight", f"{node.name}.bias"
        if isinstance(node, Conv2d):
            weight = np.ascontiguousarray(node.weight.transpose(axes))
            return (
                self._constant(names[0], weight, bias=False),
                self._constant(names[1], node.bias, bias=True),
            )
        assert isinstance(node, QuantizedConv2d)
        coding = self.graph.values[node.inputs[0]].coding
        assert coding is not None  # Graph has checked that
        codes = self.builder.constant(
            names[0], node.weight.transpose(axes), scale=node.scale, axis=axes.index(0)
        )
        scale = (node.scale * np.float64(coding.scale)).astype(np.float32)
        return codes, self.builder.constant(names[1], node.bias, scale=scale)

    def _pad(self, node: Convolution, source: int) -> int:
        top, left, bottom, right = node.padding
        height, width = self.sizes[node.inputs[0]]
        size = (height + top + bottom, width + left + right)
        output = self._new(f"{node.name}.padded", self.graph.values[node.inputs[0]], size)
        amounts = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        paddings = self.builder.constant(f"{node.name}.padding", amounts)
        self.builder.simple(Kind.PAD, [source, paddings], output)
        return output

    def _replicate(self, node: ReplicatePad, source: int, output: int) -> None:
        """Put the outermost rows beside the rows, then so with columns.

        MIRROR_PAD would do, but XNNPACK has none: a graph would fall apart at each. It joins five
        feature maps at most.
        """
        value, size = self.graph.values[node.output], [*self.sizes[node.inputs[0]]]
        steps = []
        for axis in (0, 1):
            before, behind = node.padding[axis], node.padding[axis + 2]
            while before or behind:
                steps.append((axis, min(before, 2), min(behind, 2)))
                before, behind = before - steps[-1][1], behind - steps[-1][2]
        for i, (axis, before, behind) in enumerate(steps):
            thin = [*size]
            thin[axis] = 1
            size[axis] += before + behind
            parts = []
            for last, count in ((False, before), (True, behind)):
                if count:
                    name = f"{node.name}.{i}.{'last' if last else 'first'}"
                    edge = self._new(name, value, (thin[0], thin[1]))
                    self.builder.edge(source, edge, axis + 1, last=last)
                    parts += [edge] * count
            parts.insert(before, source)
            source = output
            if i < len(steps) - 1:
                source = self._new(f"{node.name}.{i}", value, (size[0], size[1]))
            self.builder.concatenate(parts, source, axis + 1)

    def _snap(self, node: Snap, source: int, output: int) -> None:
        value, size = self.graph.values[node.output], self.sizes[node.output]
        steps: list[tuple[Kind, float | None]] = [
            (Kind.MINIMUM, node.limit),
            (Kind.MAXIMUM, -node.limit),
            (Kind.FLOOR, None),
        ]
        if node.offset:
            steps.append((Kind.ADD, node.offset))
        for i, (kind, number) in enumerate(steps):
            name = f"{node.name}.{kind.value.lower()}"
            inputs = [source]
            if number is not None:
                inputs.append(self.builder.constant(f"{name}.with", np.array(number, np.float32)))
            source = output if i == len(steps) - 1 else self._new(name, value, size)
            self.builder.simple(kind, inputs, source)


def _is_same_padding(node: Convolution) -> bool:
    """Return whether SAME pads as the node does for every size.

    With a stride, SAME puts zeros where the size happens to need them, so that it is the same
    only for some sizes; without one, only an even total is split alike.
    """
    reach = [d * (k - 1) for k, d in zip(node.weight.shape[2:], node.dilation, strict=True)]
    even = all(r % 2 == 0 for r in reach)
    half = (reach[0] // 2, reach[1] // 2)
    return node.stride == (1, 1) and even and any(half) and node.padding == (*half, *half)
