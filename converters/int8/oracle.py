"""Run an exact int8 graph in NumPy: what every runtime has to answer, to the bit.

Sums are those of integers, held in float64, which has room for 53 bits; the rounding is done once,
and a value on which two runtimes could disagree is an error, not a choice (docs/exact-int8.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array, Float64Array
from edgecodec.converters.graph.nodes import (
    Add,
    Conv2d,
    Convolution,
    DepthToSpace,
    Dequantize,
    Graph,
    Node,
    Quantize,
    QuantizedConv2d,
    Relu,
    Scale,
    Snap,
    SpaceToDepth,
)
from edgecodec.errors import ConversionError

CODES = (-128, 127)


def run_oracle(graph: Graph, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Return the outputs of a graph.

    Args:
        graph: float32 values between its int8 parts must stay exact, as `exact_int8` makes them.
        inputs: (1, H, W, C) float32 by name.

    Raises:
        ConversionError: a value is not exact in float32, or lies halfway between two codes.
    """
    values: dict[str, Float64Array] = {name: inputs[name][0].astype(np.float64) for name in inputs}
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    for i, node in enumerate(graph.nodes):
        made = _run(graph, node, [values[name] for name in node.inputs])
        if graph.values[node.output].coding is None and not np.array_equal(
            made.astype(np.float32), made
        ):
            raise ConversionError(f"{node.name} makes numbers beyond 24 bits", graph.stage)
        values[node.output] = made
        for name in set(node.inputs):
            if last[name] == i and name not in graph.outputs:
                del values[name]
    return {name: values[name].astype(np.float32)[None] for name in graph.outputs}


def _run(graph: Graph, node: Node, given: list[Float64Array]) -> Float64Array:
    coding = graph.values[node.output].coding
    match node:
        case Conv2d():
            return _convolve(node, given[0], node.weight) + node.bias
        case QuantizedConv2d():
            source = graph.values[node.inputs[0]].coding
            assert source is not None  # Graph has checked that
            total = _convolve(node, given[0] - source.zero_point, node.weight) + node.bias
            if coding is None:
                return total * (node.scale.astype(np.float64) * source.scale)
            factor = node.scale.astype(np.float64) * (source.scale / coding.scale)
            return _code(graph, node, total * factor, coding.zero_point)
        case Quantize():
            assert coding is not None
            return _code(graph, node, given[0] / coding.scale, coding.zero_point)
        case Dequantize():
            source = graph.values[node.inputs[0]].coding
            assert source is not None
            return (given[0] - source.zero_point) * source.scale
        case Scale():
            return given[0] * node.factor
        case Snap():
            return np.floor(np.clip(given[0], -node.limit, node.limit)) + node.offset
        case Relu():
            return np.maximum(given[0], 0.0)
        case Add():
            return given[0] + given[1]
        case DepthToSpace():
            return _depth_to_space(node, given[0])
        case SpaceToDepth():
            return _space_to_depth(node, given[0])


def _code(graph: Graph, node: Node, real: Float64Array, zero_point: int) -> Float64Array:
    low, high = CODES[0] - zero_point, CODES[1] - zero_point
    inside = (real > low - 1) & (real < high + 1)
    if (inside & (np.abs(real - np.floor(real) - 0.5) < 2.0**-22)).any():
        raise ConversionError(f"{node.name} rounds a value halfway between codes", graph.stage)
    return np.clip(np.rint(real), low, high) + zero_point


def _convolve(node: Convolution, x: Float64Array, weight: npt.NDArray[np.generic]) -> Float64Array:
    """Return the convolution of (H, W, I) without its bias, one product per kernel position."""
    top, left, bottom, right = node.padding
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    (down, across), (dy, dx) = node.stride, node.dilation
    outputs, per_group, rows, columns = weight.shape
    height = (x.shape[0] - dy * (rows - 1) - 1) // down + 1
    width = (x.shape[1] - dx * (columns - 1) - 1) // across + 1
    w = weight.astype(np.float64).reshape(
        node.groups, outputs // node.groups, per_group, rows, columns
    )
    total = np.zeros((node.groups, height * width, outputs // node.groups))
    for i in range(rows):
        for j in range(columns):
            seen = x[i * dy :: down, j * dx :: across][:height, :width]
            grouped = seen.reshape(height * width, node.groups, per_group).transpose(1, 0, 2)
            total += grouped @ w[:, :, :, i, j].transpose(0, 2, 1)
    return total.transpose(1, 0, 2).reshape(height, width, outputs)


def _depth_to_space(node: DepthToSpace, x: Float64Array) -> Float64Array:
    (h, w, c), r = x.shape, node.block
    if node.order == "crd":
        x = x.reshape(h, w, c // r**2, r, r).transpose(0, 3, 1, 4, 2)
    else:
        x = x.reshape(h, w, r, r, c // r**2).transpose(0, 2, 1, 3, 4)
    return x.reshape(h * r, w * r, c // r**2)


def _space_to_depth(node: SpaceToDepth, x: Float64Array) -> Float64Array:
    (h, w, c), r = x.shape, node.block
    x = x.reshape(h // r, r, w // r, r, c)
    x = x.transpose(0, 2, 4, 1, 3) if node.order == "crd" else x.transpose(0, 2, 1, 3, 4)
    return x.reshape(h // r, w // r, c * r * r)
