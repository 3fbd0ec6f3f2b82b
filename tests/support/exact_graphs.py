"""Small graphs of the exact int8 scheme with random integers: no trained network needed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph, Value
from edgecodec.converters.graph.nodes import (
    Add,
    Coding,
    DepthToSpace,
    Dequantize,
    Node,
    Padding,
    Quantize,
    ReplicatePad,
    Scale,
    Snap,
)


class Draft:
    """Collects values and nodes of a graph."""

    def __init__(self, seed: int, name: str, channels: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.values = {name: Value(name, channels)}
        self.nodes: list[Node] = []
        self.inputs = (name,)

    def add(self, node: Node, channels: int, coding: Coding | None = None) -> str:
        self.values[node.output] = Value(node.output, channels, coding)
        self.nodes.append(node)
        return node.output

    def fresh(self) -> str:
        return f"n{len(self.nodes)}"

    def integers(self, shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
        return self.rng.integers(-63, 64, shape).astype(np.int8)

    def quantized(
        self,
        source: str,
        outputs: int,
        kernel: int = 1,
        *,
        depthwise: bool = False,
        relu: bool = False,
        padding: int | None = None,
    ) -> str:
        """A convolution whose outputs have a deviation of some 40 codes, of the same size."""
        inputs = self.values[source].channels
        coding = self.values[source].coding
        assert coding is not None
        weight = self.integers((outputs, 1 if depthwise else inputs, kernel, kernel))
        fan = kernel**2 * (1 if depthwise else inputs)
        divisor = np.sqrt(fan) * 36 * self.rng.uniform(0.7, 1.4, outputs)
        divisor = 2 * np.floor(divisor / 2) + 1
        name = self.fresh()
        node = QuantizedConv2d(
            name,
            (source,),
            name,
            weight,
            self.rng.integers(-4000, 4000, outputs).astype(np.int32),
            scale=(1.0 / divisor / coding.scale).astype(np.float32),
            padding=(kernel // 2 if padding is None else padding,) * 4,
            groups=inputs if depthwise else 1,
        )
        return self.add(node, outputs, Coding(1.0, -128 if relu else 0))

    def replicated(self, source: str, padding: Padding) -> str:
        name, value = self.fresh(), self.values[source]
        return self.add(ReplicatePad(name, (source,), name, padding), value.channels, value.coding)

    def block(self, trunk: str, replicate: int = 0) -> str:
        """Codes of the trunk through three convolutions, and back onto it.

        The kernel reaches over 3 x 3 with zeros beside the picture, or as far as is replicated.
        """
        channels, name = self.values[trunk].channels, self.fresh()
        x = self.add(Quantize(name, (trunk,), name), channels, Coding(16.0))
        x = self.quantized(x, channels, relu=True)
        if replicate:
            x = self.replicated(x, (replicate,) * 4)
            x = self.quantized(x, channels, 2 * replicate + 1, depthwise=True, padding=0)
        else:
            x = self.quantized(x, channels, 3, depthwise=True)
        x = self.quantized(x, channels)
        name = self.fresh()
        x = self.add(Dequantize(name, (x,), name), channels)
        name = self.fresh()
        factor = (2.0 ** self.rng.integers(0, 4, channels)).astype(np.float32)
        x = self.add(Scale(name, (x,), name, factor), channels)
        name = self.fresh()
        return self.add(Add(name, (trunk, x), name), channels)

    def whole(self, source: str, outputs: int, fraction: int = 8) -> str:
        """A float32 convolution of integers, the sum odd in its last place."""
        inputs, name = self.values[source].channels, self.fresh()
        weight = self.rng.integers(-60, 61, (outputs, inputs, 1, 1))
        odd = (weight.sum((1, 2, 3)) + 1) % 2  # half-integers in: twice the sum has its parity
        bias = 0.5 * (2 * self.rng.integers(-100, 100, outputs) + odd)
        unit = 2.0**-fraction
        node = Conv2d(
            name,
            (source,),
            name,
            (weight * unit).astype(np.float32),
            (bias * unit).astype(np.float32),
        )
        return self.add(node, outputs)

    def snap(self, source: str, limit: float) -> str:
        name = self.fresh()
        return self.add(Snap(name, (source,), name, limit), self.values[source].channels)

    def shuffle(self, source: str, block: int) -> str:
        name, value = self.fresh(), self.values[source]
        node = DepthToSpace(name, (source,), name, block)
        return self.add(node, value.channels // block**2, value.coding)

    def finish(self, output: str, public: str) -> Graph:
        """Rename the last value."""
        assert self.nodes[-1].output == output
        last = self.nodes.pop()
        value = self.values.pop(output)
        fields = {**last.__dict__, "output": public}
        self.add(type(last)(**fields), value.channels, value.coding)
        return Graph("synthesis", self.values, self.inputs, (public,), tuple(self.nodes))


def synthesis_like(seed: int = 0) -> Graph:
    """Latents to a picture, with every node the scheme uses: y_hat (16 channels) -> x_hat (3)."""
    d = Draft(seed, "y_hat", 16)
    name = d.fresh()
    factor = (2.0 ** d.rng.integers(-3, 1, 16)).astype(np.float32)
    x = d.add(Scale(name, ("y_hat",), name, factor), 16)
    x = d.block(d.snap(x, 2048.0))
    x = d.shuffle(d.whole(x, 32), 2)
    x = d.block(d.block(x))
    x = d.whole(d.snap(x, 2048.0), 48, 10)
    return d.finish(d.shuffle(x, 4), "x_hat")


def replicating(seed: int = 0) -> Graph:
    """The same with borders replicated: codes, and float32 before and behind a shuffle."""
    d = Draft(seed, "y_hat", 16)
    x = d.block(d.snap(d.replicated("y_hat", (1, 0, 2, 3)), 2048.0), replicate=1)
    x = d.block(x, replicate=2)
    x = d.block(d.shuffle(d.whole(x, 32), 2), replicate=3)
    x = d.replicated(d.whole(d.snap(x, 2048.0), 48, 10), (0, 1, 1, 0))
    return d.finish(d.shuffle(x, 4), "x_hat")


def latents(seed: int, height: int, width: int) -> Float32Array:
    """(1, height, width, 16) whole numbers, with a few of the largest magnitude."""
    rng = np.random.default_rng(seed)
    y = np.rint(rng.laplace(scale=400, size=(1, height, width, 16)))
    y[rng.random(y.shape) < 0.01] = 32767
    return y.clip(-32768, 32767).astype(np.float32)
