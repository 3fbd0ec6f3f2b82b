"""Branches that end in float32: for runtimes that can, of graphs that need not be exact.

A branch of an int8 graph ends in codes, since that is all some runtimes make of an int8
convolution; then they are turned into numbers and scaled. Where a runtime has int8 products of
which float32 comes out, these steps go, and with them the rounding to codes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgecodec.converters.graph.convolutions import QuantizedConv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Dequantize, Node, Scale


def unrounded(graph: Graph) -> Graph:
    """Return a graph whose int8 convolutions make float32 where their codes become that alone.

    Those that codes make a ReLU of are left.
    """
    values, nodes = dict(graph.values), list(graph.nodes)
    for node in graph.nodes:
        found = _behind(graph, node)
        if found is None:
            continue
        assert isinstance(node, QuantizedConv2d)
        coding = graph.values[node.output].coding
        assert coding is not None  # codes are what it makes
        *_, last = found
        scale = node.scale.astype(np.float64)
        for step in found:
            scale = scale * (step.factor if isinstance(step, Scale) else 1.0)
        made = replace(node, output=last.output, scale=scale.astype(np.float32))
        nodes[nodes.index(node)] = made
        for step in (node, *found):
            if step.output != last.output:
                del values[step.output]
        nodes = [n for n in nodes if n not in found]
    return replace(graph, values=values, nodes=tuple(nodes))


def _behind(graph: Graph, node: Node) -> list[Node] | None:
    """Return what makes numbers of the codes of a convolution, if nothing else reads them."""
    coding = graph.values[node.output].coding
    if not isinstance(node, QuantizedConv2d) or coding is None or coding.zero_point:
        return None
    found: list[Node] = []
    name = node.output
    for kind in (Dequantize, Scale):
        readers = graph.consumers(name)
        if len(readers) != 1 or not isinstance(readers[0], kind) or name in graph.outputs:
            break
        found.append(readers[0])
        name = readers[0].output
    return found or None
