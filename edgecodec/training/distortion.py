"""MS-SSIM in torch, with gradients: the same number as `edgecodec.evaluation.metrics.ms_ssim`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecodec.evaluation.metrics import (
    MS_SSIM_C1,
    MS_SSIM_C2,
    MS_SSIM_MIN_SIDE,
    MS_SSIM_WEIGHTS,
)
from edgecodec.evaluation.window import TAPS

_REACH = len(TAPS) - 1

_FLOOR = 1e-4
"""Smallest term of a scale: its power has a steep gradient below, and none at all below zero."""


def ms_ssim(x: Tensor, x_hat: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of each image of a batch.

    Wang, Simoncelli and Bovik 2003 ("Multiscale structural similarity for image quality
    assessment") with the choices of `evaluation.metrics.ms_ssim`, on levels that need not be
    whole: window, scales, weights, channels and borders are the same. One thing differs, for the
    sake of gradients: the mean term of a scale counts as 1e-4 where it is less, instead of as
    zero where it is negative, so that the other scales still have a say.

    Computed in float32, under autocast as well. Gradients are finite for finite images.

    Args:
        x: (N, C, H, W), levels 0..255, both sides at least `MS_SSIM_MIN_SIDE` (161).
        x_hat: (N, C, H, W), nominally levels 0..255.

    Returns:
        (N,) float32, 1 for identical images up to rounding. Within tolerance: agrees with the
        NumPy version to about 1e-5.

    Raises:
        ValueError: a side is below 161 pixels.
    """
    if min(x.shape[2:]) < MS_SSIM_MIN_SIDE:
        raise ValueError(
            f"MS-SSIM needs at least {MS_SSIM_MIN_SIDE} pixels per side, "
            f"the images are {x.shape[3]} x {x.shape[2]}"
        )
    last = len(MS_SSIM_WEIGHTS) - 1
    with torch.autocast(x.device.type, enabled=False):
        a, b = x.float().contiguous(), x_hat.float().contiguous()
        result = a.new_ones(a.shape[:2])
        for scale, weight in enumerate(MS_SSIM_WEIGHTS):
            term = _similarity(a, b, luminance=scale == last)
            result = result * term.clamp_min(_FLOOR) ** weight
            if scale < last:
                a, b = _halve(a), _halve(b)
        return result.mean(1)


def _similarity(a: Tensor, b: Tensor, *, luminance: bool) -> Tensor:
    """Mean contrast-structure term (N, C), times the luminance term where asked for."""
    # One filter for all maps; only the sum of the variances occurs in the formula.
    maps: Tensor = _Blur.apply(  # type: ignore[no-untyped-call]
        torch.cat([a, b, a * b, a * a + b * b], 1)
    )
    mean_a, mean_b, mean_product, mean_squares = maps.chunk(4, 1)
    product = mean_a * mean_b
    squares = mean_a * mean_a + mean_b * mean_b
    # Both variances are positive but for rounding, which levels far outside 0..255 make large.
    variances = (mean_squares - squares + MS_SSIM_C2).clamp_min(0.5 * MS_SSIM_C2)
    similarity = (2 * (mean_product - product) + MS_SSIM_C2) / variances
    if luminance:
        similarity = similarity * (2 * product + MS_SSIM_C1) / (squares + MS_SSIM_C1)
    return similarity.mean((2, 3))


def _halve(planes: Tensor) -> Tensor:
    """Average 2 x 2 blocks; an odd side gets a border of zeros first, as in NumPy."""
    return F.avg_pool2d(planes, 2, padding=(planes.shape[2] % 2, planes.shape[3] % 2))


class _Blur(torch.autograd.Function):
    """Filter (N, C, H, W) with the window, valid part only: (N, C, H - 10, W - 10).

    Sums of shifted planes: faster on a CPU than a depthwise convolution, the more so compiled,
    and never in TF32 on a GPU, as a variance is the small difference of two large means. The
    window is symmetric, so that the gradient is filtered in the same way.
    """

    @staticmethod
    def forward(ctx: Any, planes: Tensor) -> Tensor:
        return _filter(planes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _filter(F.pad(grad, [2 * _REACH] * 4))


def _filter(planes: Tensor) -> Tensor:
    for axis in (2, 3):
        length = planes.shape[axis] - 2 * _REACH
        out = planes.narrow(axis, _REACH, length) * TAPS[0]
        for i, tap in enumerate(TAPS[1:], 1):
            left, right = (planes.narrow(axis, _REACH + k, length) for k in (-i, i))
            out.add_(left + right, alpha=tap)
        planes = out
    return planes
