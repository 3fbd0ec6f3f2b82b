"""A transposed convolution as a plain one and a pixel shuffle.

Each of the stride * stride positions that an input position becomes reads its own part of the
kernel. With all parts as output channels of one convolution over the input, and the pixel shuffle
that puts them side by side, the sums are the same, at the borders too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.nodes import Size

Padding = tuple[int, int, int, int]


def as_convolution(
    weight: Float32Array, stride: int, padding: Size, groups: int
) -> tuple[Float32Array, Padding]:
    """Return weight and padding of the convolution, whose stride is 1.

    Args:
        weight: (I, O / groups, kh, kw) as `torch.nn.functional.conv_transpose2d` takes it.
        stride: down and right, the block of the shuffle.
        padding: of the transposed convolution, which multiplies its input's size by the stride.
        groups: blocks of channels that do not see each other.

    Returns:
        (O * stride**2, I / groups, h, w) float32, output channels in torch's order of a pixel
        shuffle; and zeros above, left, below, right.
    """
    inputs, per_group = weight.shape[:2]
    split = weight.reshape(groups, inputs // groups, per_group, *weight.shape[2:])
    rows = split.transpose(0, 2, 1, 3, 4).reshape(-1, inputs // groups, *weight.shape[2:])
    down, above, below = _taps(weight.shape[2], stride, padding[0])
    right, left, beside = _taps(weight.shape[3], stride, padding[1])
    # A tap of -1 reads the zero behind the last row and column.
    padded = np.pad(rows, ((0, 0), (0, 0), (0, 1), (0, 1)))
    parts = padded[:, :, down[:, None, :, None], right[None, :, None, :]]  # (O, I, s, s, h, w)
    ordered = parts.transpose(0, 2, 3, 1, 4, 5).reshape(-1, inputs // groups, *parts.shape[4:])
    return np.ascontiguousarray(ordered), (above, left, below, beside)


def _taps(kernel: int, stride: int, padding: int) -> tuple[npt.NDArray[np.intp], int, int]:
    """Return what part of a kernel each output position reads from each input position.

    Returns:
        (stride, n), the tap by position within a block and by input, -1 where there is none; and
        how many of the n inputs lie before and behind the block's own.
    """
    before = (kernel - 1 - padding) // stride
    behind = (stride - 1 + padding) // stride
    offset = np.arange(-before, behind + 1)
    taps = np.arange(stride)[:, None] + padding - stride * offset
    return np.where((taps >= 0) & (taps < kernel), taps, -1), before, behind
