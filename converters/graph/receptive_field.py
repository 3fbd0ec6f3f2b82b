"""How far beyond itself a block of a picture must be known, from the graph alone."""

from __future__ import annotations

from collections.abc import Mapping

from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Range


def halo(graph: Graph, block: int, outputs: Mapping[str, int]) -> int:
    """Return how many positions of the input on each side of a block its outputs depend on.

    Args:
        graph: of one input.
        block: side of the block in positions of the input.
        outputs: by name, how many positions of the output this is.
    """
    (source,) = graph.inputs
    widest = 0
    for axis in (0, 1):
        needed = {name: (0, size) for name, size in outputs.items()}
        for node in reversed(graph.nodes):
            if node.output in needed:
                found = node.needs(needed[node.output], axis)
                for name in node.inputs:
                    needed[name] = _both(found, needed.get(name, found))
        first, end = needed[source]
        widest = max(widest, -first, end - block)
    return widest


def _both(left: Range, right: Range) -> Range:
    return min(left[0], right[0]), max(left[1], right[1])
