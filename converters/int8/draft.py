"""An int8 graph while it is made of a float one: what both the trunk and the branches need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgecodec.arrays import Float64Array
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.graph import Graph, GraphBuilder
from edgecodec.converters.graph.nodes import Coding
from edgecodec.converters.int8.plan import make_plan, square_of
from edgecodec.converters.int8.ranges import Statistics

TRUNK_BITS = 3
"""Bits by which the trunk is finer than the codes read from it."""
SNAP_LIMIT = 2.0 ** (8 + TRUNK_BITS)
"""Largest magnitude after a Snap: twice what codes reach."""
CODE_STEP = 2.0**TRUNK_BITS
"""What codes read from the trunk count in, in its units."""
_HALF = 0.5


@dataclass
class Made:
    """A value of the new graph that stands for one of the old.

    Attributes:
        name: in the new graph.
        units: (C,) real numbers per unit.
        bound: (C,) largest magnitude in units, inf where unknown; of trunk values alone.
        step: (C,) in units, what trunk values are odd multiples of; 0 where unknown. At most 1/2.
        raw: whether units are 1 whatever the range, as those of inputs and outputs.
    """

    name: str
    units: Float64Array
    bound: Float64Array
    step: Float64Array = field(default_factory=lambda: np.zeros(1))
    raw: bool = False

    @property
    def ready(self) -> bool:
        """Whether these are bounded half-integers: what an exact whole convolution takes."""
        return bool((self.step == _HALF).all())


def halves(name: str, units: Float64Array) -> Made:
    """Return what a Snap makes."""
    bound = np.full(len(units), SNAP_LIMIT + 0.5)
    return Made(name, units, bound, np.full(len(units), _HALF))


class Draft(GraphBuilder):
    """A float graph, what was seen of it, and as much of the int8 graph as there is.

    Args:
        graph: convolutions, ReLUs, sums and pixel shuffles.
        seen: statistics of every value, inputs too.
        exact: whether every runtime must give the same bits.

    Attributes:
        plan: what becomes int8.
        made: by the name of the old value.
    """

    def __init__(self, graph: Graph, seen: Mapping[str, Statistics], *, exact: bool) -> None:
        super().__init__(graph.values[name] for name in graph.inputs)
        self.graph, self.seen, self.exact = graph, seen, exact
        self.plan = make_plan(graph)
        self.made: dict[str, Made] = {}
        self._names: Counter[str] = Counter()
        for name in graph.inputs:
            ones = np.ones(graph.values[name].channels)
            self.made[name] = Made(name, ones, np.inf * ones, raw=True)

    def finish(self) -> Graph:
        """Return the new graph."""
        old = self.graph
        return Graph(old.stage, self.values, old.inputs, old.outputs, tuple(self.nodes))

    def fresh(self, name: str) -> str:
        """Return a name not returned before: this one, or with a number behind it."""
        self._names[name] += 1
        return f"{name}{self._names[name] - 1 or ''}"

    def coding(self, made: Made) -> Coding:
        """Return the coding of what is known to be codes."""
        coding = self.values[made.name].coding
        assert coding is not None
        return coding

    def tied(self, value: str, units: Float64Array) -> Float64Array:
        """Return units that are equal where pixel shuffles put channels together."""
        square = square_of(self.graph, value)
        return np.repeat(units.reshape(-1, square).max(1), square)

    def samples(self, node: Conv2d, source: Made) -> Float64Array:
        """Return what a convolution reads, (I, n) in units."""
        return self.seen[node.inputs[0]].samples / source.units[:, None]


def code_range(zero_point: int) -> tuple[int, int]:
    """Return the least and the largest code, zero being zero."""
    return -128 - zero_point, 127 - zero_point


def columns(units: Float64Array, node: Conv2d) -> Float64Array:
    """Return units of the input so that they multiply the weight (O, I / groups, kh, kw)."""
    per_row = units.reshape(node.groups, -1)
    return np.repeat(per_row, len(node.bias) // node.groups, 0)[:, :, None, None]
