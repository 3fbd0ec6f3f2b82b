"""The network between torch and the targets: a typed list of nodes with NumPy weights.

Values are feature maps of one image. Their channel count is fixed, height and width are not:
`infer_sizes` gives them for a size of the input. Values are float32, or int8 codes that stand for
real numbers; nodes of their own lead from one to the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgecodec.converters.graph.convolutions import Convolution
from edgecodec.converters.graph.nodes import Coding, Node, Size
from edgecodec.errors import ConversionError


@dataclass(frozen=True)
class Value:
    """A feature map.

    Attributes:
        name: unique in its graph; inputs and outputs of a graph carry their public name.
        channels: number of channels.
        coding: how its codes map to numbers; None is float32.
    """

    name: str
    channels: int
    coding: Coding | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """One stage. Nodes are in an order in which they can run.

    Attributes:
        stage: what errors and files call it.
        values: every feature map by name.
        inputs: names of the values given.
        outputs: names of the values wanted; each is made by a node.
        nodes: the operations.

    Raises:
        ConversionError: the parts do not fit together.
    """

    stage: str
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        """Check names, order and channel counts."""
        known = set(self.inputs)
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in known]
            if missing or node.output in known or node.output not in self.values:
                raise ConversionError(f"node {node.name} reads or writes a wrong value", self.stage)
            self._check(node)
            known.add(node.output)
        if not set(self.outputs) <= known - set(self.inputs):
            raise ConversionError("an output is not made by any node", self.stage)

    def _check(self, node: Node) -> None:
        """Refuse channels and codings that the node does not take or make."""
        values, made = [self.values[name] for name in node.inputs], self.values[node.output]
        given = [value.channels for value in values]
        if node.channels(given) != made.channels:
            raise ConversionError(
                f"node {node.name}: channels {given} -> {made.channels} do not fit", self.stage
            )
        if not node.takes([value.coding for value in values], made.coding):
            raise ConversionError(f"node {node.name} reads or makes the wrong kind", self.stage)

    @property
    def has_codes(self) -> bool:
        """Whether any value is int8."""
        return any(value.coding is not None for value in self.values.values())

    def consumers(self, value: str) -> list[Node]:
        """Return the nodes that read a value."""
        return [node for node in self.nodes if value in node.inputs]

    def producer(self, value: str) -> Node | None:
        """Return the node that makes a value, None for an input."""
        return next((node for node in self.nodes if node.output == value), None)

    def weights_digest(self) -> bytes:
        """Return a SHA-256 over structure and weights, whatever the nodes are called."""
        numbers: dict[str, int] = {name: i for i, name in enumerate(self.inputs)}
        digest = hashlib.sha256()
        for node in self.nodes:
            numbers[node.output] = len(numbers)
            parts: list[object] = [type(node).__name__, [numbers[name] for name in node.inputs]]
            parts += node.attributes().values()
            if isinstance(node, Convolution):
                parts += [node.weight.shape, node.bias.shape]
            coding = self.values[node.output].coding
            if coding is not None:
                parts.append((float(coding.scale), coding.zero_point))
            digest.update(repr(parts).encode())
            for array in node.arrays().values():
                digest.update(np.asarray(array, array.dtype.newbyteorder("<"), order="C").tobytes())
        digest.update(repr([numbers[name] for name in self.outputs]).encode())
        return digest.digest()


class GraphBuilder:
    """The values and nodes of a graph while it is made.

    Args:
        inputs: values given.

    Attributes:
        values: by name.
        nodes: in an order in which they can run.
    """

    def __init__(self, inputs: Iterable[Value]) -> None:
        self.values = {value.name: value for value in inputs}
        self.nodes: list[Node] = []

    def emit(self, node: Node, channels: int, coding: Coding | None = None) -> str:
        """Add a node and return the name of the value it makes."""
        self.values[node.output] = Value(node.output, channels, coding)
        self.nodes.append(node)
        return node.output


def infer_sizes(graph: Graph, sizes: Mapping[str, Size]) -> dict[str, Size]:
    """Return height and width of every value.

    Args:
        graph: the stage.
        sizes: height and width of each input.

    Raises:
        ConversionError: an input is missing, or a node cannot take the size it gets.
    """
    known = dict(sizes)
    for node in graph.nodes:
        try:
            given = [known[name] for name in node.inputs]
        except KeyError as exc:
            raise ConversionError(f"no size given for {exc.args[0]}", graph.stage) from exc
        made = node.size(given)
        if made is None:
            raise ConversionError(f"node {node.name} cannot take the size {given}", graph.stage)
        known[node.output] = made
    return known
