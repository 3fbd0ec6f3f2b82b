"""SSIMULACRA2 in torch, with gradients: the same as `edgecodec.evaluation.ssimulacra2`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecodec.evaluation.ssimulacra2 import (
    C2,
    CUBIC,
    EXPONENT,
    FACTOR,
    OPSIN,
    OPSIN_BIAS,
    SMALLEST,
    WEIGHTS,
    B,
    Weights,
    X,
    Y,
)
from edgecodec.evaluation.window import TAPS

_FLOOR = 1e-4
_TINY = 1e-28


def ssimulacra2(x: Tensor, x_hat: Tensor) -> Tensor:
    """Return the score of each image of a batch.

    Computed in float32, under autocast as well. Gradients are finite for finite images.

    Args:
        x: (N, 3, H, W), levels 0..255, both sides 8 or more.
        x_hat: likewise; what lies outside 0..255 counts as the end of that range.

    Returns:
        (N,) float32, 99.97 for identical images. Within tolerance: agrees with the NumPy
        version to 0.05 points between scores of 0 and 95.

    Raises:
        ValueError: a side is below 8 pixels.
    """
    if min(x.shape[2:]) < SMALLEST:
        raise ValueError(f"SSIMULACRA2 needs at least {SMALLEST} pixels per side")
    with torch.autocast(x.device.type, enabled=False):
        n = len(x)
        both = _linear(torch.cat([x, x_hat]).float().contiguous())
        total = both.new_zeros(n)
        for scale, weights in enumerate(WEIGHTS):
            if scale:
                both = F.avg_pool2d(both, 2, ceil_mode=True)
            if min(both.shape[2:]) < SMALLEST:
                break
            planes = _planes(both, tuple(weights))
            total = total + _difference(planes[:n], planes[n:], tuple(weights.values()))
        total = total * FACTOR
        total = CUBIC[0] * total + CUBIC[1] * total**2 + CUBIC[2] * total**3
        # The slope of the power has no bound at zero.
        return 100.0 - 10.0 * total.clamp_min(_FLOOR) ** EXPONENT


def _linear(levels: Tensor) -> Tensor:
    """Return light of sRGB levels, 0..1."""
    values = (levels * (1.0 / 255.0)).clamp(0.0, 1.0)
    bright = ((values.clamp_min(0.04) + 0.055) * (1.0 / 1.055)) ** 2.4
    return torch.where(values <= 0.04045, values * (1.0 / 12.92), bright)


def _planes(light: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """Return the wanted ones of the planes X, Y and B - Y, shifted to be positive."""
    root = OPSIN_BIAS ** (1.0 / 3.0)
    red, green, blue = light[:, 0], light[:, 1], light[:, 2]
    cones = [
        (r * red + g * green + b * blue + OPSIN_BIAS) ** (1.0 / 3.0) - root for r, g, b in OPSIN
    ]
    luma = 0.5 * (cones[0] + cones[1])
    made = {
        X: lambda: 7.0 * (cones[0] - cones[1]) + 0.42,
        Y: lambda: luma + 0.01,
        B: lambda: cones[2] - luma + 0.55,
    }
    return torch.stack([made[plane]() for plane in wanted], 1)


def _difference(a: Tensor, b: Tensor, weights: tuple[Weights, ...]) -> Tensor:
    """Return the weighted sum over the planes (N, C, H, W) of one scale, (N,)."""
    height, width = a.shape[2:]
    rows = _blur(height, a.device, mirrored=True)
    columns = _blur(width, a.device, mirrored=False)
    # One filter for all maps. What differs is filtered as such: as the difference of variance and
    # covariance it would drown in rounding where the pictures are close.
    apart = a - b
    blurred = rows @ torch.cat([a, b, a * a + b * b, apart * apart], 1) @ columns.T
    mean_a, mean_b, squares, differences = blurred.chunk(4, 1)
    shift = (mean_a - mean_b) ** 2
    variances = (squares - mean_a * mean_a - mean_b * mean_b).clamp_min(0.0)
    # 1 - (1 - shift) * (2 * covariance + C2) / (variances + C2)
    distance = (differences - shift).clamp_min(0.0) / (variances + C2)
    structure = shift + (1.0 - shift) * distance
    edges = (1.0 + (b - mean_b).abs()) / (1.0 + (a - mean_a).abs()) - 1.0
    maps = {"structure": structure, "added": edges.clamp_min(0.0), "lost": (-edges).clamp_min(0.0)}
    total = a.new_zeros(len(a))
    for i, of_plane in enumerate(weights):
        for name, weight in of_plane._asdict().items():
            if weight:
                values = maps[name.removesuffix("_4")][:, i]
                total = total + weight * (_norm_4(values) if name.endswith("_4") else _mean(values))
    return total


def _mean(values: Tensor) -> Tensor:
    return values.mean((1, 2))


def _norm_4(values: Tensor) -> Tensor:
    squares = values * values
    return ((squares * squares).mean((1, 2)) + _TINY).sqrt().sqrt()


_MATRICES: dict[tuple[int, bool, str], Tensor] = {}


def _blur(side: int, device: torch.device, *, mirrored: bool) -> Tensor:
    """Return `_blur_matrix`, made once."""
    key = (side, mirrored, str(device))
    if key not in _MATRICES:
        # What is made while inferring could not be used in training.
        with torch.inference_mode(False):
            _MATRICES[key] = _blur_matrix(side, mirrored=mirrored).to(device)
    return _MATRICES[key]


def _blur_matrix(side: int, *, mirrored: bool) -> Tensor:
    """Return (side, side), what filters a column with a Gaussian.

    Beyond the ends of a column lie its mirror image or zeros; the original has one of them along
    each axis.
    """
    reach = len(TAPS) - 1
    matrix = torch.zeros(side, side, dtype=torch.float64)
    for row in range(side):
        for k in range(-reach, reach + 1):
            place = row + k
            if mirrored:
                place = -1 - place if place < 0 else min(place, 2 * side - 1 - place)
            if 0 <= place < side:
                matrix[row, place] += TAPS[abs(k)]
    return matrix.float()
