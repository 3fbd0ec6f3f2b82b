"""SSIMULACRA2 in NumPy: a score of what people see, by a fixed formula without any network.

Jon Sneyers, version 2.1, https://github.com/cloudinary/ssimulacra2. Pictures become XYB, a space of
opponent colours near what eyes respond to; at six scales structure and edges are compared, by
a mean and by a norm that counts the worst places; 108 published weights, fitted to people's votes,
make one number of it: 90 is visually lossless, 70 high quality, 50 medium, 30 low.

The constants are those of `edgecodec.training.ssimulacra2` as well, the same with gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import UInt8Array
from edgecodec.evaluation.window import WINDOW, Plane, blur, check_pair

OPSIN = (
    (0.30, 1.0 - 0.30 - 0.078, 0.078),
    (0.23, 1.0 - 0.23 - 0.078, 0.078),
    (0.24342268924547819, 0.20476744424496821, 1.0 - 0.24342268924547819 - 0.20476744424496821),
)
"""Light of red, green and blue that each kind of cones takes in."""
OPSIN_BIAS = 0.0037930732552754493
C2 = 0.0009
"""What steadies the comparison of flat places."""
SMALLEST = 8
"""Sides below which a scale does not count."""
X, Y, B = 0, 1, 2
"""The planes."""


class Weights(NamedTuple):
    """Of one plane at one scale, of the mean and of the 4-norm of three maps."""

    structure: float
    added: float
    """Of edges where the original has none."""
    lost: float
    """Of edges of the original that are gone."""
    structure_4: float
    added_4: float
    lost_4: float


# From `Msssim::Score` of https://github.com/cloudinary/ssimulacra2/blob/main/src/ssimulacra2.cc,
# in its order: a block per plane, six numbers per scale, finest first.
_PUBLISHED = (
    (
        (0.0, 0.0007376606707406586, 0.0, 0.0, 0.0007793481682867309, 0.0),
        (0.0, 0.0004371155730107379, 0.0,
         1.1041726426657346, 0.00066284834129271, 0.00015231632783718752),
        (0.0, 0.0016406437456599754, 0.0, 1.8422455520539298, 11.441172603757666, 0.0),
        (0.0007989109436015163, 0.000176816438078653, 0.0,
         1.8787594979546387, 10.94906990605142, 0.0),
        (0.0007289346991508072, 0.9677937080626833, 0.0,
         0.00014003424285435884, 0.9981766977854967, 0.00031949755934435053),
        (0.0004550992113792063, 0.0, 0.0, 0.0013648766163243398, 0.0, 0.0),
    ),
    (
        (0.0, 0.0, 0.0, 7.466890328078848, 0.0, 17.445833984131262),
        (0.0006235601634041466, 0.0, 0.0,
         6.683678146179332, 0.00037724407979611296, 1.027889937768264),
        (225.20515300849274, 0.0, 0.0,
         19.213238186143016, 0.0011401524586618361, 0.001237755635509985),
        (176.39317598450694, 0.0, 0.0,
         24.43300999870476, 0.28520802612117757, 0.0004485436923833408),
        (0.0, 0.0, 0.0, 34.77906344483772, 44.835625328877896, 0.0),
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    ),
    (
        (0.0, 0.0008680556573291698, 0.0, 0.0, 0.0, 0.0),
        (0.0, 0.0005313191874358747, 0.0, 0.00016533814161379112, 0.0, 0.0),
        (0.0, 0.0, 0.0, 0.0004179171803251336, 0.0017290828234722833, 0.0),
        (0.0020827005846636437, 0.0, 0.0, 8.826982764996862, 23.19243343998926, 0.0),
        (95.1080498811086, 0.9863978034400682, 0.9834382792465353,
         0.0012286405048278493, 171.2667255897307, 0.9807858872435379),
        (0.0, 0.0, 0.0, 0.0005130064588990679, 0.0, 0.00010854057858411537),
    ),
)  # fmt: skip

_LEAST_WEIGHT = 0.01


def _weights(scale: int) -> dict[int, Weights]:
    """Return the weights that count, by plane; planes without any are left out."""
    kept = {
        plane: Weights(*(w if w >= _LEAST_WEIGHT else 0.0 for w in _PUBLISHED[plane][scale]))
        for plane in (X, Y, B)
    }
    return {plane: weights for plane, weights in kept.items() if any(weights)}


WEIGHTS = tuple(weights for scale in range(6) if (weights := _weights(scale)))
"""By scale, finest first, and plane. The others, the sixth scale's all among them, are 0.0021 or
less: a few thousandths of a point, for many more planes to filter."""

FACTOR = 0.9562382616834844
CUBIC = (2.326765642916932, -0.020884521182843837, 6.248496625763138e-05)
"""Coefficients of the weighted sum's first, second and third power."""
EXPONENT = 0.6276336467831387
"""The score is 100 less ten times this power of the cubic."""


