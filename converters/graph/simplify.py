"""Equal graphs with less to do.

Networks from elsewhere normalise: `x / 255`, a mean subtracted, a batch norm. Such a step is read
as a convolution of its own, 1x1 and one channel to one channel; here most of them vanish in the
convolutions next to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.graph import Graph, Value
from edgecodec.converters.graph.nodes import (
    DepthToSpace,
    Node,
    Rearrangement,
    Relu,
    ReplicatePad,
    SpaceToDepth,
)


def scale(name: str, source: str, output: str, factor: Float32Array, offset: Float32Array) -> Node:
    """Return the node of `factor * x + offset`, both (C,)."""
    weight = np.ascontiguousarray(factor.reshape(-1, 1, 1, 1))
    return Conv2d(name, (source,), output, weight, offset, groups=len(factor))


def simplify(graph: Graph) -> Graph:
    """Return a graph of the same results with as few scales as possible.

    What is left stands before a convolution that pads, where an offset cannot be moved, or between
    nodes that are no convolutions. A ReLU behind a pixel shuffle or a pad goes before it, next to
    the convolution that it can become a part of.
    """
    while True:
        for node in graph.nodes:
            simpler = None
            if isinstance(node, Conv2d) and _is_scale(node):
                simpler = _fold(graph, node)
            elif isinstance(node, Relu):
                simpler = _before_shuffle(graph, node)
            if simpler is not None:
                graph = simpler
                break
        else:
            return graph


def _before_shuffle(graph: Graph, node: Relu) -> Graph | None:
    """Return the graph with a ReLU before the shuffle or pad that it alone reads, if it does."""
    (source,) = node.inputs
    shuffle = graph.producer(source)
    alone = graph.consumers(source) == [node] and source not in graph.outputs
    if not alone or not isinstance(shuffle, DepthToSpace | ReplicatePad):
        return None
    deep = Value(f"{node.name}.before", graph.values[shuffle.inputs[0]].channels)
    relu = replace(node, inputs=shuffle.inputs, output=deep.name)
    after = replace(shuffle, inputs=(deep.name,), output=node.output)
    return _replaced(graph, {shuffle.name: [relu, after], node.name: []}, [deep])


def _is_scale(node: Conv2d) -> bool:
    return (
        node.weight.shape == (node.groups, 1, 1, 1)
        and node.stride == (1, 1)
        and not any(node.padding)
    )


def _fold(graph: Graph, node: Conv2d) -> Graph | None:
    """Return the graph with one scale less, or one nearer to its convolution; None if stuck."""
    (source,) = node.inputs
    before = graph.producer(source)
    if graph.consumers(source) == [node] and source not in graph.outputs:
        if isinstance(before, Conv2d):
            return _replaced(graph, {before.name: [_after(before, node)], node.name: []})
        if _can_carry(graph, before):
            assert isinstance(before, Rearrangement)
            moved = _carried(node, before.inputs[0], f"{node.name}.before", before.spread)
            shuffle = replace(before, inputs=(moved.output,), output=node.output)
            deep = Value(moved.output, len(moved.bias))
            return _replaced(graph, {before.name: [moved, shuffle], node.name: []}, [deep])
    readers = graph.consumers(node.output)
    if not readers or node.output in graph.outputs:
        return None
    convolutions = [r for r in readers if isinstance(r, Conv2d) and _may_follow(r, node)]
    if len(convolutions) == len(readers):
        after = {reader.name: [_before(node, reader)] for reader in convolutions}
        return _replaced(graph, {**after, node.name: []})
    (reader, *others) = readers
    if others or not isinstance(reader, SpaceToDepth | ReplicatePad):
        return None
    if isinstance(reader, ReplicatePad) or reader.order == "crd":
        unshuffle = replace(reader, inputs=node.inputs, output=f"{node.name}.after")
        moved = _carried(
            node, unshuffle.output, reader.output, lambda row: reader.merged(row, np.maximum)
        )
        deep = Value(unshuffle.output, len(moved.bias))
        return _replaced(graph, {reader.name: [unshuffle, moved], node.name: []}, [deep])
    return None


def _may_follow(convolution: Conv2d, node: Conv2d) -> bool:
    return not (any(convolution.padding) and node.bias.any())


def _can_carry(graph: Graph, node: Node | None) -> bool:
    """Return whether a scale behind a shuffle or a pad may go before it.

    Before a pad only where it then vanishes: before others it would come back from there.
    """
    if isinstance(node, ReplicatePad):
        (source,) = node.inputs
        alone = graph.consumers(source) == [node] and source not in graph.outputs
        return alone and isinstance(graph.producer(source), Conv2d)
    return isinstance(node, DepthToSpace) and node.order == "crd"


def _carried(
    node: Conv2d, source: str, output: str, carry: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> Conv2d:
    """Return a scale for the other side of a shuffle or a pad."""
    factor, bias = (carry(row) for row in (node.weight[:, 0, 0, 0], node.bias))
    weight = factor.reshape(-1, 1, 1, 1)
    return replace(
        node, inputs=(source,), output=output, weight=weight, bias=bias, groups=len(bias)
    )


def _after(convolution: Conv2d, node: Conv2d) -> Conv2d:
    """Return a convolution that does what a scale does to its result."""
    factor = node.weight.astype(np.float64)
    weight = convolution.weight * factor
    bias = convolution.bias * factor[:, 0, 0, 0] + node.bias
    return _with(replace(convolution, output=node.output), weight, bias)


def _before(node: Conv2d, convolution: Conv2d) -> Conv2d:
    """Return a convolution that does what a scale does to its input."""
    weight = convolution.weight.astype(np.float64)
    groups, rows = convolution.groups, len(convolution.bias) // convolution.groups
    factor, offset = (
        np.repeat(a.astype(np.float64).reshape(groups, -1), rows, 0)
        for a in (node.weight, node.bias)
    )
    bias = convolution.bias + (weight.sum((2, 3)) * offset).sum(1)
    return _with(replace(convolution, inputs=node.inputs), weight * factor[:, :, None, None], bias)


def _with(
    convolution: Conv2d, weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]
) -> Conv2d:
    return replace(convolution, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _replaced(
    graph: Graph, others: Mapping[str, Sequence[Node]], new: Sequence[Value] = ()
) -> Graph:
    """Return a graph with other nodes in the place of some, by name, that make new values."""
    nodes = [n for node in graph.nodes for n in others.get(node.name, [node])]
    known = {**graph.values, **{value.name: value for value in new}}
    names = [*graph.inputs, *(node.output for node in nodes)]
    values = {name: known[name] for name in names}
    return Graph(graph.stage, values, graph.inputs, graph.outputs, tuple(nodes))
