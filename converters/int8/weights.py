"""Integers for the weights of one convolution, and the proof that their sums are exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array, Float64Array
from edgecodec.errors import ConversionError

MAX_DIVISOR = 2047
MAX_BIAS = 1 << 20
"""With these bounds no float32 kernel, in whatever order it scales, adds the bias and moves the
zero point, can err by as much as half of 1 / divisor, the distance to the nearest halfway case."""
LARGEST = {True: 63, False: 127}
"""Magnitude of weights. Exact ones have seven bits: x86 processors without VNNI add pairs of
products in 16 bits, which 2 * 255 * 63 fits and 2 * 255 * 127 does not."""
Spread = tuple[npt.NDArray[np.intp], Float64Array]
"""Order of the columns, and a triangular matrix of how much of an error each later one takes."""
_DAMPING = 0.01
_LEAST_FRACTION = 3
_ANY = 2.0**24


@dataclass(frozen=True, eq=False)
class Int8Weights:
    """What a `QuantizedConv2d` holds, for codes that count in units of their own.

    Attributes:
        weight: (O, I / groups, kh, kw) int8.
        bias: (O,) int32.
        scale: (O,) float32: units of the output per unit of the sum.
        units: (O,) float64: real numbers per unit of the output, at least what was asked for.
    """

    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    scale: Float32Array
    units: Float64Array


def int8_weights(
    weight: Float64Array,
    bias: Float64Array,
    units: Float64Array,
    inputs: Float64Array,
    *,
    exact: bool,
    stage: str,
) -> Int8Weights:
    """Round a convolution that takes codes.

    Exact means that every scale is one over an odd number: sum / divisor = n + 1/2 would make
    2 * sum = divisor * (2 n + 1), an even number equal to an odd one, so no sum of whatever
    integers lies halfway between two results.

    Args:
        weight: (O, I / groups, kh, kw), real output per code of the input.
        bias: (O,), real.
        units: (O,), real numbers per code of the output; doubled where weights or bias ask for it.
        inputs: (I, n), codes of the input as photos make them.
        exact: by the scheme above; otherwise the scale is free.
        stage: for errors.

    Raises:
        ConversionError: a bias is too large.
    """
    units, top = units.copy(), LARGEST[exact]
    largest = np.maximum(np.abs(weight).max((1, 2, 3)), 1e-30)
    while (steep := largest > top * units).any():  # as of channels that photos leave at zero
        units[steep] *= 2.0
    most = MAX_BIAS if exact else 1 << 30
    while True:
        factor = _factors(largest, units, exact=exact)
        real = units * factor  # of one unit of the sum
        heavy = np.abs(bias) >= 0.5 * most * real  # as of channels that a ReLU leaves at zero
        if not heavy.any():
            break
        units[heavy] *= 2.0
    whole = _rounded(weight / real[:, None, None, None], _spread(weight, inputs), top)
    error = weight / real[:, None, None, None] - whole
    offset = np.rint(bias / real + _response(error, inputs.mean(1)))
    if np.abs(offset).max(initial=0) >= most:
        raise ConversionError("a bias is too large for int8", stage)
    return Int8Weights(
        whole.astype(np.int8),
        offset.astype(np.int32),
        factor.astype(np.float32),
        units,
    )


def _factors(largest: Float64Array, units: Float64Array, *, exact: bool) -> Float64Array:
    """Return units of the output per unit of the sum."""
    if exact:
        divisor = np.floor(np.minimum(LARGEST[exact] * units / largest, MAX_DIVISOR))
        factor: Float64Array = 1.0 / (divisor - 1 + divisor % 2)
        return factor
    # Kernels know no scale below 2**-32.
    return np.maximum(largest / units, 1e-4) / LARGEST[exact]


def _spread(weight: Float64Array, inputs: Float64Array) -> Spread | None:
    """Return how to compensate errors, where one place has all the inputs of a convolution."""
    if weight.shape[1:] != (len(inputs), 1, 1):
        return None
    return spread_of(inputs @ inputs.T / inputs.shape[1])


def _rounded(weight: Float64Array, spread: Spread | None, largest: float) -> Float64Array:
    """Round (O, I / groups, kh, kw), row by row."""
    if spread is None:
        return np.clip(np.rint(weight), -largest, largest)
    return round_spreading(weight[:, :, 0, 0], spread, largest)[:, :, None, None]


def _response(weight: Float64Array, mean: Float64Array) -> Float64Array:
    """Return what a convolution makes of inputs that are their mean everywhere."""
    groups = len(mean) // weight.shape[1]
    rows = np.repeat(mean.reshape(groups, -1), len(weight) // groups, 0)
    response: Float64Array = (weight.sum((2, 3)) * rows).sum(1)
    return response


@dataclass(frozen=True, eq=False)
class WholeWeights:
    """A float32 convolution whose every sum is exact.

    Attributes:
        weight: (O, I / groups, kh, kw) float32, even multiples of the step.
        bias: (O,) float32, multiples of the step: whichever make sums over half-integers odd ones.
        step: (O,) float64, what outputs are odd multiples of.
        bound: (O,) float64, largest magnitude of an output.
    """

    weight: Float32Array
    bias: Float32Array
    step: Float64Array
    bound: Float64Array


def whole_weights(
    weight: Float64Array,
    bias: Float64Array,
    bound: Float64Array,
    inputs: Float64Array,
    later: float,
    *,
    halves: bool = True,
    square: int = 1,
    stage: str,
) -> WholeWeights:
    """Round a convolution of half-integers so that float32 holds each partial sum exactly.

    Each output takes as many fractional bits as leave the sum of |weight| * bound, in half units,
    below 2**24, for the worst input there can be and with what is added later.

    Args:
        weight: (O, I / groups, kh, kw), units of the output per unit of the input.
        bias: (O,), units of the output.
        bound: (I,), largest magnitude of each input channel.
        inputs: (I, n), the input as photos make it.
        later: magnitude of what may be added to the outputs.
        halves: whether inputs are half-integers; else they are integers.
        square: how many neighbouring outputs a pixel shuffle makes one channel of, whose values
            must have one step.
        stage: for errors.

    Raises:
        ConversionError: fewer than 3 fractional bits would be left.
    """
    groups = len(bound) // weight.shape[1]
    limits = np.repeat(bound.reshape(groups, -1), len(weight) // groups, 0)
    fraction = np.full(len(weight), 30.0)
    spread, whole = _spread(weight, inputs), np.empty_like(weight)
    over = np.ones(len(weight), bool)
    while True:
        unit = 2.0**-fraction
        whole[over] = _rounded(weight[over] / unit[over, None, None, None], spread, _ANY)
        worst = (np.abs(whole).sum((2, 3)) * limits).sum(1)
        # In halves of the unit: half-integers in, and a sum that is odd in its last place.
        odd = (whole.sum((1, 2, 3)) + 1) % 2 if halves else np.ones(len(weight))
        offset = 2.0 * np.rint((2.0 * bias / unit - odd) / 2.0) + odd
        over = 2.0 * (worst + later / unit) + np.abs(offset) >= _ANY
        if not over.any():
            break
        common = np.repeat((fraction - over).reshape(-1, square).min(1), square)
        fraction, over = common, common < fraction
        if (fraction < _LEAST_FRACTION).any():
            raise ConversionError("the sums of a convolution do not fit float32 exactly", stage)
    return WholeWeights(
        (whole * unit[:, None, None, None]).astype(np.float32),
        (0.5 * offset * unit).astype(np.float32),
        0.5 * unit,
        (worst + 0.5 * np.abs(offset)) * unit,
    )


def spread_of(moment: Float64Array) -> Spread:
    """Return how errors spread over inputs whose mean of x x^T is (I, I) `moment`."""
    order = np.argsort(-np.diag(moment), kind="stable")
    damped = moment[np.ix_(order, order)]
    damped = damped + np.eye(len(order)) * (_DAMPING * np.mean(np.diag(moment)) + 1e-9)
    return order, np.linalg.cholesky(np.linalg.inv(damped)).T


def round_spreading(weight: Float64Array, spread: Spread, largest: float) -> Float64Array:
    """Return integers W' that make E |(W - W') x|^2 small, row by row.

    Rounding each weight to the nearest integer is best for inputs that have nothing to do with each
    other. Those of a network have: the local mean is in nearly all of them. So weights are rounded
    column by column, and what a column gets wrong is made good, as far as inputs correlate, in the
    columns still to come (optimal brain surgeon as in GPTQ, Frantar et al. 2022, arXiv:2210.17323).

    Args:
        weight: (O, I) in units of the grid.
        spread: of its inputs.
        largest: magnitude that integers may have.
    """
    order, upper = spread
    left = weight[:, order].copy()
    whole = np.empty_like(left)
    for i in range(len(order)):
        whole[:, i] = np.clip(np.rint(left[:, i]), -largest, largest)
        error = (left[:, i] - whole[:, i]) / upper[i, i]
        left[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    result = np.empty_like(whole)
    result[:, order] = whole
    return result
