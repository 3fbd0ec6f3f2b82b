"""The kinds of operations a network consists of, and what each of them means.

A node says all that follows from its kind: which channels, sizes and codings it takes and makes,
how far it sees, what it computes, and what a permutation of channels does to it. A new kind of
layer is a class here, its reading in `from_torch`, and its form in each writer. Convolutions have a
module of their own, `convolutions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array, Float64Array

Indexes: TypeAlias = npt.NDArray[np.intp]
Size: TypeAlias = tuple[int, int]
Range: TypeAlias = tuple[int, int]
"""First position along an axis and the one after the last."""
Padding: TypeAlias = tuple[int, int, int, int]
"""Rows and columns above, left, below, right."""
Order: TypeAlias = Literal["crd", "dcr"]
"""Channel order of a shuffle. With C channels on the fine side and a block of r, position (i, j)
of a block comes from channel c * r * r + i * r + j (crd, torch) or (i * r + j) * C + c (dcr,
TFLite)."""


@dataclass(frozen=True)
class Coding:
    """int8 codes that stand for real numbers: real = scale * (code - zero_point).

    Attributes:
        scale: of all channels.
        zero_point: 0, or -128 for what is never negative.
    """

    scale: float
    zero_point: int = 0


Codings: TypeAlias = Sequence[Coding | None]


@dataclass(frozen=True)
class Node:
    """An operation. What is said here holds for one that works element by element on float32.

    Attributes:
        name: unique in its graph.
        inputs: names of the values read.
        output: name of the value made.
    """

    name: str
    inputs: tuple[str, ...]
    output: str

    channelwise: ClassVar[bool] = True
    """Whether channel k of the output is made of channel k of the inputs alone."""

    def attributes(self) -> dict[str, Any]:
        """Return what distinguishes it from others of its kind, weights aside, by name."""
        return {}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return its weights by name."""
        return {}

    def channels(self, given: Sequence[int]) -> int | None:
        """Return how many channels come out; None where these do not fit."""
        return given[0]

    def takes(self, given: Codings, made: Coding | None) -> bool:
        """Return whether it makes values of one coding from values of others; None is float32."""
        return made is None and all(coding is None for coding in given)

    def size(self, given: Sequence[Size]) -> Size | None:
        """Return height and width of what comes out; None where it cannot take these."""
        return given[0]

    def needs(self, wanted: Range, axis: int) -> Range:
        """Return which positions of its input a range of its output depends on.

        Args:
            wanted: of the output; it may reach beyond the picture.
            axis: 0 is down, 1 is right.
        """
        return wanted

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Compute it in float64, not rounded to codes.

        Args:
            given: (H, W, C) each: numbers, or codes less their zero point.
            scales: of these codes; 1 for numbers.
            made: scale of the codes to make.

        Returns:
            (h, w, c) float64, in codes of the output less their zero point.
        """
        raise NotImplementedError

    def with_outputs(self, order: Indexes) -> Self:
        """Return the node of which channel k is channel order[k] of this one.

        Where it is `channelwise`, its inputs have to be permuted likewise.
        """
        return self

    def with_inputs(self, order: Indexes) -> Self:
        """Return the node for a value whose channel k was channel order[k]."""
        return self.with_outputs(order)

    def reading(self, *inputs: str) -> Self:
        """Return the same operation on other values, as many as before."""
        return replace(self, inputs=inputs)


@dataclass(frozen=True)
class Quantize(Node):
    """float32 to the coding of the output: clip(zero_point + round(x / scale), -128, 127)."""

    def takes(self, given: Codings, made: Coding | None) -> bool:
        """Take numbers, make codes."""
        return list(given) == [None] and made is not None

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Divide by the scale."""
        return given[0] / made


@dataclass(frozen=True)
class Dequantize(Node):
    """Codes to the float32 they stand for."""

    def takes(self, given: Codings, made: Coding | None) -> bool:
        """Take codes, make numbers."""
        return None not in given and made is None

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Multiply with the scale."""
        return given[0] * scales[0]


@dataclass(frozen=True, eq=False)
class Scale(Node):
    """Product with a factor per channel.

    Attributes:
        factor: (C,) float32.
    """

    factor: Float32Array

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the factor."""
        return {"factor": self.factor}

    def channels(self, given: Sequence[int]) -> int | None:
        """Return as many as there are factors."""
        return given[0] if self.factor.shape == (given[0],) else None

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Multiply."""
        return given[0] * self.factor

    def with_outputs(self, order: Indexes) -> Self:
        """Permute the factors."""
        return replace(self, factor=self.factor[order])


@dataclass(frozen=True)
class Snap(Node):
    """floor(clip(x, -limit, limit)) + offset: half-integers of bounded magnitude, or integers.

    Attributes:
        offset: 0.5, or 0 where whoever reads it adds the half.
    """

    limit: float
    offset: float = 0.5

    def attributes(self) -> dict[str, Any]:
        """Return limit and offset."""
        return {"limit": float(self.limit), "offset": float(self.offset)}

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Clip and round down."""
        return np.floor(np.clip(given[0], -self.limit, self.limit)) + self.offset