def ssimulacra2(a: UInt8Array, b: UInt8Array) -> float:
    """Return how near a picture is to the original, to people's eyes.

    Differs from the original program for images below 225 pixels a side: there that has fewer
    than six scales and goes through its weights in the wrong order. Border handling is that of
    the `ssimulacra2` package of PyPI.

    Args:
        a: the original, (H, W, 3) uint8 sRGB, both sides 8 or more.
        b: what to judge, likewise.

    Returns:
        100 for identical images; may be below zero. Within tolerance: agrees with `ssimulacra2`
        of PyPI to 0.05 points where both are defined.

    Raises:
        ConfigError: not uint8, not (H, W, 3), of different shapes, or a side below 8 pixels.
    """
    check_pair(a, b, SMALLEST, "SSIMULACRA2")
    light = [[_LINEAR[image[..., c]] for c in range(3)] for image in (a, b)]
    total = 0.0
    for scale, weights in enumerate(WEIGHTS):
        if scale:
            light = [[_halve(plane) for plane in planes] for planes in light]
        if min(light[0][0].shape) < SMALLEST:
            break
        first, second = (_xyb(planes, tuple(weights)) for planes in light)
        total += sum(_difference(first[p], second[p], w) for p, w in weights.items())
    total *= FACTOR
    cubic = sum(c * total**power for power, c in enumerate(CUBIC, 1))
    return float(100.0 - 10.0 * max(cubic, 0.0) ** EXPONENT)


def _linear() -> Plane:
    """Light of the levels of sRGB, 0..1, (256,)."""
    values = np.arange(256) / 255.0
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


_LINEAR = _linear()


def _halve(plane: Plane) -> Plane:
    """Average 2 x 2 blocks; at the end of an odd side, what there is of them."""
    odd = [(0, side % 2) for side in plane.shape]
    if any(after for _, after in odd):
        plane = np.pad(plane, odd, mode="edge")
    rows = plane[0::2] + plane[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def _xyb(light: list[Plane], wanted: tuple[int, ...]) -> dict[int, Plane]:
    """Return the wanted ones of the planes X, Y and B - Y, shifted to be positive."""
    root = np.float32(OPSIN_BIAS ** (1.0 / 3.0))
    cones = []
    for factors in OPSIN[: 3 if B in wanted else 2]:
        taken = sum(
            (np.float32(f) * plane for f, plane in zip(factors, light, strict=True)),
            np.float32(OPSIN_BIAS),
        )
        cones.append(np.cbrt(taken) - root)
    luma = np.float32(0.5) * (cones[0] + cones[1])
    made = {Y: luma + np.float32(0.01)}
    if X in wanted:
        made[X] = np.float32(7.0) * (cones[0] - cones[1]) + np.float32(0.42)
    if B in wanted:
        made[B] = cones[2] - luma + np.float32(0.55)
    return made


def _difference(a: Plane, b: Plane, weights: Weights) -> float:
    """Return the weighted sum over one plane (H, W) at one scale."""
    mean_a, mean_b = _mean_around(a), _mean_around(b)
    total = 0.0
    if weights.structure or weights.structure_4:
        # What differs is filtered as such: as the difference of variance and covariance it would
        # drown in the rounding of float32 where the pictures are close.
        apart = a - b
        shift = np.square(mean_a - mean_b)
        distance = np.maximum(_mean_around(apart * apart) - shift, np.float32(0))
        squares = mean_a * mean_a + mean_b * mean_b
        variances = np.maximum(_mean_around(a * a + b * b) - squares, np.float32(0))
        # 1 - (1 - shift) * (2 * covariance + C2) / (variances + C2)
        structure = shift + (1 - shift) * (distance / (variances + np.float32(C2)))
        total += _summary(structure, weights.structure, weights.structure_4)
    if any((weights.added, weights.added_4, weights.lost, weights.lost_4)):
        edges = (1 + np.abs(b - mean_b)) / (1 + np.abs(a - mean_a)) - 1
        total += _summary(np.maximum(edges, 0), weights.added, weights.added_4)
        total += _summary(np.maximum(-edges, 0), weights.lost, weights.lost_4)
    return total


def _mean_around(plane: Plane) -> Plane:
    """Filter (H, W) with the window; mirrored above and below, zeros at the left and the right."""
    reach = WINDOW // 2
    tall = np.pad(plane, ((reach, reach), (0, 0)), mode="symmetric")
    return blur(np.pad(tall, ((0, 0), (reach, reach))))


def _summary(values: npt.NDArray[np.float32], mean: float, norm_4: float) -> float:
    total = mean * float(np.mean(values, dtype=np.float64)) if mean else 0.0
    if norm_4:
        fourth = np.square(np.square(values))
        total += norm_4 * float(np.mean(fourth, dtype=np.float64)) ** 0.25
    return total
