"""Orders of an ONNX model that leave a runtime few layouts to change beyond those of shuffles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from edgecodec.arrays import Float32Array
from edgecodec.bundle.manifest import Precision
from edgecodec.converters.graph.convolutions import Conv2d, Convolution, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph, infer_sizes
from edgecodec.converters.graph.nodes import (
    Add,
    DepthToSpace,
    Node,
    Quantize,
    Scale,
    Size,
    SpaceToDepth,
)
from edgecodec.converters.writers.onnx_model import (
    TO_CHANNELS_FIRST,
    TO_CHANNELS_LAST,
    ChannelsFirst,
)
from edgecodec.errors import ConversionError
from edgecodec.format.strides import HYPER_STRIDE

MICROSOFT = "com.microsoft"
_AnyConvolution = TypeVar("_AnyConvolution", Conv2d, QuantizedConv2d)


class _WithRuns(ChannelsFirst):
    """Knows how to move whole runs of a channels-last picture about."""

    def _first(self, source: str, output: str) -> str:
        return self._op("Transpose", [source], output, perm=TO_CHANNELS_FIRST)

    def _last(self, source: str, output: str) -> str:
        return self._op("Transpose", [source], output, perm=TO_CHANNELS_LAST)

    def _moved(self, node: DepthToSpace | SpaceToDepth, source: str, output: str) -> str:
        """Shuffle a channels-last picture; a 0 in a shape keeps what is at its place."""
        assert node.order == "dcr"
        block = node.block
        if isinstance(node, SpaceToDepth):
            return self._patches(source, output, block, self.graph.values[node.inputs[0]].channels)
        run = block * self.graph.values[node.output].channels
        x = self._reshape(source, f"{output}.runs", (0, 0, 0, block, run))
        x = self._op("Transpose", [x], f"{output}.rows", perm=(0, 1, 3, 2, 4))
        return self._joined(x, output, run, run // block)

    def _joined(self, source: str, output: str, run: int, channels: int) -> str:
        """Return (1, H, block, W, run) as a picture."""
        x = self._reshape(source, f"{output}.height", (1, 1, -1, 0, run))
        x = self._reshape(x, f"{output}.width", (1, 1, 0, -1, channels))
        return self._op("Squeeze", [x, self._axes(f"{output}.squeezed")], output)

    def _patches(self, source: str, output: str, side: int, channels: int) -> str:
        """Bring the squares of a picture together, rows of `side` * channels at a time."""
        run = side * channels
        x = self._op("Unsqueeze", [source, self._axes(f"{output}.unsqueezed")], f"{output}.width")
        x = self._reshape(x, f"{output}.height", (1, 1, 0, -1, run))
        x = self._reshape(x, f"{output}.rows", (1, -1, side, 0, run))
        x = self._op("Transpose", [x], f"{output}.runs", perm=(0, 1, 3, 2, 4))
        return self._reshape(x, output, (0, 0, 0, side * run))

    def _axes(self, name: str) -> str:
        return self._constant(name, np.array([1], np.int64))

    def _reshape(self, source: str, output: str, shape: Sequence[int]) -> str:
        stored = self._constant(f"{output}.shape", np.array(shape, np.int64))
        return self._op("Reshape", [source, stored], output)


class Blocked(_WithRuns):
    """Writes channels first, for float convolutions, which ONNX Runtime does in blocks of channels.

    It leaves its blocks for a shuffle, and on the way back has the choice of both orders; so
    shuffles are channels last, where they move whole runs. It does not return to its blocks for a
    sum, and would leave and enter them again around each one of a trunk that a shuffle makes; so
    there a convolution that changes nothing comes first.
    """

    def _shuffle(self, node: DepthToSpace | SpaceToDepth, source: str, output: str) -> None:
        last = self._last(source, f"{node.name}.last")
        moved = self._moved(node, last, f"{node.name}.moved")
        summed = any(isinstance(reader, Add) for reader in self.graph.consumers(node.output))
        plain = self._first(moved, f"{node.name}.plain" if summed else output)
        if summed:
            channels = self.graph.values[node.output].channels
            weight = self._weight(f"{node.name}.ones", np.ones((channels, 1, 1, 1), np.float32))
            self._op("Conv", [plain, weight], output, kernel_shape=(1, 1), group=channels)


class PictureLast(_WithRuns):
    """Writes channels first, for OpenVINO, whose inside is channels last and its own affair.

    A shuffle that makes an output would cost it three passes, the first of them a slow one: the
    shuffle, the Transpose, and a change of layout. Here it is a Transpose of runs, and two.
    """

    def __init__(self, graph: Graph, precision: Precision) -> None:
        super().__init__(graph, precision)
        self.last = set() if self.half else _read_as_patches(graph)

    def _shuffle(self, node: DepthToSpace | SpaceToDepth, source: str, output: str) -> None:
        if not self._ends_in(node):
            super()._shuffle(node, source, output)
            return
        x = self._op("Unsqueeze", [source, self._axes(f"{output}.unsqueezed")], f"{output}.squares")
        channels = self.graph.values[node.output].channels
        run = node.block * channels
        x = self._reshape(x, f"{output}.runs", (1, node.block, run, 0, 0))
        x = self._op("Transpose", [x], f"{output}.rows", perm=(0, 3, 1, 4, 2))
        self._joined(x, node.output, run, channels)

    def _inner(self, name: str) -> str:
        return name if name in self.last else super()._inner(name)

    def _enter(self, name: str) -> None:
        if name not in self.last:
            super()._enter(name)

    def _node(self, node: Node) -> None:
        if isinstance(node, Scale) and self._is_end(node.output):
            self._leave_flat(self._inner(node.inputs[0]), node.output, node.factor)
        else:
            super()._node(node)

    def _leave_flat(self, source: str, output: str, factor: Float32Array) -> None:
        """Make an output, channels last, by a Transpose of rows; that of four axes is slow."""
        channels = self.graph.values[output].channels
        size = self._op("Shape", [source], f"{output}.size", start=2, end=4)
        ends = [self._constant(f"{output}.{n}", np.array([n], np.int64)) for n in (1, channels)]
        shape = self._op("Concat", [ends[0], size, ends[1]], f"{output}.shape", axis=0)
        flat = self._reshape(source, f"{output}.flat", (0, 0, -1))
        rows = self._op("Transpose", [flat], f"{output}.rows", perm=(0, 2, 1))
        if (factor != 1.0).any():
            stored = self._constant(f"{output}.factor", factor)
            rows = self._op("Mul", [rows, stored], f"{output}.scaled")
        self._op("Reshape", [rows, shape], output)

    def _convolution(self, node: Conv2d, source: str, output: str) -> None:
        super()._convolution(*self._of_patches(node, source), output)

    def _quantized_convolution(self, node: QuantizedConv2d, source: str, output: str) -> None:
        super()._quantized_convolution(*self._of_patches(node, source), output)

    def _of_patches(self, node: _AnyConvolution, source: str) -> tuple[_AnyConvolution, str]:
        """Return a convolution of a picture as one of the squares of it."""
        if node.inputs[0] not in self.last:
            return node, source
        outputs, channels, side, _ = node.weight.shape
        if isinstance(node, QuantizedConv2d):
            source = super()._dequantized(node, source)
        runs = self._reshape(source, f"{node.name}.runs", (0, 0, -1, side * channels))
        weight = node.weight.transpose(0, 3, 1, 2).reshape(outputs, side * channels, side, 1)
        node = replace(node, weight=weight, stride=(side, 1))
        return node, self._first(runs, f"{node.name}.first")

    def _dequantized(self, node: QuantizedConv2d, source: str) -> str:
        """Make numbers of codes before they are moved: OpenVINO keeps them int8 on the way."""
        if node.inputs[0] not in self.last:
            return super()._dequantized(node, source)
        return source

    def _is_end(self, name: str) -> bool:
        return name in self.graph.outputs and not self.graph.consumers(name) and not self.half

    def _ends_in(self, node: Node | None) -> bool:
        """Return whether a node is a shuffle whose only use is as an output."""
        if not isinstance(node, DepthToSpace) or self.half:
            return False
        return self._is_end(node.output)

    def _leave(self, name: str) -> None:
        producer = self.graph.producer(name)
        scaled = isinstance(producer, Scale) and self._is_end(name)
        if scaled or self._ends_in(producer):
            return
        if self.half:
            super()._leave(name)
        else:
            ones = np.ones(self.graph.values[name].channels, np.float32)
            self._leave_flat(self._inner(name), name, ones)


class ChannelsLast(_WithRuns):
    """Writes channels last, for int8 convolutions, which ONNX Runtime does so.

    The Transposes around convolutions meet those that it puts there itself, and go. float32
    convolutions of squares that touch are matrix products; sums may be in another order.
    """

    rows = 1

    def __init__(self, graph: Graph, precision: Precision) -> None:
        super().__init__(graph, precision)
        self.least = _least_sizes(graph)

    def _inner(self, name: str) -> str:
        return name

    def _enter(self, name: str) -> None:
        pass

    def _leave(self, name: str) -> None:
        pass

    def _scale(self, node: Scale, source: str, output: str) -> None:
        factor = self._constant(f"{node.name}.factor", node.factor)
        self._op("Mul", [source, factor], output)

    def _convolution(self, node: Conv2d, source: str, output: str) -> None:
        if not _has_patches(node, self.least):
            made = f"{node.name}.made"
            super()._convolution(node, self._first(source, f"{node.name}.first"), made)
            self._last(made, output)
            return
        outputs, channels, side, _ = node.weight.shape
        if side > 1:
            source = self._patches(source, f"{node.name}.patches", side, channels)
        columns = node.weight.transpose(2, 3, 1, 0).reshape(-1, outputs)
        weight = self._weight(f"{node.name}.weight", columns)
        product = self._op("MatMul", [source, weight], f"{node.name}.product")
        self._op("Add", [product, self._bias(f"{node.name}.bias", node.bias)], output)

    def _quantized_convolution(self, node: QuantizedConv2d, source: str, output: str) -> None:
        if self.graph.values[node.output].coding is None and _has_patches(node, self.least):
            self._product_of_codes(node, source, output)
            return
        made = f"{node.name}.made"
        super()._quantized_convolution(node, self._first(source, f"{node.name}.first"), made)
        self._last(made, output)

    def _product_of_codes(self, node: QuantizedConv2d, source: str, output: str) -> None:
        """Multiply codes, in ONNX Runtime's own operator of which float32 comes out."""
        outputs, channels, side, _ = node.weight.shape
        if side > 1:
            source = self._patches(source, f"{node.name}.patches", side, channels)
        coding = self.graph.values[node.inputs[0]].coding
        assert coding is not None  # Graph has checked it
        columns = node.weight.transpose(2, 3, 1, 0).reshape(-1, outputs)
        given_scale, zero_point = self._coding(node.inputs[0])
        real = node.bias * (node.scale.astype(np.float64) * coding.scale)
        given = [
            source,
            self._constant(f"{node.name}.weight", columns),
            given_scale,
            self._constant(f"{node.name}.scale", node.scale),
            zero_point,
            self._constant(f"{node.name}.zero_point", np.zeros(outputs, np.int8)),
            self._constant(f"{node.name}.bias", real.astype(np.float32)),
        ]
        self._op("MatMulIntegerToFloat", given, output, domain=MICROSOFT)

    def _shuffle(self, node: DepthToSpace | SpaceToDepth, source: str, output: str) -> None:
        self._moved(node, source, output)


