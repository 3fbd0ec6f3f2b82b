"""The network between torch and the targets: a typed list of nodes with NumPy weights.

Values are feature maps of one image. Their channel count is fixed, height and width are not:
`infer_sizes` gives them for a size of the input. Weights are float32, output channels first
(O, I / groups, kh, kw). Values are float32, or int8 codes that stand for real numbers; nodes of
their own lead from one to the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array
from edgecodec.errors import ConversionError

Size: TypeAlias = tuple[int, int]
Order: TypeAlias = Literal["crd", "dcr"]
"""Channel order of a shuffle. With C channels on the fine side and a block of r, position (i, j)
of a block comes from channel c * r * r + i * r + j (crd, torch) or (i * r + j) * C + c (dcr,
TFLite)."""


@dataclass(frozen=True)
class Coding:
    """int8 codes that stand for real numbers: real = scale * (code - zero_point).

    Attributes:
        scale: of all channels.
        zero_point: 0, or -128 for what is never negative.
    """

    scale: float
    zero_point: int = 0


@dataclass(frozen=True)
class Value:
    """A feature map.

    Attributes:
        name: unique in its graph; inputs and outputs of a graph carry their public name.
        channels: number of channels.
        coding: how its codes map to numbers; None is float32.
    """

    name: str
    channels: int
    coding: Coding | None = None


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Cross-correlation with zero padding, as `torch.nn.functional.conv2d`.

    Attributes:
        name: unique in its graph.
        inputs: name of the value read.
        output: name of the value made.
        weight: (O, I / groups, kh, kw) float32.
        bias: (O,) float32.
        stride: down and right.
        padding: rows and columns of zeros above, left, below, right.
        dilation: down and right.
        groups: blocks of channels that do not see each other.
    """

    name: str
    inputs: tuple[str]
    output: str
    weight: Float32Array
    bias: Float32Array
    stride: Size = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Size = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class QuantizedConv2d:
    """Convolution of int8 codes, of which int8 codes or float32 come out.

    With sum = bias + sum over weight * (code - zero point), padding counting as real zero, codes
    are clip(zero_point' + round(sum * scale * scale_in / scale_out), -128, 127), where scale_in and
    scale_out are those of the values and zero_point' is that of the output: -128 there makes it a
    ReLU. An output without a coding is sum * scale * scale_in.

    Attributes:
        name: unique in its graph.
        inputs: name of the value read, which has a coding.
        output: name of the value made.
        weight: (O, I / groups, kh, kw) int8.
        bias: (O,) int32.
        scale: (O,) float32, of the weights.
        stride: down and right.
        padding: rows and columns of zeros above, left, below, right.
        dilation: down and right.
        groups: blocks of channels that do not see each other.
    """

    name: str
    inputs: tuple[str]
    output: str
    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    scale: Float32Array
    stride: Size = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Size = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Quantize:
    """float32 to the coding of the output: clip(zero_point + round(x / scale), -128, 127)."""

    name: str
    inputs: tuple[str]
    output: str


@dataclass(frozen=True)
class Dequantize:
    """Codes to the float32 they stand for."""

    name: str
    inputs: tuple[str]
    output: str


@dataclass(frozen=True, eq=False)
class Scale:
    """Product with a factor per channel.

    Attributes:
        factor: (C,) float32.
    """

    name: str
    inputs: tuple[str]
    output: str
    factor: Float32Array


@dataclass(frozen=True)
class Snap:
    """floor(clip(x, -limit, limit)) + offset: half-integers of bounded magnitude, or integers.

    Attributes:
        offset: 0.5, or 0 where whoever reads it adds the half.
    """

    name: str
    inputs: tuple[str]
    output: str
    limit: float
    offset: float = 0.5


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""

    name: str
    inputs: tuple[str]
    output: str


@dataclass(frozen=True)
class Add:
    """Sum of two values of one shape."""

    name: str
    inputs: tuple[str, str]
    output: str


@dataclass(frozen=True)
class DepthToSpace:
    """Pixel shuffle: `block` * `block` channels become a square of positions."""

    name: str
    inputs: tuple[str]
    output: str
    block: int
    order: Order = "crd"


@dataclass(frozen=True)
class SpaceToDepth:
    """Pixel unshuffle: a square of positions becomes `block` * `block` channels."""

    name: str
    inputs: tuple[str]
    output: str
    block: int
    order: Order = "crd"


Convolution: TypeAlias = Conv2d | QuantizedConv2d
Node: TypeAlias = (
    Convolution | Relu | Add | DepthToSpace | SpaceToDepth | Quantize | Dequantize | Scale | Snap
)


