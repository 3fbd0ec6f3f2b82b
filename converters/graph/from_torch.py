"""Read a torch module into a `Graph`, through torch.export.

Only operations that every target has in the same form are taken, those that equal a few of them
exactly, and those that compute nothing; any other is refused by name and place, because a silent
approximation would show up as a wrong picture on somebody's phone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.exported import (
    ExportedModule,
    alpha_of,
    dtype,
    export,
    filled,
    op_name,
    padding_of,
    pair,
    place,
)
from edgecodec.converters.graph.graph import Graph, GraphBuilder, Value
from edgecodec.converters.graph.nodes import (
    Add,
    DepthToSpace,
    Padding,
    Relu,
    ReplicatePad,
    Size,
    SpaceToDepth,
)
from edgecodec.converters.graph.see_through import (
    CLAMPS,
    CONVERSIONS,
    SeenThrough,
    as_shuffle,
    clamp_bounds,
)
from edgecodec.converters.graph.simplify import scale, simplify
from edgecodec.converters.graph.transposed_convolution import as_convolution
from edgecodec.errors import ConversionError, UnsupportedOpError

SUPPORTED = (
    "conv2d",
    "conv_transpose2d",
    "relu",
    "leaky_relu",
    "prelu",
    "batch_norm",
    "add and sub",
    "pad by zeros before a convolution",
    "pad by replication",
    "pixel_shuffle",
    "pixel_unshuffle",
    "add, sub, mul and div by a constant",
    "what only moves elements, if that is a shuffle or a choice of channels",
)
_FROZEN_NORM = "_native_batch_norm_legit_no_training"


def graph_from_module(
    module: nn.Module,
    *,
    stage: str,
    inputs: Mapping[str, int],
    outputs: Sequence[str],
    size: Size = (64, 96),
) -> Graph:
    """Trace a module in evaluation mode.

    Args:
        module: takes NCHW float32 tensors, returns one or a tuple of them.
        stage: name for errors and files.
        inputs: public name and channels of each argument, in order.
        outputs: public name of each result, in order.
        size: height and width to trace with, not square, so that swapped sides show; the graph
            does not depend on it, but the module must accept it.

    Raises:
        UnsupportedOpError: the module does something the targets have no counterpart for.
        ConversionError: it cannot be traced, or its results are not as named.
    """
    exported = export(module, stage, inputs.values(), size)
    return simplify(_Reader(exported, stage, inputs, outputs).read())


class _Reader(GraphBuilder):
    """Walks an exported module once."""

    def __init__(
        self,
        exported: ExportedModule,
        stage: str,
        inputs: Mapping[str, int],
        outputs: Sequence[str],
    ) -> None:
        super().__init__(Value(name, channels) for name, channels in inputs.items())
        self.exported, self.stage = exported, stage
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.seen = SeenThrough(exported, stage)
        self.names: dict[torch.fx.Node, str] = {}
        self.padded: dict[torch.fx.Node, Padding] = {}

    def read(self) -> Graph:
        handlers: dict[str, Callable[[torch.fx.Node], None]] = {
            "conv2d": self._conv2d,
            "conv_transpose2d": self._conv_transpose2d,
            "relu": self._relu,
            **dict.fromkeys(("leaky_relu", "prelu"), self._leaky_relu),
            "threshold": self._threshold,
            "maximum": self._maximum,
            **dict.fromkeys(CLAMPS, self._clamp),
            **dict.fromkeys(("pad", "constant_pad_nd", "replication_pad2d"), self._pad),
            "neg": self._negative,
            **dict.fromkeys(("batch_norm", _FROZEN_NORM), self._batch_norm),
            **dict.fromkeys(("add", "sub", "rsub"), self._add),
            **dict.fromkeys(("mul", "div"), self._by_constant),
            **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), self._shuffle),
        }
        results = self._results()
        self.names.update(zip(self.exported.inputs, self.inputs, strict=True))
        for node in self.seen.operations:
            op = op_name(node)
            self.names[node] = results.get(node, node.name)
            if node in self.seen.moved:
                if any(reader not in self.seen.moved for reader in self.seen.readers(node)):
                    self._move(node)
            elif op in handlers:
                handlers[op](node)
            elif op in CONVERSIONS:
                raise self._unsupported(node, f"{op} ({dtype(node)})")
            else:
                raise self._unsupported(node, op.removeprefix("wrap_with_"))
        return Graph(self.stage, self.values, self.inputs, self.outputs, tuple(self.nodes))

    def _unsupported(self, node: torch.fx.Node, op: str) -> UnsupportedOpError:
        return UnsupportedOpError(op, self.stage, SUPPORTED, place(node))

    def _results(self) -> dict[torch.fx.Node, str]:
        (output,) = (node for node in self.exported.graph.nodes if node.op == "output")
        found = [self.seen.origin(value) for value in output.args[0]]
        if len({n for n in found if isinstance(n, torch.fx.Node)}) != len(self.outputs):
            raise ConversionError(
                f"returns {len(found)} results, expected {', '.join(self.outputs)}", self.stage
            )
        return dict(zip(found, self.outputs, strict=True))

    def _source(self, node: torch.fx.Node, argument: object) -> str:
        """Return the value an argument is; a constant there is another operation."""
        origin = self.seen.origin(argument)
        if origin not in self.names:
            raise self._unsupported(node, f"{op_name(node)} of a constant")
        if origin in self.padded:
            raise self._unsupported(origin, "pad by zeros of what is no convolution alone")
        return self.names[origin]

    def _weights(self, node: torch.fx.Node) -> tuple[Float32Array, Float32Array | None]:
        weight, bias = (self.seen.numbers(a) for a in filled(node, [None, None, None])[1:3])
        if weight is None:
            raise self._unsupported(node, f"{op_name(node)} with a computed weight")
        return weight, bias

    def _conv2d(self, node: torch.fx.Node) -> None:
        args = filled(node, [None, None, None, [1, 1], [0, 0], [1, 1], 1])
        weight, bias = self._weights(node)
        dilation = pair(args[5])
        padding = padding_of(args[4], weight.shape[2:], dilation)
        pad = self.seen.origin(args[0])
        if pad in self.padded:
            zeros = self.padded[pad]
            padding = tuple(a + b for a, b in zip(padding, zeros, strict=True))  # type: ignore[assignment]
            source = self._source(node, pad.args[0])
        else:
            source = self._source(node, args[0])
        made = Conv2d(
            self._layer(node, args[1]),
            (source,),
            self.names[node],
            weight,
            np.zeros(weight.shape[0], np.float32) if bias is None else bias,
            pair(args[3]),
            padding,
            dilation,
            int(args[6]),
        )
        self.emit(made, weight.shape[0])

    def _conv_transpose2d(self, node: torch.fx.Node) -> None:
        """Read it as a convolution and a pixel shuffle."""
        args = filled(node, [None, None, None, [1, 1], [0, 0], [0, 0], 1, [1, 1]])
        weight, bias = self._weights(node)
        stride, padding, extra = (pair(args[i]) for i in (3, 4, 5))
        sizes = [k + e - 2 * p for k, e, p in zip(weight.shape[2:], extra, padding, strict=True)]
        block, groups = stride[0], int(args[6])
        if stride[0] != stride[1] or sizes != [*stride] or pair(args[7]) != (1, 1):
            raise self._unsupported(node, "conv_transpose2d to another size than input * stride")
        weight, around = as_convolution(weight, block, padding, groups)
        if bias is None:
            bias = np.zeros(len(weight) // block**2, np.float32)
        deep, output = f"{node.name}.deep", self.names[node]
        plain = Conv2d(
            deep,
            (self._source(node, args[0]),),
            deep if block > 1 else output,
            weight,
            np.repeat(bias, block**2),
            padding=around,
            groups=groups,
        )
        self.emit(plain, len(weight))
        if block > 1:
            self.emit(DepthToSpace(node.name, (deep,), output, block), len(bias))

    def _layer(self, node: torch.fx.Node, weight: torch.fx.Node) -> str:
        """Return what the module calls a layer; of one that runs twice, the first time only."""
        path = self.exported.owners.get(weight, node.name).removesuffix(".weight")
        return node.name if any(made.name == path for made in self.nodes) else path

    def _relu(self, node: torch.fx.Node, argument: object = None) -> None:
        """Read it as the larger one of 0 and an argument, its first if none is named."""
        source = self._source(node, node.args[0] if argument is None else argument)
        self.emit(Relu(node.name, (source,), self.names[node]), self._channels(node))

    def _leaky_relu(self, node: torch.fx.Node) -> None:
        """Read it as `slope * x + (1 - slope) * relu(x)`, slopes in all or per channel."""
        source, channels = self._source(node, node.args[0]), self._channels(node)
        slopes = self.seen.constant(filled(node, [None, 0.01])[1])
        if slopes is None:
            raise self._unsupported(node, f"{op_name(node)} with a computed slope")
        slope = np.broadcast_to(slopes.double().numpy().reshape(-1), channels)
        positive, steep, flat = (f"{node.name}.{part}" for part in ("positive", "steep", "flat"))
        self.emit(Relu(positive, (source,), positive), channels)
        zeros = np.zeros(channels, np.float32)
        for name, read, factor in ((steep, positive, 1 - slope), (flat, source, slope)):
            self.emit(scale(name, read, name, factor.astype(np.float32), zeros), channels)
        self.emit(Add(node.name, (flat, steep), self.names[node]), channels)

    def _threshold(self, node: torch.fx.Node) -> None:
        if tuple(node.args[1:]) != (0, 0):
            raise self._unsupported(node, "threshold other than 0")
        self._relu(node)

    def _maximum(self, node: torch.fx.Node) -> None:
        value, other = sorted(node.args[:2], key=lambda argument: argument in self.seen.constants)
        constant = self.seen.constant(other)
        if constant is None or constant.any():
            raise self._unsupported(node, "maximum of other than a value and 0")
        self._relu(node, value)

    def _clamp(self, node: torch.fx.Node) -> None:
        if clamp_bounds(node) == (0.0, np.inf):
            self._relu(node)
            return
        raise self._unsupported(
            node,
            f"{op_name(node)} other than to 0 and above, or to all of 0..255 at the very end of a "
            "synthesis",
        )

    def _pad(self, node: torch.fx.Node) -> None:
        """Note zeros, which the convolution that reads them adds; make a node of replication."""
        amounts: Any = node.args[1]
        mode, value = filled(node, [None, None, "constant", 0.0])[2:4]
        mode = "replicate" if op_name(node) == "replication_pad2d" else mode
        if op_name(node) == "constant_pad_nd":
            mode, value = "constant", filled(node, [None, None, 0.0])[2]
        left, right, top, bottom = (*amounts, 0, 0, 0, 0)[:4]
        if len(amounts) > 4 or min(amounts, default=0) < 0:
            raise self._unsupported(node, f"pad by {amounts}")
        padding = (top, left, bottom, right)
        if mode == "replicate":
            source = self._source(node, node.args[0])
            made = ReplicatePad(node.name, (source,), self.names[node], padding)
            self.emit(made, self._channels(node))
        elif mode == "constant" and not value:
            self.padded[node] = padding
            if any(op_name(reader) != "conv2d" for reader in self.seen.readers(node)):
                raise self._unsupported(node, "pad by zeros of what no convolution alone reads")
        else:
            raise self._unsupported(
                node, f"pad ({mode})" if mode != "constant" else "pad by a number"
            )

    def _negative(self, node: torch.fx.Node) -> None:
        ones = np.ones(self._channels(node))
        self._scale(node, node.args[0], -ones, 0 * ones)

    def _batch_norm(self, node: torch.fx.Node) -> None:
        frozen = op_name(node) == _FROZEN_NORM
        weight, bias, mean, variance = (self.seen.numbers(argument) for argument in node.args[1:5])
        if mean is None or variance is None or not (frozen or node.args[5] is False):
            raise self._unsupported(node, "batch_norm by the statistics of its input")
        epsilon: Any = node.args[6 if frozen else 7]
        factor = 1.0 / np.sqrt(variance.astype(np.float64) + float(epsilon))
        factor = factor if weight is None else factor * weight
        offset = -mean * factor if bias is None else bias - mean * factor
        self._scale(node, node.args[0], factor, offset)

    def _scale(
        self, node: torch.fx.Node, argument: object, factor: np.ndarray, offset: np.ndarray
    ) -> None:
        source = self._source(node, argument)
        numbers = (factor.astype(np.float32), offset.astype(np.float32))
        self.emit(scale(node.name, source, self.names[node], *numbers), len(factor))

    def _add(self, node: torch.fx.Node) -> None:
        if any(self.seen.constant(argument) is not None for argument in node.args[:2]):
            self._by_constant(node)
            return
        op, operands = op_name(node), list(node.args[:2])
        operands = operands[::-1] if op == "rsub" else operands
        shapes = {tuple(argument.meta["val"].shape) for argument in node.all_input_nodes}
        if len(shapes) != 1:
            raise self._unsupported(node, f"{op} of different shapes")
        sources = [self._source(node, argument) for argument in operands]
        factor = alpha_of(node) if op == "add" else -alpha_of(node)
        channels = self._channels(node)
        if factor != 1.0:
            name, numbers = f"{node.name}.second", np.full(channels, factor, np.float32)
            self.emit(scale(name, sources[1], name, numbers, np.zeros_like(numbers)), channels)
            sources[1] = name
        self.emit(Add(node.name, (sources[0], sources[1]), self.names[node]), channels)

    def _by_constant(self, node: torch.fx.Node) -> None:
        """Read a sum, difference, product or quotient with a number, or a number per channel."""
        op, (left, right) = op_name(node), node.args[:2]
        if op == "rsub":
            op, left, right = "sub", right, left
        first, second = self.seen.constant(left), self.seen.constant(right)
        if (first is None) == (second is None) or (op == "div" and second is None):
            raise self._unsupported(node, f"{op} of two values")
        others = [name for name in node.kwargs if name != "alpha"]
        if others:
            raise self._unsupported(node, f"{op} with {', '.join(others)}")
        alpha = alpha_of(node)
        constant, value = (first, right) if second is None else (second, left)
        assert constant is not None  # one of the two is none
        try:
            row = torch.broadcast_to(constant, (1, self._channels(node), 1, 1))
        except RuntimeError as exc:
            name = f"{op} with a constant that is no number per channel"
            raise self._unsupported(node, name) from exc
        numbers = row.reshape(-1).double().numpy()
        factor, offset = np.ones_like(numbers), np.zeros_like(numbers)
        if op in ("mul", "div"):
            with np.errstate(divide="ignore"):  # infinite weights are refused by their name
                factor = numbers if op == "mul" else 1.0 / numbers
        else:  # alpha belongs to the second operand
            sign = alpha if op == "add" else -alpha
            if second is not None:
                offset = sign * numbers
            else:
                factor, offset = sign * factor, numbers
        self._scale(node, value, factor, offset)

    def _channels(self, node: torch.fx.Node) -> int:
        return int(node.meta["val"].shape[1])

    def _move(self, node: torch.fx.Node) -> None:
        """Make a choice of channels, a shuffle, or both of what moves elements."""
        origin, moved = self.seen.moved[node]
        shape = origin.meta["val"].shape
        found = as_shuffle(moved, shape) if isinstance(moved, Tensor) else None
        if found is None:
            raise self._unsupported(
                node, f"{op_name(node)} that is neither a shuffle nor a choice of channels"
            )
        block, channels = found
        source, output, deep = self._source(node, origin), self.names[node], shape[1]
        if block < 0:
            deep *= block**2
            made = output if channels == [*range(deep)] else f"{node.name}.deep"
            self.emit(SpaceToDepth(node.name, (source,), made, -block), deep)
            source = made
        if channels != [*range(deep)]:
            weight = np.eye(deep, dtype=np.float32)[channels][:, :, None, None]
            made = output if block <= 1 else f"{node.name}.deep"
            bias = np.zeros(len(channels), np.float32)
            self.emit(Conv2d(f"{node.name}.chosen", (source,), made, weight, bias), len(bias))
            source = made
        if block > 1:
            self.emit(DepthToSpace(node.name, (source,), output, block), self._channels(node))

    def _shuffle(self, node: torch.fx.Node) -> None:
        kind = DepthToSpace if op_name(node) == "pixel_shuffle" else SpaceToDepth
        source, block = self._source(node, node.args[0]), operator.index(node.args[1])  # type: ignore[arg-type]
        self.emit(kind(node.name, (source,), self.names[node], block), self._channels(node))
