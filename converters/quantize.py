"""A float network as int8: branches in int8 codes, the residual trunk in float32.

`exact` makes a graph that every runtime answers with the same bits (docs/exact-int8.md): in the
trunk only half-integers that float32 holds exactly, in the branches only sums that are never
halfway between two codes. Otherwise scales are free, for an analysis, which need not be exact.

Every channel counts in units of its own, chosen by what photos need. Between two layers these
units cost nothing: they go into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgecodec.converters.graph import (
    Add,
    Coding,
    Conv2d,
    DepthToSpace,
    Dequantize,
    Graph,
    Node,
    Quantize,
    QuantizedConv2d,
    Relu,
    Scale,
    Snap,
    SpaceToDepth,
    Value,
)
from edgecodec.converters.int8_plan import Plan, make_plan, shuffles_after, stream_of
from edgecodec.converters.int8_statistics import Statistics, best_scale, pooled
from edgecodec.converters.int8_weights import Float64Array, int8_weights, whole_weights
from edgecodec.errors import ConversionError

TRUNK_BITS = 3
"""Bits by which the trunk is finer than the codes read from it."""
_STEP = 2.0**TRUNK_BITS
_HALF = 0.5
_EXACT = 2.0**24
"""Multiples of a step below this are exact in float32."""
MARGIN = 1.5
"""By how much the trunk may exceed all that photos showed before it is clipped."""
SNAP_LIMIT = 2.0 ** (8 + TRUNK_BITS)
"""Largest magnitude after a Snap: twice what codes reach."""


@dataclass
class _Made:
    """A value of the new graph that stands for one of the old.

    Attributes:
        name: in the new graph.
        units: (C,) real numbers per unit.
        bound: (C,) largest magnitude in units, inf where unknown; of trunk values alone.
        step: (C,) in units, what trunk values are odd multiples of; 0 where unknown. At most 1/2.
    """

    name: str
    units: Float64Array
    bound: Float64Array
    step: Float64Array = field(default_factory=lambda: np.zeros(1))

    @property
    def ready(self) -> bool:
        """Whether these are bounded half-integers: what an exact whole convolution takes."""
        return bool((self.step == _HALF).all())


def quantize(graph: Graph, seen: Mapping[str, Statistics], *, exact: bool) -> Graph:
    """Return the int8 graph of a float graph.

    Args:
        graph: convolutions, ReLUs, sums and pixel shuffles.
        seen: statistics of every value, inputs too.
        exact: see above.

    Raises:
        ConversionError: an integer does not fit, or there is nothing to make int8 of.
    """
    return _Quantizer(graph, seen, exact).run()


class _Quantizer:
    def __init__(self, graph: Graph, seen: Mapping[str, Statistics], exact: bool) -> None:
        self.graph, self.seen, self.exact = graph, seen, exact
        self.plan: Plan = make_plan(graph)
        if not self.plan.int8:
            raise ConversionError(
                "has no convolution beside its trunk to make int8 of", graph.stage
            )
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.made: dict[str, _Made] = {}
        self.read: dict[tuple[str, int], _Made] = {}

    def run(self) -> Graph:
        for name in self.graph.inputs:
            value = self.graph.values[name]
            self.values[name] = value
            self.made[name] = _Made(name, np.ones(value.channels), np.full(value.channels, np.inf))
        fused = {relu.name for relu in self.plan.fused.values()}
        for node in self.graph.nodes:
            if node.name in fused:
                continue
            match node:
                case Conv2d() if node.name in self.plan.int8:
                    self._branch(node)
                case Conv2d():
                    self._whole(node)
                case Add():
                    self._add(node)
                case Relu():
                    self._relu(node)
                case DepthToSpace() | SpaceToDepth():
                    self._shuffle(node)
        return Graph(
            self.graph.stage,
            self.values,
            self.graph.inputs,
            self.graph.outputs,
            tuple(self.nodes),
        )

    def _emit(self, node: Node, channels: int, coding: Coding | None = None) -> str:
        self.values[node.output] = Value(node.output, channels, coding)
        self.nodes.append(node)
        return node.output

    # -- the trunk --------------------------------------------------------------------------

    def _units_of(self, value: str) -> Float64Array:
        """Return the units of a trunk value about to be made."""
        stream = stream_of(self.graph, value)
        channels = self.graph.values[value].channels
        if any(name in self.graph.outputs for name in stream):
            return np.ones(channels)
        for node in self.graph.nodes:
            if isinstance(node, Add) and node.output in stream:
                for name in node.inputs:
                    if name in self.made and name in self.plan.trunk:
                        return self.made[name].units
        return self._trunk_units(pooled([self.seen[name] for name in stream]))

    def _trunk_units(self, seen: Statistics) -> Float64Array:
        """Return units in which codes are fine and no extreme is lost, nor one half as large again.

        A code that is clipped misleads one branch; a trunk that is clipped shows in the picture.
        """
        least = MARGIN * seen.largest.astype(np.float64) / SNAP_LIMIT
        return np.maximum(best_scale(seen, -128, 127) / _STEP, np.maximum(least, 1e-9))

    def _whole(self, node: Conv2d) -> None:
        """Make a trunk value by a float32 convolution."""
        source = self._readable(node.inputs[0])
        end, shuffles = shuffles_after(self.graph, node.output)
        units = self._units_of(end)
        for shuffle in reversed(shuffles):
            units = np.repeat(units, shuffle.block**2)
        weight = node.weight.astype(np.float64) / units[:, None, None, None]
        weight = weight * _columns(source.units, node)
        bias = node.bias / units
        bound, step = np.full(len(units), np.inf), np.zeros(len(units))
        if self.exact:
            if any(node.padding):
                raise ConversionError(
                    f"{node.name} pads the trunk; exact int8 cannot", self.graph.stage
                )
            room = _EXACT if end in self.graph.outputs else 0.5 * _EXACT  # the rest is for sums
            rounded = whole_weights(
                weight,
                bias,
                source.bound,
                self._samples(node, source),
                room,
                stage=self.graph.stage,
            )
            weight, bias = rounded.weight.astype(np.float64), rounded.bias.astype(np.float64)
            bound, step = rounded.bound, rounded.step
        made = Conv2d(
            node.name,
            (source.name,),
            node.output,
            weight.astype(np.float32),
            bias.astype(np.float32),
            node.stride,
            node.padding,
            node.dilation,
            node.groups,
        )
        self._emit(made, len(units))
        self.made[node.output] = _Made(node.output, units, bound, step)

    def _readable(self, name: str) -> _Made:
        """Return a trunk value in the form a whole convolution takes."""
        source = self.made[name]
        if name not in self.plan.trunk:
            return self._dequantized(name)
        return self._snapped(name) if self.exact and not source.ready else source

    def _snapped(self, name: str) -> _Made:
        """Return a trunk value as bounded half-integers, its units those of the trunk."""
        source = self.made[name]
        if name in self.graph.inputs:
            units = self._trunk_units(self.seen[name])
            source = self._scaled(source, 2.0 ** np.ceil(np.log2(units)))
        out = f"{name}.snapped"
        channels = len(source.units)
        if out not in self.values:
            self._emit(Snap(out, (source.name,), out, SNAP_LIMIT), channels)
        return _Made(
            out, source.units, np.full(channels, SNAP_LIMIT + 0.5), step=np.full(channels, _HALF)
        )

    def _scaled(self, source: _Made, units: Float64Array) -> _Made:
        """Return a trunk value in other units."""
        name = f"{source.name}.scaled"
        factor = source.units / units
        if name not in self.values:
            self._emit(Scale(name, (source.name,), name, factor.astype(np.float32)), len(units))
        return _Made(name, units, source.bound * factor)

    def _dequantized(self, name: str, units: Float64Array | None = None) -> _Made:
        """Return codes as real numbers, or in the units given."""
        source = self.made[name]
        units = np.ones(len(source.units)) if units is None else units
        uses = sum(node.name.startswith(f"{name}.numbers") for node in self.nodes)
        real = f"{name}.numbers{uses or ''}"
        self._emit(Dequantize(real, (source.name,), real), len(units))
        factor = source.units / units
        if (factor != 1.0).any():
            scaled = f"{real}.scaled"
            self._emit(Scale(scaled, (real,), scaled, factor.astype(np.float32)), len(units))
            real = scaled
        return _Made(real, units, 128.0 * factor)

    def _add(self, node: Add) -> None:
        trunk = [name for name in node.inputs if name in self.plan.trunk]
        left = self.made[trunk[0]]
        if self.exact and trunk[0] in self.graph.inputs:
            left = self._snapped(trunk[0])
        if len(trunk) == 1:
            (branch,) = (name for name in node.inputs if name != trunk[0])
            right = self._dequantized(branch, left.units)
        else:
            right = self.made[trunk[1]]
            if not np.array_equal(left.units, right.units):
                right = self._scaled(right, left.units)
        output = node.output
        both = self.exact and len(trunk) == 2  # two half-integers make a whole one
        if both:
            output = f"{node.output}.sum"
        self._emit(Add(node.name, (left.name, right.name), output), len(left.units))
        bound = left.bound + right.bound
        if self.exact and not both and not (bound < _EXACT * left.step).all():
            raise ConversionError(f"{node.name}: the trunk does not fit float32", self.graph.stage)
        made = _Made(output, left.units, bound, left.step)
        if both:
            self._emit(
                Snap(f"{node.name}.snap", (output,), node.output, SNAP_LIMIT), len(left.units)
            )
            half = np.full(len(bound), _HALF)
            made = _Made(node.output, left.units, np.full(len(bound), SNAP_LIMIT + 0.5), half)
        self.made[node.output] = made

    def _relu(self, node: Relu) -> None:
        source = self.made[node.inputs[0]]
        if node.inputs[0] not in self.plan.trunk:
            raise ConversionError(
                f"{node.name} reads codes that others read, too", self.graph.stage
            )
        self._emit(Relu(node.name, (source.name,), node.output), len(source.units))
        self.made[node.output] = _Made(node.output, source.units, source.bound, source.step)

    def _shuffle(self, node: DepthToSpace | SpaceToDepth) -> None:
        source = self.made[node.inputs[0]]
        square = node.block**2
        step = np.broadcast_to(source.step, source.units.shape)
        rows = [source.units, source.bound, step]
        if isinstance(node, SpaceToDepth):
            units, bound, step = (np.repeat(row, square) for row in rows)
        else:
            units, bound, _ = (row.reshape(-1, square).max(1) for row in rows)
            step = rows[2].reshape(-1, square).min(1)
        coding = self.values[source.name].coding
        kind = type(node)
        self._emit(
            kind(node.name, (source.name,), node.output, node.block, node.order), len(units), coding
        )
        self.made[node.output] = _Made(node.output, units, bound, step)

    # -- the branches -----------------------------------------------------------------------

    def _codes(self, name: str) -> _Made:
        """Return a value as codes."""
        source = self.made[name]
        if name not in self.plan.trunk:
            return source
        zero_point = -128 if isinstance(self.graph.producer(name), Relu) else 0
        key = (name, zero_point)
        if key not in self.read:
            self.read[key] = self._quantized(name, zero_point)
        return self.read[key]

    def _quantized(self, name: str, zero_point: int) -> _Made:
        source = self.made[name]
        public = name in (*self.graph.inputs, *self.graph.outputs)
        if self.exact and (name in self.graph.inputs or (public and not source.ready)):
            source = self._snapped(name)
        elif public:
            scale = best_scale(self.seen[name], *_range(zero_point))
            source = self._scaled(source, scale / _STEP)
        out = f"{name}.codes"
        coding = Coding(_STEP * (0.5 if zero_point else 1.0), zero_point)
        self._emit(Quantize(out, (source.name,), out), len(source.units), coding)
        return _Made(out, source.units, source.bound)

    def _branch(self, node: Conv2d) -> None:
        """Make codes of codes."""
        source = self._codes(node.inputs[0])
        coding = self.values[source.name].coding
        assert coding is not None  # _codes makes nothing else
        relu = self.plan.fused.get(node.name)
        output = node.output if relu is None else relu.output
        zero_point = 0 if relu is None else -128
        end, shuffles = shuffles_after(self.graph, output)
        grid = self._grid(end) if self.exact else None
        units = best_scale(self.seen[end], *_range(zero_point), grid)
        for shuffle in reversed(shuffles):
            units = np.repeat(units, shuffle.block**2)
        weight = node.weight * (_columns(source.units, node) * coding.scale)
        inputs = self._samples(node, source) / coding.scale
        codes = np.clip(np.rint(inputs), *_range(coding.zero_point))
        rounded = int8_weights(
            weight,
            node.bias.astype(np.float64),
            units,
            codes,
            exact=self.exact,
            stage=self.graph.stage,
        )
        made = QuantizedConv2d(
            node.name,
            (source.name,),
            output,
            rounded.weight,
            rounded.bias,
            (rounded.scale / coding.scale).astype(np.float32),
            node.stride,
            node.padding,
            node.dilation,
            node.groups,
        )
        self._emit(made, len(units), Coding(1.0, zero_point))
        self.made[output] = _Made(output, rounded.units, np.full(len(units), 256.0))

    def _samples(self, node: Conv2d, source: _Made) -> Float64Array:
        """Return what a convolution reads, (I, n) in units."""
        return self.seen[node.inputs[0]].samples / source.units[:, None]

    def _grid(self, branch: str) -> Float64Array | None:
        """Return the units of the trunk that a branch is added to: its own are whole multiples."""
        readers = self.graph.consumers(branch)
        if len(readers) != 1 or not isinstance(readers[0], Add):
            return None
        (other,) = (name for name in readers[0].inputs if name != branch)
        trunk = self._snapped(other) if other in self.graph.inputs else self.made[other]
        return trunk.units


def _range(zero_point: int) -> tuple[int, int]:
    return -128 - zero_point, 127 - zero_point


def _columns(units: Float64Array, node: Conv2d) -> Float64Array:
    """Return units of the input so that they multiply the weight (O, I / groups, kh, kw)."""
    groups = node.groups
    per_row = units.reshape(groups, -1)
    return np.repeat(per_row, len(node.bias) // groups, 0)[:, :, None, None]
