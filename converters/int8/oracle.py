"""Run an exact int8 graph in NumPy: what every runtime has to answer, to the bit.

Sums are those of integers, held in float64, which has room for 53 bits; the rounding is done once,
and a value on which two runtimes could disagree is an error, not a choice (docs/exact-int8.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgecodec.arrays import Float32Array, Float64Array
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Coding, Node
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
        coding = graph.values[node.output].coding
        scales = [_scale(graph.values[name].coding) for name in node.inputs]
        made = node.run([values[name] for name in node.inputs], scales, _scale(coding))
        if coding is not None:
            made = _rounded(graph, node, made, coding)
        elif not np.array_equal(made.astype(np.float32), made):
            raise ConversionError(f"{node.name} makes numbers beyond 24 bits", graph.stage)
        values[node.output] = made
        for name in set(node.inputs):
            if last[name] == i and name not in graph.outputs:
                del values[name]
    return {name: values[name].astype(np.float32)[None] for name in graph.outputs}


def _scale(coding: Coding | None) -> float:
    return 1.0 if coding is None else coding.scale


def _rounded(graph: Graph, node: Node, real: Float64Array, coding: Coding) -> Float64Array:
    """Return codes less their zero point."""
    low, high = (code - coding.zero_point for code in CODES)
    inside = (real > low - 1) & (real < high + 1)
    if (inside & (np.abs(real - np.floor(real) - 0.5) < 2.0**-22)).any():
        raise ConversionError(f"{node.name} rounds a value halfway between codes", graph.stage)
    return np.clip(np.rint(real), low, high)
