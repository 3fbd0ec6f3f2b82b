"""Build a TFLite flatbuffer with one subgraph, through the schema's object API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

_ALIGNMENT = 16  # what the schema's force_align asks for and its Python code does not do
_LAST_OLD_CODE = 127  # operator codes had eight bits once; old readers look there first
_SIGNATURE = "serving_default"


class Kind(Enum):
    """Operators used; their name is the schema's."""

    ADD = "ADD"
    CONCATENATION = "CONCATENATION"
    CONV_2D = "CONV_2D"
    DEPTHWISE_CONV_2D = "DEPTHWISE_CONV_2D"
    DEPTH_TO_SPACE = "DEPTH_TO_SPACE"
    DEQUANTIZE = "DEQUANTIZE"
    FLOOR = "FLOOR"
    MAXIMUM = "MAXIMUM"
    MINIMUM = "MINIMUM"
    MUL = "MUL"
    PAD = "PAD"
    QUANTIZE = "QUANTIZE"
    RELU = "RELU"
    SPACE_TO_DEPTH = "SPACE_TO_DEPTH"
    STRIDED_SLICE = "STRIDED_SLICE"


_OPTIONS = {
    Kind.ADD: "AddOptions",
    Kind.CONCATENATION: "ConcatenationOptions",
    Kind.CONV_2D: "Conv2DOptions",
    Kind.DEPTHWISE_CONV_2D: "DepthwiseConv2DOptions",
    Kind.DEPTH_TO_SPACE: "DepthToSpaceOptions",
    Kind.DEQUANTIZE: "DequantizeOptions",
    Kind.MAXIMUM: "MaximumMinimumOptions",
    Kind.MINIMUM: "MaximumMinimumOptions",
    Kind.MUL: "MulOptions",
    Kind.PAD: "PadOptions",
    Kind.QUANTIZE: "QuantizeOptions",
    Kind.SPACE_TO_DEPTH: "SpaceToDepthOptions",
    Kind.STRIDED_SLICE: "StridedSliceOptions",
}
_TYPES = {"float32": "FLOAT32", "float16": "FLOAT16", "int8": "INT8", "int32": "INT32"}
_VERSIONS = {
    (Kind.CONCATENATION, "INT8"): 2,
    (Kind.CONV_2D, "INT8"): 3,
    (Kind.DEPTHWISE_CONV_2D, "INT8"): 3,
    (Kind.DEQUANTIZE, "INT8"): 2,
    (Kind.DEQUANTIZE, "FLOAT16"): 3,
    (Kind.PAD, "INT8"): 2,
    (Kind.SPACE_TO_DEPTH, "INT8"): 2,
    (Kind.STRIDED_SLICE, "INT8"): 2,
}
"""First version that takes a type as its first input, where that is not 1.

DEPTH_TO_SPACE of int8 is 2 by TFLite's own rules; its kernels take int8 whatever the version, and
the set of reference kernels has version 1 alone.
"""


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]  # the package has no types
    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
        """Start a vector at a multiple of 16 bytes, as kernels that map the file expect."""
        return super().StartVector(elemSize, numElems, max(alignment, _ALIGNMENT))


