"""Move the channel order of pixel shuffles into the convolutions around them.

torch keeps the channels that become one square together; TFLite and ONNX's SpaceToDepth keep the
channels of one position together. Permuting the rows of the convolution before a shuffle, or the
columns of the one after an unshuffle, changes no sum, and saves a transpose at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgecodec.converters.graph import Conv2d, DepthToSpace, Graph, Node, Relu, SpaceToDepth, Value

Indexes = npt.NDArray[np.intp]


def dcr_order(channels: int, block: int) -> Indexes:
    """Return, for each dcr channel, the crd channel that it is.

    Args:
        channels: on the fine side of the shuffle.
        block: side of the square.
    """
    return np.arange(channels * block * block).reshape(channels, -1).T.reshape(-1)


def with_dcr_shuffles(graph: Graph) -> Graph:
    """Return an equal graph in which every shuffle has the order `dcr`.

    Where no convolution stands next to a shuffle, one that only permutes is put there: exact,
    because every sum has a single term that is not zero.
    """
    for node in graph.nodes:
        if isinstance(node, DepthToSpace) and node.order == "crd":
            graph = _rewrite_depth_to_space(graph, node)
        elif isinstance(node, SpaceToDepth) and node.order == "crd":
            graph = _rewrite_space_to_depth(graph, node)
    return graph


def _rewrite_depth_to_space(graph: Graph, node: DepthToSpace) -> Graph:
    order = dcr_order(graph.values[node.output].channels, node.block)
    if _is_identity(order):
        return _substitute(graph, node, [replace(node, order="dcr")])
    source = _permutable_producer(graph, node.inputs[0])
    if source is None:
        permute = _permutation(node, node.inputs[0], order)
        return _substitute(
            graph, node, [permute, replace(node, order="dcr", inputs=(permute.output,))]
        )
    permuted = replace(source, weight=source.weight[order], bias=source.bias[order])
    graph = _substitute(graph, source, [permuted])
    return _substitute(graph, node, [replace(node, order="dcr")])


def _permutable_producer(graph: Graph, value: str) -> Conv2d | None:
    """Return the convolution whose output channels can be permuted for the one reader."""
    while value not in graph.outputs and len(graph.consumers(value)) == 1:
        node = graph.producer(value)
        if isinstance(node, Conv2d):
            return node if node.groups == 1 else None
        if not isinstance(node, Relu):
            return None
        value = node.inputs[0]
    return None


def _rewrite_space_to_depth(graph: Graph, node: SpaceToDepth) -> Graph:
    order = dcr_order(graph.values[node.inputs[0]].channels, node.block)
    if _is_identity(order):
        return _substitute(graph, node, [replace(node, order="dcr")])
    readers = graph.consumers(node.output)
    convolutions = [r for r in readers if isinstance(r, Conv2d) and r.groups == 1]
    if len(convolutions) == len(readers) and node.output not in graph.outputs:
        for reader in convolutions:
            graph = _substitute(graph, reader, [replace(reader, weight=reader.weight[:, order])])
        return _substitute(graph, node, [replace(node, order="dcr")])
    inner = f"{node.output}.dcr"
    permute = replace(_permutation(node, inner, np.argsort(order)), output=node.output)
    return _substitute(graph, node, [replace(node, order="dcr", output=inner), permute])


def _is_identity(order: Indexes) -> bool:
    return bool(np.array_equal(order, np.arange(len(order))))


def _permutation(node: Node, value: str, order: Indexes) -> Conv2d:
    """Return a 1x1 convolution that makes channel k of its output channel order[k] of `value`."""
    weight = np.eye(len(order), dtype=np.float32)[order][:, :, None, None]
    name = f"{node.name}.permute"
    return Conv2d(name, (value,), name, weight, np.zeros(len(order), np.float32))


def _substitute(graph: Graph, old: Node, new: Sequence[Node]) -> Graph:
    """Put nodes in the place of one; a value they add has the channels of a permutation."""
    nodes: list[Node] = []
    values = dict(graph.values)
    for node in graph.nodes:
        nodes.extend(new if node is old else [node])
    channels = max(graph.values[name].channels for name in (*old.inputs, old.output))
    for node in new:
        values.setdefault(node.output, Value(node.output, channels))
    return replace(graph, nodes=tuple(nodes), values=values)
