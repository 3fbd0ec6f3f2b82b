"""The nodes that are convolutions, of float32 and of int8 codes.

Weights are output channels first: (O, I / groups, kh, kw).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array, Float64Array
from edgecodec.converters.graph.nodes import (
    Coding,
    Codings,
    Indexes,
    Node,
    Padding,
    Range,
    Size,
)


@dataclass(frozen=True, eq=False)
class Convolution(Node):
    """Cross-correlation with zero padding, as `torch.nn.functional.conv2d`.

    Attributes:
        weight: (O, I / groups, kh, kw).
        bias: (O,).
        stride: down and right.
        padding: rows and columns of zeros above, left, below, right.
        dilation: down and right.
        groups: blocks of channels that do not see each other.
    """

    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any]
    stride: Size = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Size = (1, 1)
    groups: int = 1

    channelwise: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, str]] = ("f4", "f4")
    """Types of weight and bias."""

    @property
    def is_depthwise(self) -> bool:
        """Whether every group has a single input channel, and there are several groups."""
        return self.groups > 1 and self.weight.shape[1] == 1

    def attributes(self) -> dict[str, Any]:
        """Return how the kernel moves."""
        names = ("stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return weight and bias."""
        return {"weight": self.weight, "bias": self.bias}

    def channels(self, given: Sequence[int]) -> int | None:
        """Return the rows of the weight."""
        made = len(self.weight)
        fits = given[0] == self.weight.shape[1] * self.groups and made % self.groups == 0
        kinds = self.weight.dtype.str[1:], self.bias.dtype.str[1:]
        return made if fits and self.bias.shape == (made,) and kinds == self.kinds else None

    def size(self, given: Sequence[Size]) -> Size | None:
        """Return how often the kernel fits down and right."""
        ((height, width),) = given
        top, left, bottom, right = self.padding
        height = (height + top + bottom - self._reach(0) - 1) // self.stride[0] + 1
        width = (width + left + right - self._reach(1) - 1) // self.stride[1] + 1
        return (height, width) if height > 0 and width > 0 else None

    def _reach(self, axis: int) -> int:
        """Return how far the last position of the kernel is from the first."""
        return int(self.dilation[axis] * (self.weight.shape[2 + axis] - 1))

    def needs(self, wanted: Range, axis: int) -> Range:
        """Return all that the kernel covers."""
        first, end = wanted
        stride, before = self.stride[axis], self.padding[axis]
        return first * stride - before, (end - 1) * stride - before + self._reach(axis) + 1

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Return the sums."""
        total: Float64Array = self.products(given[0]) + self.bias
        return total

    def products(self, x: Float64Array) -> Float64Array:
        """Return the sums of (H, W, I) without the bias, one product per kernel position."""
        top, left, bottom, right = self.padding
        x = np.pad(x, ((top, bottom), (left, right), (0, 0)))
        (down, across), (dy, dx) = self.stride, self.dilation
        outputs, per_group, rows, columns = self.weight.shape
        height = (x.shape[0] - dy * (rows - 1) - 1) // down + 1
        width = (x.shape[1] - dx * (columns - 1) - 1) // across + 1
        w = self.weight.astype(np.float64).reshape(
            self.groups, outputs // self.groups, per_group, rows, columns
        )
        total = np.zeros((self.groups, height * width, outputs // self.groups))
        for i in range(rows):
            for j in range(columns):
                seen = x[i * dy :: down, j * dx :: across][:height, :width]
                grouped = seen.reshape(height * width, self.groups, per_group).transpose(1, 0, 2)
                total += grouped @ w[:, :, :, i, j].transpose(0, 2, 1)
        made: Float64Array = total.transpose(1, 0, 2).reshape(height, width, outputs)
        return made

    def with_outputs(self, order: Indexes) -> Self:
        """Permute the rows of what it multiplies with."""
        changes: dict[str, Any] = {k: array[order] for k, array in self.arrays().items()}
        return replace(self, **changes)

    def with_inputs(self, order: Indexes) -> Self:
        """Permute the columns of the weight."""
        return replace(self, weight=self.weight[:, order])


@dataclass(frozen=True, eq=False)
class Conv2d(Convolution):
    """Convolution of float32: weight and bias are float32."""

    weight: Float32Array
    bias: Float32Array


@dataclass(frozen=True, eq=False)
class QuantizedConv2d(Convolution):
    """Convolution of int8 codes, of which int8 codes or float32 come out.

    With sum = bias + sum over weight * (code - zero point), padding counting as real zero, codes
    are clip(zero_point' + round(sum * scale * scale_in / scale_out), -128, 127), where scale_in and
    scale_out are those of the values and zero_point' is that of the output: -128 there makes it a
    ReLU. An output without a coding is sum * scale * scale_in.

    Attributes:
        weight: (O, I / groups, kh, kw) int8.
        bias: (O,) int32.
        scale: (O,) float32, of the weights.
    """

    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    scale: Float32Array = field(kw_only=True)

    kinds: ClassVar[tuple[str, str]] = ("i1", "i4")

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return weight, bias and scale."""
        return {**super().arrays(), "scale": self.scale}

    def takes(self, given: Codings, made: Coding | None) -> bool:
        """Take codes."""
        return None not in given

    def run(
        self, given: Sequence[Float64Array], scales: Sequence[float], made: float
    ) -> Float64Array:
        """Return the scaled sums."""
        factor = self.scale.astype(np.float64) * (scales[0] / made)
        return (self.products(given[0]) + self.bias) * factor