def _has_patches(node: Convolution, least: Mapping[str, Size]) -> bool:
    """Return whether a convolution takes squares that touch and leave no rest."""
    side = node.weight.shape[2]
    touching = node.weight.shape[2:] == (side, side) == node.stride
    if not touching or node.groups > 1 or any(node.padding):
        return False
    return side == 1 or all(size % side == 0 for size in least.get(node.inputs[0], (1,)))


def _read_as_patches(graph: Graph) -> set[str]:
    """Return inputs, and codes of inputs, that convolutions take squares of and nothing else."""
    found: set[str] = set()
    least = _least_sizes(graph)
    for name in graph.inputs:
        values, readers = {name}, graph.consumers(name)
        for codes in [node for node in readers if isinstance(node, Quantize)]:
            values.add(codes.output)
            readers = [n for n in readers if n is not codes] + graph.consumers(codes.output)
        if all(isinstance(n, Convolution) and _has_patches(n, least) for n in readers):
            found |= values
    return found


def _least_sizes(graph: Graph) -> dict[str, Size]:
    """Return sizes that those of all pictures a stage takes are multiples of, where that is so."""
    unit = HYPER_STRIDE if graph.stage == "analysis" else 1
    try:
        least, twice = (
            infer_sizes(graph, dict.fromkeys(graph.inputs, (side, side)))
            for side in (unit, 2 * unit)
        )
    except ConversionError:  # a kernel is larger
        return {}
    return {name: size for name, size in least.items() if twice[name] == (2 * size[0], 2 * size[1])}