class ModelBuilder:
    """Collects tensors and operators; indexes are those of the subgraph's tensors.

    Attributes:
        used: name of each operator, in order.
    """

    def __init__(self, description: str) -> None:
        self.used: list[str] = []
        self._codes: dict[tuple[Kind, int], int] = {}
        self._buffers = [schema.BufferT()]  # the first one is empty by convention
        self._tensors: list[Any] = []
        self._types: list[str] = []
        self._operators: list[Any] = []
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = description
        self._model.metadata = []

    def activation(
        self,
        name: str,
        shape: Sequence[int],
        *,
        fixed: bool = False,
        coding: tuple[float, int] | None = None,
    ) -> int:
        """Add a tensor without content.

        Args:
            name: of the tensor.
            shape: height and width of which stay free unless `fixed`.
            fixed: whether no dimension is free.
            coding: scale and zero point of int8; None is float32.
        """
        signature = None if fixed else [shape[0], -1, -1, shape[3]]
        if coding is None:
            return self._tensor(name, shape, "float32", 0, signature)
        tensor = self._tensor(name, shape, "int8", 0, signature)
        self._quantize(tensor, [coding[0]], [coding[1]], 0)
        return tensor

    def constant(
        self,
        name: str,
        array: npt.NDArray[Any],
        *,
        scale: npt.NDArray[np.float32] | None = None,
        axis: int = 0,
    ) -> int:
        """Add a tensor with content: float32, float16, int8 or int32.

        Args:
            name: of the tensor.
            array: its content.
            scale: what one step of each channel stands for, zero meaning zero.
            axis: that of the channels.
        """
        buffer = self._buffer(np.ascontiguousarray(array).tobytes())
        tensor = self._tensor(name, array.shape, array.dtype.name, buffer, None)
        if scale is not None:
            self._quantize(tensor, scale, np.zeros(len(scale)), axis)
        return tensor

    def _quantize(
        self, tensor: int, scale: npt.ArrayLike, zero_point: npt.ArrayLike, axis: int
    ) -> None:
        parameters = schema.QuantizationParametersT()
        parameters.scale = np.asarray(scale, np.float32)
        parameters.zeroPoint = np.asarray(zero_point, np.int64)
        parameters.quantizedDimension = axis
        self._tensors[tensor].quantization = parameters

    def _buffer(self, data: bytes) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def _tensor(
        self, name: str, shape: Sequence[int], dtype: str, buffer: int, signature: list[int] | None
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.buffer = name, buffer
        tensor.shape, tensor.shapeSignature = list(shape), signature
        tensor.type = getattr(schema.TensorType, _TYPES[dtype])
        self._types.append(_TYPES[dtype])
        tensor.hasRank = True
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def metadata(self, name: str, data: bytes) -> None:
        """Add a named blob to the model."""
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(data)
        self._model.metadata.append(entry)

    def _operator(
        self,
        kind: Kind,
        inputs: Sequence[int],
        output: int,
        *,
        version: int = 1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        operator = schema.OperatorT()
        version = max(version, _VERSIONS.get((kind, self._types[inputs[0]]), 1))
        operator.opcodeIndex = self._codes.setdefault((kind, version), len(self._codes))
        operator.inputs, operator.outputs = list(inputs), [output]
        if kind in _OPTIONS:
            content = getattr(schema, f"{_OPTIONS[kind]}T")()
            for name, value in (options or {}).items():
                setattr(content, name, value)
            operator.builtinOptions = content
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, _OPTIONS[kind])
        self._operators.append(operator)
        self.used.append(kind.value)

    def simple(self, kind: Kind, inputs: Sequence[int], output: int) -> None:
        """Add an operator without options."""
        self._operator(kind, inputs, output)

    def add(self, inputs: Sequence[int], output: int, *, relu: bool) -> None:
        """Add a sum."""
        options = {"fusedActivationFunction": _activation(relu=relu)}
        self._operator(Kind.ADD, inputs, output, options=options)

    def concatenate(self, inputs: Sequence[int], output: int, axis: int) -> None:
        """Add CONCATENATION."""
        self._operator(Kind.CONCATENATION, inputs, output, options={"axis": axis})

    def edge(self, source: int, output: int, axis: int, *, last: bool) -> None:
        """Add the STRIDED_SLICE that is the first or last row (axis 1) or column (axis 2)."""
        own = 1 << axis
        begin, end = np.zeros(4, np.int32), np.zeros(4, np.int32)
        begin[axis], end[axis] = (-1, 0) if last else (0, 1)
        names = (f"edge{output}.{what}" for what in ("begin", "end", "strides"))
        steps = np.ones(4, np.int32)
        given = [self.constant(next(names), array) for array in (begin, end, steps)]
        # A mask is of the axes that begin or end where the feature map does.
        options = {"beginMask": 15 - own, "endMask": 15 if last else 15 - own}
        self._operator(Kind.STRIDED_SLICE, [source, *given], output, options=options)

    def shuffle(self, kind: Kind, source: int, output: int, block: int) -> None:
        """Add DEPTH_TO_SPACE or SPACE_TO_DEPTH."""
        self._operator(kind, [source], output, options={"blockSize": block})

    def convolution(
        self,
        inputs: Sequence[int],
        output: int,
        *,
        same: bool,
        stride: tuple[int, int],
        dilation: tuple[int, int],
        relu: bool,
        multiplier: int | None,
        grouped: bool,
    ) -> None:
        """Add a convolution.

        Args:
            inputs: feature map, weight (OHWI, or 1HWO for a depthwise one), bias.
            output: feature map.
            same: SAME padding, otherwise VALID.
            stride: down and right.
            dilation: down and right.
            relu: fuse a ReLU.
            multiplier: outputs per input of a depthwise convolution, None for any other.
            grouped: whether a convolution that is not depthwise has groups.
        """
        options: dict[str, Any] = {
            "padding": schema.Padding.SAME if same else schema.Padding.VALID,
            "strideH": stride[0],
            "strideW": stride[1],
            "dilationHFactor": dilation[0],
            "dilationWFactor": dilation[1],
            "fusedActivationFunction": _activation(relu=relu),
        }
        if multiplier is None:
            # Groups follow from the shapes alone; version 6 says that the kernel must know that.
            version = 6 if grouped else 1
            self._operator(Kind.CONV_2D, inputs, output, version=version, options=options)
            return
        options["depthMultiplier"] = multiplier
        version = 1 if dilation == (1, 1) else 2
        self._operator(Kind.DEPTHWISE_CONV_2D, inputs, output, version=version, options=options)

    def finish(self, name: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
        """Return the file.

        Args:
            name: of the subgraph.
            inputs: tensors by name, which is also theirs in the signature.
            outputs: likewise.
        """
        subgraph = schema.SubGraphT()
        subgraph.name = name
        subgraph.tensors, subgraph.operators = self._tensors, self._operators
        subgraph.inputs, subgraph.outputs = list(inputs.values()), list(outputs.values())
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = _SIGNATURE, 0
        signature.inputs = [_tensor_map(*item) for item in inputs.items()]
        signature.outputs = [_tensor_map(*item) for item in outputs.items()]
        self._model.subgraphs, self._model.signatureDefs = [subgraph], [signature]
        self._model.buffers = self._buffers
        self._model.operatorCodes = [_code(*key) for key in self._codes]
        builder = _AlignedBuilder(1024)
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _activation(*, relu: bool) -> int:
    kind = schema.ActivationFunctionType
    return int(kind.RELU if relu else kind.NONE)


def _tensor_map(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


def _code(kind: Kind, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind.value)
    code.deprecatedBuiltinCode = min(code.builtinCode, _LAST_OLD_CODE)
    code.version = version
    return code
