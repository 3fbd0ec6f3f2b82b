"""SSIMULACRA2 in torch, with gradients: what the default model is trained for.

Jon Sneyers, https://github.com/cloudinary/ssimulacra2, version 2.1: a fixed formula without any
network. Pictures become XYB, a space of opponent colours near what eyes respond to; at six scales
structure and edges are compared, by a mean and by a norm that counts the worst places; 108
published weights, fitted to people's votes, make one number of it: 90 is visually lossless, 70
high quality, 50 medium, 30 low.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_OPSIN = (
    (0.30, 1.0 - 0.30 - 0.078, 0.078),
    (0.23, 1.0 - 0.23 - 0.078, 0.078),
    (0.24342268924547819, 0.20476744424496821, 1.0 - 0.24342268924547819 - 0.20476744424496821),
)
_OPSIN_BIAS = 0.0037930732552754493
_C2 = 0.0009
_SIGMA = 1.5
_REACH = 5
_SMALLEST = 8
"""Sides below which a scale does not count."""
_FLOOR = 1e-4
_TINY = 1e-28


class _Weights(NamedTuple):
    """Of one plane at one scale, of the mean and of the 4-norm of three maps."""

    structure: float = 0.0
    structure_4: float = 0.0
    added_4: float = 0.0
    """Of edges where the original has none."""
    lost_4: float = 0.0
    """Of edges of the original that are gone."""
    added: float = 0.0
    lost: float = 0.0


_X, _Y, _B = 0, 1, 2
_WEIGHTS: tuple[dict[int, _Weights], ...] = (
    {_Y: _Weights(structure_4=7.466890328078848, lost_4=17.445833984131262)},
    {
        _X: _Weights(structure_4=1.1041726426657346),
        _Y: _Weights(structure_4=6.683678146179332, lost_4=1.027889937768264),
    },
    {
        _X: _Weights(structure_4=1.8422455520539298, added_4=11.441172603757666),
        _Y: _Weights(structure=225.20515300849274, structure_4=19.213238186143016),
    },
    {
        _X: _Weights(structure_4=1.8787594979546387, added_4=10.94906990605142),
        _Y: _Weights(
            structure=176.39317598450694, structure_4=24.43300999870476, added_4=0.28520802612117757
        ),
        _B: _Weights(structure_4=8.826982764996862, added_4=23.19243343998926),
    },
    {
        _X: _Weights(added=0.9677938080626833, added_4=0.9981766977854967),
        _Y: _Weights(structure_4=34.77906344483772, added_4=44.835625328877896),
        _B: _Weights(
            structure=95.1080498811086,
            added_4=171.2667255897307,
            lost_4=0.9807858872435379,
            added=0.9863978034400682,
            lost=0.9834382792465353,
        ),
    },
)
"""By scale, finest first. The others of the 108, the sixth scale's all, are 0.002 or less: at
most a hundredth of a point."""


def ssimulacra2(x: Tensor, x_hat: Tensor) -> Tensor:
    """Return the score of each image of a batch.

    Differs from the original for images below 256 pixels a side: there the original has fewer
    than six scales and goes through its weights in the wrong order.

    Computed in float32, under autocast as well. Gradients are finite for finite images.

    Args:
        x: (N, 3, H, W), levels 0..255, both sides 8 or more.
        x_hat: likewise; what lies outside 0..255 counts as the end of that range.

    Returns:
        (N,) float32, 99.97 for identical images. Within tolerance: agrees with `ssimulacra2` of
        PyPI to 0.1 points between scores of 0 and 95, where both are defined.

    Raises:
        ValueError: a side is below 8 pixels.
    """
    if min(x.shape[2:]) < _SMALLEST:
        raise ValueError(f"SSIMULACRA2 needs at least {_SMALLEST} pixels per side")
    with torch.autocast(x.device.type, enabled=False):
        n = len(x)
        both = _linear(torch.cat([x, x_hat]).float().contiguous())
        total = both.new_zeros(n)
        for scale, weights in enumerate(_WEIGHTS):
            if scale:
                both = F.avg_pool2d(both, 2, ceil_mode=True)
            if min(both.shape[2:]) < _SMALLEST:
                break
            planes = _planes(both, tuple(weights))
            total = total + _difference(planes[:n], planes[n:], tuple(weights.values()))
        total = total * 0.9562382616834844
        total = (
            2.326765642916932 * total
            - 0.020884521182843837 * total**2
            + 6.248496625763138e-05 * total**3
        )
        # The slope of the power has no bound at zero.
        return 100.0 - 10.0 * total.clamp_min(_FLOOR) ** 0.6276336467831387


def _linear(levels: Tensor) -> Tensor:
    """Return light of sRGB levels, 0..1."""
    values = (levels * (1.0 / 255.0)).clamp(0.0, 1.0)
    bright = ((values.clamp_min(0.04) + 0.055) * (1.0 / 1.055)) ** 2.4
    return torch.where(values <= 0.04045, values * (1.0 / 12.92), bright)


def _planes(light: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """Return the wanted ones of the planes X, Y and B - Y, shifted to be positive."""
    root = _OPSIN_BIAS ** (1.0 / 3.0)
    red, green, blue = light[:, 0], light[:, 1], light[:, 2]
    cones = [
        (r * red + g * green + b * blue + _OPSIN_BIAS) ** (1.0 / 3.0) - root for r, g, b in _OPSIN
    ]
    luma = 0.5 * (cones[0] + cones[1])
    made = {
        _X: lambda: 7.0 * (cones[0] - cones[1]) + 0.42,
        _Y: lambda: luma + 0.01,
        _B: lambda: cones[2] - luma + 0.55,
    }
    return torch.stack([made[plane]() for plane in wanted], 1)


def _difference(a: Tensor, b: Tensor, weights: tuple[_Weights, ...]) -> Tensor:
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
    distance = (differences - shift).clamp_min(0.0) / (variances + _C2)
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
    taps = [math.exp(-0.5 * (k / _SIGMA) ** 2) for k in range(-_REACH, _REACH + 1)]
    matrix = torch.zeros(side, side, dtype=torch.float64)
    for row in range(side):
        for k, tap in enumerate(taps):
            place = row + k - _REACH
            if mirrored:
                place = -1 - place if place < 0 else min(place, 2 * side - 1 - place)
            if 0 <= place < side:
                matrix[row, place] += tap / sum(taps)
    return matrix.float()
