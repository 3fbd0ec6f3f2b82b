"""The residual trunk of an int8 graph: float32, and in an exact graph half-integers alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from edgecodec.arrays import Float64Array
from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.nodes import Add, Dequantize, Node, Rearrangement, Relu, Scale, Snap
from edgecodec.converters.int8.draft import (
    CODE_STEP,
    SNAP_LIMIT,
    Draft,
    Made,
    code_range,
    columns,
    halves,
)
from edgecodec.converters.int8.plan import reaches_output, shuffles_after, stream_of, sums_after
from edgecodec.converters.int8.ranges import Statistics, best_scale, pooled
from edgecodec.converters.int8.weights import whole_weights
from edgecodec.errors import ConversionError

MARGIN = 1.5
"""By how much the trunk may exceed all that photos showed before it is clipped."""
_FACTOR_BITS = 11
_EXACT = 2.0**24
"""Multiples of a step below this are exact in float32."""


class Trunk:
    """Makes trunk values, in the units that all who write to one of its streams share."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.graph, self.exact, self.made = draft.graph, draft.exact, draft.made

    def whole(self, node: Conv2d) -> None:
        """Make a trunk value by a float32 convolution."""
        end, shuffles = shuffles_after(self.graph, node.output)
        begun = self.begun(node)
        units, raw = begun.units, begun.raw
        source = self._readable(node.inputs[0])
        snap = self._own_snap(source, node) if self.exact else None
        weight = node.weight.astype(np.float64) / units[:, None, None, None]
        weight = weight * columns(source.units, node)
        bias = node.bias / units
        bound, step = begun.bound, begun.step
        if self.exact:
            # A zero of the padding takes from sums that they are odd, which a result of the graph
            # need not be: nothing rounds it to codes.
            if any(node.padding) and not (raw and not self.graph.consumers(end)):
                raise ConversionError(
                    f"{node.name} pads the trunk; exact int8 cannot", self.graph.stage
                )
            later = 0.0 if raw else SNAP_LIMIT * max(1, sums_after(self.graph, end))
            rounded = whole_weights(
                weight,
                bias,
                source.bound,
                self.draft.samples(node, source),
                later,
                halves=node.inputs[0] in self.draft.plan.trunk,
                square=math.prod(shuffle.block**2 for shuffle in shuffles),
                stage=self.graph.stage,
            )
            weight, bias = rounded.weight.astype(np.float64), rounded.bias.astype(np.float64)
            bound, step = rounded.bound, rounded.step
        if snap is not None:  # the halves go into the bias, which leaves every sum as it is
            self.draft.nodes[self.draft.nodes.index(snap)] = replace(snap, offset=0.0)
            bias = bias + snap.offset * weight.sum((1, 2, 3))
        made = Conv2d(
            node.name,
            (source.name,),
            node.output,
            weight.astype(np.float32),
            bias.astype(np.float32),
            **node.attributes(),
        )
        self.end(made, replace(begun, bound=bound, step=step))

    def _own_snap(self, source: Made, node: Conv2d) -> Snap | None:
        """Return the node that snaps what a convolution without padding reads, if for it alone."""
        found = [n for n in self.draft.nodes if n.output == source.name]
        read = [n for n in self.draft.nodes if source.name in n.inputs]
        others = [n for n in self.graph.consumers(node.inputs[0]) if n is not node]
        fits = not read and not others and not any(node.padding)
        return found[0] if fits and found and isinstance(found[0], Snap) else None

    def begun(self, node: Conv2d) -> Made:
        """Return what a convolution has to make of a trunk value, its bound still unknown."""
        end, shuffles = shuffles_after(self.graph, node.output)
        units = self._units_of(end)
        for shuffle in reversed(shuffles):
            units = shuffle.spread(units)
        raw = end in self.graph.outputs and stream_of(self.graph, end) == [end]
        return Made(node.output, units, np.full(len(units), np.inf), np.zeros(len(units)), raw)

    def end(self, node: Conv2d | QuantizedConv2d, made: Made) -> None:
        """Emit the convolution that makes a trunk value."""
        self.made[node.output] = self._public(node, made)

    def add(self, node: Add) -> None:
        """Add a branch or another trunk value."""
        trunk = [name for name in node.inputs if name in self.draft.plan.trunk]
        if self.exact and len(trunk) == 2:
            self._add_halves(node)
            return
        left = self.term(trunk[0])
        if len(trunk) == 1:
            (branch,) = (name for name in node.inputs if name != trunk[0])
            right = self.numbers(branch, left.units)
        else:
            right = self.made[trunk[1]]
            if not np.array_equal(left.units, right.units):
                right = self.scaled(right, left.units)
        bound = left.bound + right.bound
        if self.exact and not (bound < _EXACT * left.step).all():
            raise ConversionError(f"{node.name}: the trunk does not fit float32", self.graph.stage)
        made = Made(node.output, left.units, bound, left.step, left.raw)
        self.made[node.output] = self._public(replace(node, inputs=(left.name, right.name)), made)

    def _add_halves(self, node: Add) -> None:
        """Add two trunk values; two half-integers make a whole number, so it is snapped again."""
        left, right = (self._half(name) for name in node.inputs)
        if not np.array_equal(left.units, right.units):
            right = self._snapped_to(right, left.units)
        total = f"{node.output}.sum"
        self.draft.emit(Add(node.name, (left.name, right.name), total), len(left.units))
        self.made[node.output] = self._public_snap(f"{node.name}.snap", total, node.output, left)

    def relu(self, node: Relu) -> None:
        """Make a ReLU that is no part of a convolution."""
        source = self.term(node.inputs[0])
        if not self.exact:
            made = Made(node.output, source.units, source.bound, source.step, source.raw)
            self.made[node.output] = self._public(replace(node, inputs=(source.name,)), made)
            return
        # Zero is no odd multiple of anything.
        positive = f"{node.output}.positive"
        self.draft.emit(Relu(node.name, (source.name,), positive), len(source.units))
        self.made[node.output] = self._public_snap(
            f"{node.name}.snap", positive, node.output, source
        )

    def rearrange(self, node: Rearrangement) -> None:
        """Move a value about, codes too."""
        source = self.made[node.inputs[0]]
        units, bound = (node.merged(row, np.maximum) for row in (source.units, source.bound))
        step = node.merged(np.broadcast_to(source.step, source.units.shape), np.minimum)
        coding = self.draft.values[source.name].coding
        made = Made(node.output, units, bound, step, source.raw)
        node = node.reading(source.name)
        if coding is None:
            made = self._public(node, made)
        else:
            self.draft.emit(node, len(units), coding)
        self.made[node.output] = made

    def numbers(self, name: str, units: Float64Array) -> Made:
        """Return codes as numbers in the units given."""
        source = self.made[name]
        real = self.draft.fresh(f"{name}.numbers")
        self.draft.emit(Dequantize(real, (source.name,), real), len(units))
        factor = source.units / units
        if (factor != 1.0).any():
            scaled = self.draft.fresh(f"{real}.scaled")
            self.draft.emit(Scale(scaled, (real,), scaled, factor.astype(np.float32)), len(units))
            real = scaled
        zero_point = self.draft.coding(source).zero_point
        return Made(real, units, max(map(abs, code_range(zero_point))) * factor)

    def term(self, name: str) -> Made:
        """Return a trunk value in the form and units in which sums take it."""
        source = self.made[name]
        return self.snapped(name) if self.exact and not (source.step > 0).all() else source

    def snapped(self, name: str) -> Made:
        """Return a trunk value as bounded half-integers, its units those of the trunk."""
        source = self.made[name]
        if source.raw:
            units = self.draft.tied(name, self._trunk_units(self.draft.seen[name]))
            source = self.scaled(source, 2.0 ** np.ceil(np.log2(units)))
        out = f"{name}.snapped"
        if out not in self.draft.values:
            self.draft.emit(Snap(out, (source.name,), out, SNAP_LIMIT), len(source.units))
        return halves(out, source.units)

    def scaled(self, source: Made, units: Float64Array) -> Made:
        """Return a trunk value in other units."""
        factor = (source.units / units).astype(np.float32)
        for node in self.draft.nodes:
            match node:
                case Scale() if node.inputs == (source.name,) and np.array_equal(
                    node.factor, factor
                ):
                    return Made(node.output, units, source.bound * factor)
        name = self.draft.fresh(f"{source.name}.scaled")
        self.draft.emit(Scale(name, (source.name,), name, factor), len(units))
        return Made(name, units, source.bound * factor)

    def _public(self, node: Node, made: Made) -> Made:
        """Emit a node; where its value is an output but in other units, also that output."""
        if node.output not in self.graph.outputs or (made.units == 1.0).all():
            self.draft.emit(node, len(made.units))
            return made
        inner = replace(node, output=f"{node.output}.units")
        name = self.draft.emit(inner, len(made.units))
        factor = made.units.astype(np.float32)
        scaled = Scale(f"{node.output}.real", (name,), node.output, factor)
        self.draft.emit(scaled, len(made.units))
        return replace(made, name=name)

    def _public_snap(self, name: str, source: str, output: str, like: Made) -> Made:
        snap = Snap(name, (source,), output, SNAP_LIMIT)
        return self._public(snap, halves(output, like.units))

    def _readable(self, name: str) -> Made:
        """Return a trunk value in the form a whole convolution takes."""
        source = self.made[name]
        if name not in self.draft.plan.trunk:
            return self.numbers(name, source.units)
        return self.snapped(name) if self.exact and not source.ready else source

    def _half(self, name: str) -> Made:
        source = self.made[name]
        return source if source.ready else self.snapped(name)

    def _snapped_to(self, source: Made, units: Float64Array) -> Made:
        """Return half-integers in other units; of 13 bits times 11 float32 holds every product."""
        fraction, exponent = np.frexp(source.units / units)
        factor = np.ldexp(np.rint(fraction * 2.0**_FACTOR_BITS), exponent - _FACTOR_BITS)
        scaled = self.scaled(source, source.units / factor)
        out = f"{scaled.name}.snapped"
        if out not in self.draft.values:
            self.draft.emit(Snap(out, (scaled.name,), out, SNAP_LIMIT), len(units))
        return halves(out, units)

    def _units_of(self, value: str) -> Float64Array:
        """Return the units of a trunk value about to be made."""
        stream = stream_of(self.graph, value)
        channels = self.graph.values[value].channels
        if stream == [value] and value in self.graph.outputs:
            return np.ones(channels)
        for node in self.graph.nodes:
            if isinstance(node, Add) and node.output in stream:
                for name in node.inputs:
                    if name not in self.made or name not in self.draft.plan.trunk:
                        continue
                    other = self.term(name)
                    if not other.raw:
                        return other.units
        units = self._trunk_units(pooled([self.draft.seen[name] for name in stream]))
        if self.exact and reaches_output(self.graph, value):
            units = np.exp2(np.ceil(np.log2(units)))  # exact to undo
        return self.draft.tied(value, units)

    def _trunk_units(self, seen: Statistics) -> Float64Array:
        """Return units in which codes are fine and no extreme is lost, nor one half as large again.

        A code that is clipped misleads one branch; a trunk that is clipped shows in the picture.
        """
        least = MARGIN * seen.largest.astype(np.float64) / SNAP_LIMIT
        return np.maximum(best_scale(seen, *code_range(0)) / CODE_STEP, np.maximum(least, 1e-9))
