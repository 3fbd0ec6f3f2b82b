"""Which convolutions of a float network become int8, and which stay whole.

The residual trunk keeps its precision: what flows along it is rounded again and again otherwise,
and its few strong channels (the local mean of the picture) drown in that (docs/exact-int8.md).
Trunk are the inputs and outputs of a graph, sums, and what sums add to; a convolution that makes a
trunk value stays in float32. All others, the branches, become int8: most of the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import (
    Add,
    DepthToSpace,
    Node,
    Rearrangement,
    Relu,
    ReplicatePad,
    SpaceToDepth,
)


@dataclass(frozen=True)
class Plan:
    """What is int8.

    Attributes:
        trunk: names of the values that stay float32.
        int8: names of the convolutions that become int8.
        fused: ReLUs that are part of a convolution, by the name of what it makes.
        levels: inputs that are levels 0..255 of a picture, and so codes already.
    """

    trunk: frozenset[str]
    int8: frozenset[str]
    fused: dict[str, Relu]
    levels: frozenset[str]


def make_plan(graph: Graph) -> Plan:
    """Return what of a float graph becomes int8."""
    trunk = {*graph.inputs, *graph.outputs}
    for node in graph.nodes:
        if isinstance(node, Add):
            trunk |= {node.output, *node.inputs} - _branch(graph, node)
    for node in graph.nodes:
        if isinstance(node, Relu) and not _fits_into_convolution(graph, node):
            trunk.add(node.inputs[0])  # its codes would have to be read with their sign
    _close(graph, trunk)
    int8 = {n.name for n in graph.nodes if isinstance(n, Conv2d) and n.output not in trunk}
    relus = [n for n in graph.nodes if isinstance(n, Relu) and n.inputs[0] not in trunk]
    fused = {relu.inputs[0]: relu for relu in relus}
    levels = frozenset(graph.inputs if graph.stage == "analysis" else ())
    return Plan(frozenset(trunk), frozenset(int8), fused, levels)


def _branch(graph: Graph, add: Add) -> set[str]:
    """Return the operand that a convolution makes for this sum alone; the second where both are."""
    found = [
        name
        for name in add.inputs
        if isinstance(graph.producer(name), Conv2d)
        and graph.consumers(name) == [add]
        and name not in graph.outputs
        and add.inputs.count(name) == 1
    ]
    return set(found[-1:])


def _fits_into_convolution(graph: Graph, relu: Relu) -> bool:
    """Return whether a ReLU is all that becomes of a convolution."""
    (source,) = relu.inputs
    alone = graph.consumers(source) == [relu] and source not in graph.outputs
    return alone and isinstance(graph.producer(source), Conv2d)


def _close(graph: Graph, trunk: set[str]) -> None:
    """Add what ReLUs and mere moves of elements make trunk values of."""
    for node in reversed(graph.nodes):
        if isinstance(node, Rearrangement | Relu) and node.output in trunk:
            trunk.update(node.inputs)
    for node in graph.nodes:
        if isinstance(node, Rearrangement | Relu) and node.inputs[0] in trunk:
            trunk.add(node.output)


def partner_of(graph: Graph, branch: str) -> str | None:
    """Return the trunk value that a branch is added to, if that is what becomes of it."""
    readers = graph.consumers(branch)
    if len(readers) != 1 or not isinstance(readers[0], Add):
        return None
    return next(name for name in readers[0].inputs if name != branch)


def stream_of(graph: Graph, value: str) -> list[str]:
    """Return a trunk value and what sums, ReLUs and pads make of it, which shares its units."""
    found = [value]
    for node in graph.nodes:
        if not isinstance(node, Relu | Add | ReplicatePad):
            continue
        if any(name in found for name in node.inputs) and node.output not in found:
            found.append(node.output)
    return found


def square_of(graph: Graph, value: str) -> int:
    """Return how many neighbouring channels pixel shuffles put together, now or later.

    They need the same units.
    """
    squares = [
        node.block**2 * square_of(graph, node.output)
        for node in _shuffles_of(graph, value)
        if isinstance(node, DepthToSpace)
    ]
    return math.lcm(*squares)


def _shuffles_of(graph: Graph, value: str) -> list[DepthToSpace | SpaceToDepth]:
    """Return the shuffles that read a trunk value or what shares its units."""
    readers = [node for name in stream_of(graph, value) for node in graph.consumers(name)]
    return [node for node in readers if isinstance(node, DepthToSpace | SpaceToDepth)]


def reaches_output(graph: Graph, value: str) -> bool:
    """Return whether sums, ReLUs, pads and shuffles alone lead from a value to an output."""
    return any(name in graph.outputs for name in stream_of(graph, value)) or any(
        reaches_output(graph, node.output) for node in _shuffles_of(graph, value)
    )


def sums_after(graph: Graph, value: str) -> int:
    """Return how many sums there are on the way from a trunk value."""
    sums = sum(isinstance(graph.producer(name), Add) for name in stream_of(graph, value)[1:])
    further = [sums_after(graph, node.output) for node in _shuffles_of(graph, value)]
    return sums + max(further, default=0)


def shuffles_after(graph: Graph, value: str) -> tuple[str, list[DepthToSpace]]:
    """Follow the pixel shuffles that alone read a value; return where they lead, and them."""
    passed: list[DepthToSpace] = []
    while value not in graph.outputs:
        readers: list[Node] = graph.consumers(value)
        if len(readers) != 1 or not isinstance(readers[0], DepthToSpace):
            break
        passed.append(readers[0])
        value = readers[0].output
    return value, passed