@dataclass(frozen=True)
class Relu(Node):
    """max(x, 0)."""

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Take the larger one."""
        return np.maximum(given[0], 0.0)


@dataclass(frozen=True)
class Add(Node):
    """Sum of two values of one shape."""

    def channels(self, given: Sequence[int]) -> int | None:
        """Return those of both."""
        return given[0] if given[0] == given[1] else None

    def size(self, given: Sequence[Size]) -> Size | None:
        """Return that of both."""
        return given[0] if given[0] == given[1] else None

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Add."""
        return given[0] + given[1]


@dataclass(frozen=True)
class Rearrangement(Node):
    """Moves elements and computes nothing: numbers come out as numbers, codes as the same codes."""

    def takes(self, given: Codings, made: Coding | None) -> bool:
        """Take either, make the same."""
        return list(given) == [made]

    def merged(self, row: Float64Array, choose: np.ufunc) -> Float64Array:
        """Return a number per channel of the input as one per channel of the output.

        Args:
            row: (C,).
            choose: of two numbers, where several channels become one.
        """
        return row

    def spread(self, row: Float64Array) -> Float64Array:
        """Return a number per channel of the output as one per channel of the input."""
        return row


@dataclass(frozen=True)
class ReplicatePad(Rearrangement):
    """Repeats the outermost rows and columns, as torch's padding mode `replicate`.

    Attributes:
        padding: how many rows and columns to add above, left, below, right.
    """

    padding: Padding

    def attributes(self) -> dict[str, Any]:
        """Return the padding."""
        return {"padding": self.padding}

    def size(self, given: Sequence[Size]) -> Size | None:
        """Return the padded size."""
        top, left, bottom, right = self.padding
        return given[0][0] + top + bottom, given[0][1] + left + right

    def needs(self, wanted: Range, axis: int) -> Range:
        """Return the same positions, counted without the padding."""
        return wanted[0] - self.padding[axis], wanted[1] - self.padding[axis]

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Repeat."""
        top, left, bottom, right = self.padding
        return np.pad(given[0], ((top, bottom), (left, right), (0, 0)), mode="edge")


@dataclass(frozen=True)
class Shuffle(Rearrangement):
    """Channels become positions, or the other way round.

    Attributes:
        block: side of a square of positions.
        order: of the channels.
    """

    block: int
    order: Order = "crd"

    channelwise: ClassVar[bool] = False

    def attributes(self) -> dict[str, Any]:
        """Return block and order."""
        return {"block": self.block, "order": self.order}


@dataclass(frozen=True)
class DepthToSpace(Shuffle):
    """Pixel shuffle: `block` * `block` channels become a square of positions."""

    def channels(self, given: Sequence[int]) -> int | None:
        """Return one for each square."""
        made, rest = divmod(given[0], self.block**2)
        return None if rest else made

    def size(self, given: Sequence[Size]) -> Size | None:
        """Return that of as many squares."""
        return given[0][0] * self.block, given[0][1] * self.block

    def needs(self, wanted: Range, axis: int) -> Range:
        """Return the squares that the positions lie in."""
        return wanted[0] // self.block, -(-wanted[1] // self.block)

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Shuffle."""
        (x,), r = given, self.block
        h, w, c = x.shape
        if self.order == "crd":
            x = x.reshape(h, w, c // r**2, r, r).transpose(0, 3, 1, 4, 2)
        else:
            x = x.reshape(h, w, r, r, c // r**2).transpose(0, 2, 1, 3, 4)
        return x.reshape(h * r, w * r, c // r**2)

    def merged(self, row: Float64Array, choose: np.ufunc) -> Float64Array:
        """Choose among the channels of a square, which are neighbours in torch's order."""
        return np.asarray(choose.reduce(row.reshape(-1, self.block**2), axis=1))

    def spread(self, row: Float64Array) -> Float64Array:
        """Repeat for the channels of a square."""
        return np.repeat(row, self.block**2, 0)


@dataclass(frozen=True)
class SpaceToDepth(Shuffle):
    """Pixel unshuffle: a square of positions becomes `block` * `block` channels."""

    def channels(self, given: Sequence[int]) -> int | None:
        """Return as many for each as a square has positions."""
        return given[0] * self.block**2

    def size(self, given: Sequence[Size]) -> Size | None:
        """Return how many squares there are, which must leave no rest."""
        (height, rest), (width, rest_right) = (divmod(side, self.block) for side in given[0])
        return None if rest or rest_right else (height, width)

    def needs(self, wanted: Range, axis: int) -> Range:
        """Return whole squares."""
        return wanted[0] * self.block, wanted[1] * self.block

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Unshuffle."""
        (x,), r = given, self.block
        h, w, c = x.shape
        x = x.reshape(h // r, r, w // r, r, c)
        x = x.transpose(0, 2, 4, 1, 3) if self.order == "crd" else x.transpose(0, 2, 1, 3, 4)
        return x.reshape(h // r, w // r, c * r * r)

    def merged(self, row: Float64Array, choose: np.ufunc) -> Float64Array:
        """Repeat for the channels of a square, which are neighbours in torch's order."""
        return np.repeat(row, self.block**2, 0)
