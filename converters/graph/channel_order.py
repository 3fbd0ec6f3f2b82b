"""Move the channel order of pixel shuffles into the convolutions around them.

torch keeps the channels that become one square together; TFLite and ONNX's SpaceToDepth keep the
channels of one position together. Permuting the rows of the convolution before a shuffle, or the
columns of the one after an unshuffle, changes no sum, and saves a transpose at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgecodec.converters.graph.convolutions import Conv2d, Convolution, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph, Value
from edgecodec.converters.graph.nodes import DepthToSpace, Indexes, Node, SpaceToDepth


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


def with_dcr_order(graph: Graph, node: DepthToSpace) -> Graph | None:
    """Return an equal graph in which one shuffle has the order `dcr`, and no other node is new.

    None where no convolution before it can bear the permutation.
    """
    order = dcr_order(graph.values[node.output].channels, node.block)
    if node.order == "crd" and not _is_identity(order):
        sources = _permutable_sources(graph, node.inputs[0])
        if not sources:
            return None
        for source in sources:
            graph = _substitute(graph, source, [source.with_outputs(order)])
    return _substitute(graph, node, [replace(node, order="dcr")])


def _rewrite_depth_to_space(graph: Graph, node: DepthToSpace) -> Graph:
    moved = with_dcr_order(graph, node)
    if moved is not None:
        return moved
    order = dcr_order(graph.values[node.output].channels, node.block)
    permute = _permutation(graph, node, node.inputs[0], order)
    return _substitute(graph, node, [permute, replace(node, order="dcr", inputs=(permute.output,))])


def _permutable_sources(graph: Graph, value: str) -> list[Node]:
    """Return a convolution whose output channels can be permuted for the one reader of `value`.

    The nodes between them come with it; the list is empty where there is no such convolution.
    """
    found: list[Node] = []
    while value not in graph.outputs and len(graph.consumers(value)) == 1:
        node = graph.producer(value)
        if isinstance(node, Convolution):
            return [*found, node] if node.groups == 1 else []
        if node is None or not node.channelwise or len(node.inputs) > 1:
            return []
        found.append(node)
        value = node.inputs[0]
    return []


def _rewrite_space_to_depth(graph: Graph, node: SpaceToDepth) -> Graph:
    order = dcr_order(graph.values[node.inputs[0]].channels, node.block)
    if _is_identity(order):
        return _substitute(graph, node, [replace(node, order="dcr")])
    readers = _permutable_readers(graph, node.output)
    if readers:
        for reader in readers:
            graph = _substitute(graph, reader, [reader.with_inputs(order)])
        return _substitute(graph, node, [replace(node, order="dcr")])
    inner = f"{node.output}.dcr"
    permute = replace(_permutation(graph, node, inner, np.argsort(order)), output=node.output)
    return _substitute(graph, node, [replace(node, order="dcr", output=inner), permute])


def _permutable_readers(graph: Graph, value: str) -> list[Node]:
    """Return the convolutions `value` ends in, with the nodes between; none if anything else is."""
    if value in graph.outputs:
        return []
    found: list[Node] = []
    for node in graph.consumers(value):
        if isinstance(node, Convolution) and node.groups == 1:
            found.append(node)
        elif node.channelwise and len(node.inputs) == 1:
            behind = _permutable_readers(graph, node.output)
            if not behind:
                return []
            found += [node, *behind]
        else:
            return []
    return found


def _is_identity(order: Indexes) -> bool:
    return bool(np.array_equal(order, np.arange(len(order))))


def _permutation(graph: Graph, node: Node, value: str, order: Indexes) -> Convolution:
    """Return a 1x1 convolution that makes channel k of its output channel order[k] of `value`."""
    name, channels = f"{node.name}.permute", len(order)
    weight = np.eye(channels, dtype=np.float32)[order][:, :, None, None]
    if graph.values[node.output].coding is None:
        return Conv2d(name, (value,), name, weight, np.zeros(channels, np.float32))
    ones = np.ones(channels, np.float32)
    zeros = np.zeros(channels, np.int32)
    return QuantizedConv2d(name, (value,), name, weight.astype(np.int8), zeros, scale=ones)


def _substitute(graph: Graph, old: Node, new: Sequence[Node]) -> Graph:
    """Put nodes in the place of one; a value they add is a permutation of one of its values."""
    nodes: list[Node] = []
    values = dict(graph.values)
    for node in graph.nodes:
        nodes.extend(new if node is old else [node])
    channels = max(graph.values[name].channels for name in (*old.inputs, old.output))
    for node in new:
        coding = graph.values[old.output].coding
        values.setdefault(node.output, Value(node.output, channels, coding))
    return replace(graph, nodes=tuple(nodes), values=values)