@dataclass(frozen=True, eq=False)
class Graph:
    """One stage. Nodes are in an order in which they can run.

    Attributes:
        stage: what errors and files call it.
        values: every feature map by name.
        inputs: names of the values given.
        outputs: names of the values wanted; each is made by a node.
        nodes: the operations.

    Raises:
        ConversionError: the parts do not fit together.
    """

    stage: str
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        """Check names, order and channel counts."""
        known = set(self.inputs)
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in known]
            if missing or node.output in known or node.output not in self.values:
                raise ConversionError(f"node {node.name} reads or writes a wrong value", self.stage)
            self._check_channels(node)
            self._check_codings(node)
            known.add(node.output)
        if not set(self.outputs) <= known - set(self.inputs):
            raise ConversionError("an output is not made by any node", self.stage)

    def _check_channels(self, node: Node) -> None:
        given = [self.values[name].channels for name in node.inputs]
        found = self.values[node.output].channels
        expected = given[0]
        fits = True
        match node:
            case Conv2d() | QuantizedConv2d():
                expected = node.weight.shape[0]
                fits = given[0] == node.weight.shape[1] * node.groups
                fits = fits and expected % node.groups == 0 and node.bias.shape == (expected,)
                kinds = ("f4", "f4") if isinstance(node, Conv2d) else ("i1", "i4")
                fits = fits and (node.weight.dtype.str[1:], node.bias.dtype.str[1:]) == kinds
            case Scale():
                fits = node.factor.shape == (expected,)
            case Add():
                fits = given[0] == given[1]
            case DepthToSpace():
                expected, rest = divmod(given[0], node.block**2)
                fits = rest == 0
            case SpaceToDepth():
                expected = given[0] * node.block**2
        if not fits or found != expected:
            raise ConversionError(
                f"node {node.name}: channels {given} -> {found} do not fit", self.stage
            )

    def _check_codings(self, node: Node) -> None:
        """Codes go into and come out of the nodes made for them, and through shuffles."""
        given = {self.values[name].coding for name in node.inputs}
        made = self.values[node.output].coding
        match node:
            case Quantize():
                fits = given == {None} and made is not None
            case Dequantize():
                fits = None not in given and made is None
            case QuantizedConv2d():
                fits = None not in given
            case DepthToSpace() | SpaceToDepth():
                fits = given == {made}
            case _:
                fits = given == {None} and made is None
        if not fits:
            raise ConversionError(f"node {node.name} reads or makes the wrong kind", self.stage)

    @property
    def has_codes(self) -> bool:
        """Whether any value is int8."""
        return any(value.coding is not None for value in self.values.values())

    def consumers(self, value: str) -> list[Node]:
        """Return the nodes that read a value."""
        return [node for node in self.nodes if value in node.inputs]

    def producer(self, value: str) -> Node | None:
        """Return the node that makes a value, None for an input."""
        return next((node for node in self.nodes if node.output == value), None)

    def weights_digest(self) -> bytes:
        """Return a SHA-256 over structure and weights, whatever the nodes are called."""
        numbers: dict[str, int] = {name: i for i, name in enumerate(self.inputs)}
        digest = hashlib.sha256()
        for node in self.nodes:
            numbers[node.output] = len(numbers)
            parts: list[object] = [type(node).__name__, [numbers[name] for name in node.inputs]]
            arrays: tuple[npt.NDArray[Any], ...] = ()
            match node:
                case Conv2d() | QuantizedConv2d():
                    arrays = (node.weight, node.bias)
                    parts += [node.stride, node.padding, node.dilation, node.groups]
                    parts += [array.shape for array in arrays]
                    if isinstance(node, QuantizedConv2d):
                        arrays += (node.scale,)
                case Scale():
                    arrays = (node.factor,)
                case Snap():
                    parts += [float(node.limit), float(node.offset)]
                case DepthToSpace() | SpaceToDepth():
                    parts += [node.block, node.order]
            coding = self.values[node.output].coding
            if coding is not None:
                parts.append((float(coding.scale), coding.zero_point))
            digest.update(repr(parts).encode())
            for array in arrays:
                digest.update(np.asarray(array, array.dtype.newbyteorder("<"), order="C").tobytes())
        digest.update(repr([numbers[name] for name in self.outputs]).encode())
        return digest.digest()


def is_depthwise(node: Convolution) -> bool:
    """Return whether every group has a single input channel, and there are several groups."""
    return node.groups > 1 and node.weight.shape[1] == 1


def fits_half(array: Float32Array) -> bool:
    """Return whether float16 holds every element exactly."""
    with np.errstate(over="ignore"):  # a value beyond half becomes infinite and then differs
        return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array))


def to_half(array: Float32Array, what: str, stage: str) -> npt.NDArray[np.float16]:
    """Round to float16.

    Raises:
        ConversionError: an element is beyond the range of float16.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ConversionError(f"{what} is beyond the range of fp16; convert to fp32 alone", stage)
    return half


def infer_sizes(graph: Graph, sizes: Mapping[str, Size]) -> dict[str, Size]:
    """Return height and width of every value.

    Args:
        graph: the stage.
        sizes: height and width of each input.

    Raises:
        ConversionError: an input is missing, or a node cannot take the size it gets.
    """
    known = dict(sizes)
    for node in graph.nodes:
        try:
            given = [known[name] for name in node.inputs]
        except KeyError as exc:
            raise ConversionError(f"no size given for {exc.args[0]}", graph.stage) from exc
        known[node.output] = _output_size(graph.stage, node, given)
    return known


def _output_size(stage: str, node: Node, given: list[Size]) -> Size:
    height, width = given[0]
    fits = True
    match node:
        case Conv2d() | QuantizedConv2d():
            top, left, bottom, right = node.padding
            kernel = [
                d * (k - 1) + 1 for k, d in zip(node.weight.shape[2:], node.dilation, strict=True)
            ]
            height = (height + top + bottom - kernel[0]) // node.stride[0] + 1
            width = (width + left + right - kernel[1]) // node.stride[1] + 1
            fits = height > 0 and width > 0
        case Add():
            fits = given[0] == given[1]
        case DepthToSpace():
            height, width = height * node.block, width * node.block
        case SpaceToDepth():
            fits = height % node.block == 0 and width % node.block == 0
            height, width = height // node.block, width // node.block
    if not fits:
        raise ConversionError(f"node {node.name} cannot take the size {given}", stage)
    return height, width
