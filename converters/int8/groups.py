"""Groups of layers that become int8 together, and graphs in which one group alone has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgecodec.arrays import Float64Array
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.graph import Graph, GraphBuilder
from edgecodec.converters.graph.nodes import Dequantize, Node, Quantize, Scale
from edgecodec.converters.int8.draft import Draft
from edgecodec.converters.int8.plan import Plan

TRUNK = "trunk"


@dataclass(frozen=True)
class Group:
    """What becomes int8 together.

    Attributes:
        name: `trunk`, or the first and the last layer of a branch.
        layers: names of the convolutions.
        makes: names of the values of the float graph that its nodes make.
    """

    name: str
    layers: tuple[str, ...]
    makes: frozenset[str]


def layer_groups(draft: Draft) -> tuple[Group, ...]:
    """Return the branches, each with all that codes lead through, and the trunk if it is exact."""
    graph, plan = draft.graph, draft.plan
    branches: list[list[Node]] = []
    for node in graph.nodes:
        if node.output in plan.trunk:
            continue
        joined = [b for b in branches if any(n.output in node.inputs for n in b)]
        branches = [b for b in branches if b not in joined]
        branches.append([*(n for branch in joined for n in branch), node])
    groups = [_group(nodes, plan) for nodes in branches]
    if draft.exact:  # otherwise it is what it was
        trunk = [node for node in graph.nodes if node.output in plan.trunk]
        groups.append(replace(_group(trunk, plan), name=TRUNK))
    return tuple(groups)


def _group(nodes: list[Node], plan: Plan) -> Group:
    layers = tuple(node.name for node in nodes if isinstance(node, Conv2d))
    name = layers[0] if len(layers) == 1 else f"{layers[0]} .. {layers[-1]}" if layers else ""
    return Group(name, layers, frozenset(node.output for node in nodes))


def with_group(draft: Draft, group: Group) -> Graph:
    """Return the float graph with one group as it is in the int8 graph.

    Args:
        draft: finished.
        group: one of its groups.
    """
    return _Mixture(draft, group).build()


class _Mixture(GraphBuilder):
    """Goes back from the outputs; a value is real, or what the int8 graph has in its place."""

    def __init__(self, draft: Draft, group: Group) -> None:
        self.draft, self.graph, self.group = draft, draft.graph, group
        super().__init__(self.graph.values[name] for name in self.graph.inputs)
        self.rounded = {node.output: node for node in draft.nodes}
        self.stands_for = {made.name: name for name, made in draft.made.items()}

    def build(self) -> Graph:
        graph = self.graph
        for node in graph.nodes:  # in order, so that each step back is a short one
            if node.output not in self.group.makes:
                self._real(node.output)
            elif node.output in self.draft.made:
                self._same(self.draft.made[node.output].name)
        for name in graph.outputs:
            self._real(name)
        return Graph(graph.stage, self.values, graph.inputs, graph.outputs, tuple(self.nodes))

    def _scaled(self, source: str, output: str, factor: Float64Array) -> str:
        scale = Scale(f"{output}.scale", (source,), output, factor.astype(np.float32))
        return self.emit(scale, len(factor))

    def _real(self, name: str) -> str:
        """Return a value of the float graph as it is there."""
        if name in self.values:
            return name
        if name in self.group.makes:
            made = self.draft.made[name]
            source = self._in_units(made.name)
            return self._scaled(source, name, made.units)
        node = self.graph.producer(name)
        assert node is not None  # inputs are there from the beginning
        sources = tuple(self._real(source) for source in node.inputs)
        return self.emit(node.reading(*sources), self.graph.values[name].channels)

    def _in_units(self, name: str) -> str:
        """Return a value of the int8 graph as float32 numbers, not yet as codes."""
        old = self.stands_for.get(name)
        if old is not None and old not in self.group.makes:
            units, output = self.draft.made[old].units, f"{old}.in_units"
            if output in self.values or (units == 1.0).all():
                return output if output in self.values else self._real(old)
            return self._scaled(self._real(old), output, 1.0 / units)
        source = self._same(name)
        if self.values[source].coding is None:
            return source
        output = f"{source}.numbers"
        return self.emit(Dequantize(output, (source,), output), self.values[source].channels)

    def _same(self, name: str) -> str:
        """Return a value of the int8 graph as it is there, codes as codes."""
        value, output = self.draft.values[name], f"int8.{name}"
        if output in self.values:
            return output
        old = self.stands_for.get(name)
        if old is not None and old not in self.group.makes:
            source = self._in_units(name)
            if value.coding is None:
                return source
            return self.emit(Quantize(output, (source,), output), value.channels, value.coding)
        node = self.rounded[name]
        if isinstance(node, Dequantize):
            return self._in_units(node.inputs[0])
        sources = tuple(self._same(source) for source in node.inputs)
        made = replace(node.reading(*sources), name=f"int8.{node.name}", output=output)
        return self.emit(made, value.channels, value.coding)
