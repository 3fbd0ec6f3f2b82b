"""A float network as int8: branches in int8 codes, the residual trunk in float32.

`exact` makes a graph that every runtime whose kernels round once answers with the same bits
(docs/exact-int8.md): in the trunk only half-integers that float32 holds exactly, in the branches
only sums that are never halfway between two codes. Otherwise scales are free, for an analysis,
which need not be exact.

Every channel counts in units of its own, chosen by what photos need. Between two layers these
units cost nothing: they go into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
from edgecodec.converters.int8_plan import (
    Plan,
    make_plan,
    reaches_output,
    shuffles_after,
    square_of,
    stream_of,
    sums_after,
)
from edgecodec.converters.int8_statistics import Statistics, best_scale, pooled
from edgecodec.converters.int8_weights import Float64Array, int8_weights, whole_weights
from edgecodec.errors import ConversionError

TRUNK_BITS = 3
"""Bits by which the trunk is finer than the codes read from it."""
_STEP = 2.0**TRUNK_BITS
_HALF = 0.5
_FACTOR_BITS = 11
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
            ones = np.ones(value.channels)
            self.made[name] = _Made(name, ones, np.inf * ones, raw=True)
        fused = {relu.name for relu in self.plan.fused.values()}
        left = [node for node in self.graph.nodes if node.name not in fused]
        while left:
            # A branch counts in units of the trunk it is added to, which may be made after it.
            node = next(node for node in left if all(n in self.made for n in self._needs(node)))
            left.remove(node)
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

    def _needs(self, node: Node) -> list[str]:
        other = self._partner(node.output) if node.name in self.plan.int8 else None
        return [*node.inputs, *([other] if other is not None else [])]

    def _partner(self, branch: str) -> str | None:
        """Return the trunk value that a branch is added to, if that is what becomes of it."""
        readers = self.graph.consumers(branch)
        if len(readers) != 1 or not isinstance(readers[0], Add):
            return None
        return next(name for name in readers[0].inputs if name != branch)

    def _emit(self, node: Node, channels: int, coding: Coding | None = None) -> str:
        self.values[node.output] = Value(node.output, channels, coding)
        self.nodes.append(node)
        return node.output

    # -- the trunk --------------------------------------------------------------------------

    def _units_of(self, value: str) -> Float64Array:
        """Return the units of a trunk value about to be made."""
        stream = stream_of(self.graph, value)
        channels = self.graph.values[value].channels
        if stream == [value] and value in self.graph.outputs:
            return np.ones(channels)
        for node in self.graph.nodes:
            if isinstance(node, Add) and node.output in stream:
                for name in node.inputs:
                    if name not in self.made or name not in self.plan.trunk:
                        continue
                    other = self._term(name)
                    if not other.raw:
                        return other.units
        units = self._trunk_units(pooled([self.seen[name] for name in stream]))
        if self.exact and reaches_output(self.graph, value):
            units = np.exp2(np.ceil(np.log2(units)))  # exact to undo
        return self._tied(value, units)

    def _tied(self, value: str, units: Float64Array) -> Float64Array:
        """Return units that are equal where pixel shuffles put channels together."""
        square = square_of(self.graph, value)
        return np.repeat(units.reshape(-1, square).max(1), square)

    def _term(self, name: str) -> _Made:
        """Return a trunk value in the form and units in which sums take it."""
        source = self.made[name]
        return self._snapped(name) if self.exact and not (source.step > 0).all() else source

    def _public(self, node: Node, made: _Made) -> _Made:
        """Emit a node; where its value is an output but in other units, also that output."""
        if node.output not in self.graph.outputs or (made.units == 1.0).all():
            self._emit(node, len(made.units))
            return made
        inner = replace(node, output=f"{node.output}.units")
        name = self._emit(inner, len(made.units))
        factor = made.units.astype(np.float32)
        scaled = Scale(f"{node.output}.real", (name,), node.output, factor)
        self._emit(scaled, len(made.units))
        return replace(made, name=name)

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
        raw = end in self.graph.outputs and stream_of(self.graph, end) == [end]
        if self.exact:
            if any(node.padding):
                raise ConversionError(
                    f"{node.name} pads the trunk; exact int8 cannot", self.graph.stage
                )
            later = 0.0 if raw else SNAP_LIMIT * max(1, sums_after(self.graph, end))
            rounded = whole_weights(
                weight,
                bias,
                source.bound,
                self._samples(node, source),
                later,
                halves=node.inputs[0] in self.plan.trunk,
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
        result = _Made(node.output, units, bound, step, raw)
        self.made[node.output] = self._public(made, result)

    def _readable(self, name: str) -> _Made:
        """Return a trunk value in the form a whole convolution takes."""
        source = self.made[name]
        if name not in self.plan.trunk:
            return self._dequantized(name, source.units)
        return self._snapped(name) if self.exact and not source.ready else source

    def _snapped(self, name: str) -> _Made:
        """Return a trunk value as bounded half-integers, its units those of the trunk."""
        source = self.made[name]
        if source.raw:
            units = self._tied(name, self._trunk_units(self.seen[name]))
            source = self._scaled(source, 2.0 ** np.ceil(np.log2(units)))
        out = f"{name}.snapped"
        if out not in self.values:
            self._emit(Snap(out, (source.name,), out, SNAP_LIMIT), len(source.units))
        return _halves(out, source.units)

    def _scaled(self, source: _Made, units: Float64Array) -> _Made:
        """Return a trunk value in other units."""
        factor = (source.units / units).astype(np.float32)
        for node in self.nodes:
            match node:
                case Scale() if node.inputs == (source.name,) and np.array_equal(
                    node.factor, factor
                ):
                    return _Made(node.output, units, source.bound * factor)
        uses = sum(node.name.startswith(f"{source.name}.scaled") for node in self.nodes)
        name = f"{source.name}.scaled{uses or ''}"
        self._emit(Scale(name, (source.name,), name, factor), len(units))
        return _Made(name, units, source.bound * factor)

    def _dequantized(self, name: str, units: Float64Array) -> _Made:
        """Return codes as numbers in the units given."""
        source = self.made[name]
        coding = self.values[source.name].coding
        assert coding is not None  # these are codes
        uses = sum(node.name.startswith(f"{name}.numbers") for node in self.nodes)
        real = f"{name}.numbers{uses or ''}"
        self._emit(Dequantize(real, (source.name,), real), len(units))
        factor = source.units / units
        if (factor != 1.0).any():
            scaled = f"{real}.scaled"
            self._emit(Scale(scaled, (real,), scaled, factor.astype(np.float32)), len(units))
            real = scaled
        return _Made(real, units, max(map(abs, _range(coding.zero_point))) * factor)

    def _add(self, node: Add) -> None:
        trunk = [name for name in node.inputs if name in self.plan.trunk]
        if self.exact and len(trunk) == 2:
            self._add_halves(node)
            return
        left = self._term(trunk[0])
        if len(trunk) == 1:
            (branch,) = (name for name in node.inputs if name != trunk[0])
            right = self._dequantized(branch, left.units)
        else:
            right = self.made[trunk[1]]
            if not np.array_equal(left.units, right.units):
                right = self._scaled(right, left.units)
        bound = left.bound + right.bound
        if self.exact and not (bound < _EXACT * left.step).all():
            raise ConversionError(f"{node.name}: the trunk does not fit float32", self.graph.stage)
        made = _Made(node.output, left.units, bound, left.step, left.raw)
        self.made[node.output] = self._public(replace(node, inputs=(left.name, right.name)), made)

    def _add_halves(self, node: Add) -> None:
        """Add two trunk values; two half-integers make a whole number, so it is snapped again."""
        left, right = (self._half(name) for name in node.inputs)
        if not np.array_equal(left.units, right.units):
            right = self._snapped_to(right, left.units)
        total = f"{node.output}.sum"
        self._emit(Add(node.name, (left.name, right.name), total), len(left.units))
        self.made[node.output] = self._public_snap(f"{node.name}.snap", total, node.output, left)

    def _half(self, name: str) -> _Made:
        source = self.made[name]
        return source if source.ready else self._snapped(name)

    def _snapped_to(self, source: _Made, units: Float64Array) -> _Made:
        """Return half-integers in other units; of 13 bits times 11 float32 holds every product."""
        fraction, exponent = np.frexp(source.units / units)
        factor = np.ldexp(np.rint(fraction * 2.0**_FACTOR_BITS), exponent - _FACTOR_BITS)
        scaled = self._scaled(source, source.units / factor)
        out = f"{scaled.name}.snapped"
        if out not in self.values:
            self._emit(Snap(out, (scaled.name,), out, SNAP_LIMIT), len(units))
        return _halves(out, units)

    def _public_snap(self, name: str, source: str, output: str, like: _Made) -> _Made:
        snap = Snap(name, (source,), output, SNAP_LIMIT)
        return self._public(snap, _halves(output, like.units))

    def _relu(self, node: Relu) -> None:
        source = self._term(node.inputs[0])
        if not self.exact:
            made = _Made(node.output, source.units, source.bound, source.step, source.raw)
            self.made[node.output] = self._public(replace(node, inputs=(source.name,)), made)
            return
        # Zero is no odd multiple of anything.
        positive = f"{node.output}.positive"
        self._emit(Relu(node.name, (source.name,), positive), len(source.units))
        self.made[node.output] = self._public_snap(
            f"{node.name}.snap", positive, node.output, source
        )

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
        made = _Made(node.output, units, bound, step, source.raw)
        node = replace(node, inputs=(source.name,))
        if coding is None:
            made = self._public(node, made)
        else:
            self._emit(node, len(units), coding)
        self.made[node.output] = made

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
        coding = Coding(_STEP * (0.5 if zero_point else 1.0), zero_point)
        if self.exact and (source.raw or not (source.step > 0).all()):
            source = self._snapped(name)
        elif source.raw:
            scale = best_scale(self.seen[name], *_range(zero_point))
            source = self._scaled(source, scale / coding.scale)
        out = f"{name}.codes"
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
        units = self._tied(output, units)
        weight = node.weight * (_columns(source.units, node) * coding.scale)
        inputs = self._samples(node, source) / coding.scale
        codes = np.clip(np.rint(inputs), *_range(coding.zero_point))
        while True:
            rounded = int8_weights(
                weight,
                node.bias.astype(np.float64),
                units,
                codes,
                exact=self.exact,
                stage=self.graph.stage,
            )
            units = self._tied(output, rounded.units)
            if np.array_equal(units, rounded.units):
                break
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
        other = self._partner(branch)
        return None if other is None else self._term(other).units


def _halves(name: str, units: Float64Array) -> _Made:
    """Return what a Snap makes."""
    bound = np.full(len(units), SNAP_LIMIT + 0.5)
    return _Made(name, units, bound, np.full(len(units), _HALF))


def _range(zero_point: int) -> tuple[int, int]:
    return -128 - zero_point, 127 - zero_point


def _columns(units: Float64Array, node: Conv2d) -> Float64Array:
    """Return units of the input so that they multiply the weight (O, I / groups, kh, kw)."""
    groups = node.groups
    per_row = units.reshape(groups, -1)
    return np.repeat(per_row, len(node.bias) // groups, 0)[:, :, None, None]
