"""Let a synthesis give its picture in squares, without the shuffle that puts them in place.

A network whose last convolution makes the r x r pixels of a square side by side, as channels, ends
in a pixel shuffle: a pass over the largest tensor of all, the picture in float32. Who reads the
levels reads each once, to make bytes of them, and can as well take them in this order
(`edgecodec.coding.pixels`). It is for runtimes that leave a convolution with its channels last; one
that has to move them anyway puts the pixels in place in the same pass.
"""

from __future__ import annotations

from dataclasses import replace

from edgecodec.converters.graph.channel_order import with_dcr_order
from edgecodec.converters.graph.nodes import DepthToSpace, Graph
from edgecodec.format.strides import LATENT_STRIDE


def with_square_output(graph: Graph) -> Graph:
    """Return a graph that gives squares of pixels where a shuffle would have made the picture.

    Channel (i * r + j) * 3 + c of a position is colour c of pixel (i, j) of its square.

    Args:
        graph: a stage. It comes back as it is where it is no synthesis, where no shuffle makes its
            picture, or where no convolution could make the order.
    """
    if graph.stage != "synthesis":
        return graph
    (output,) = graph.outputs
    shuffle = graph.producer(output)
    if not isinstance(shuffle, DepthToSpace) or LATENT_STRIDE % shuffle.block:
        return graph
    if graph.consumers(output) or shuffle.inputs[0] in graph.inputs:
        return graph
    ordered = with_dcr_order(graph, shuffle)
    if ordered is None:
        return graph
    return _without(ordered, output)


def _without(graph: Graph, output: str) -> Graph:
    """Return a graph without the shuffle at its end; what it shuffled takes the output's name."""
    shuffle = graph.producer(output)
    assert isinstance(shuffle, DepthToSpace)
    source = shuffle.inputs[0]
    nodes = tuple(
        replace(node, output=output) if node.output == source else node
        for node in graph.nodes
        if node is not shuffle
    )
    values = {name: value for name, value in graph.values.items() if name != source}
    values[output] = replace(graph.values[source], name=output)
    return replace(graph, nodes=nodes, values=values)
