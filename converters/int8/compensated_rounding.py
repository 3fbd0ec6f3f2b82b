"""Rounding of a weight matrix so that errors cancel where inputs go together.

Rounding each weight to the nearest integer is best for inputs that have nothing to do with each
other. Those of a network have: the local mean is in nearly all of them. So weights are rounded
column by column, and what a column gets wrong is made good, as far as inputs correlate, in the
columns still to come (optimal brain surgeon as in GPTQ, Frantar et al. 2022, arXiv:2210.17323).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float64Array

Spread = tuple[npt.NDArray[np.intp], Float64Array]
"""Order of the columns, and a triangular matrix of how much of an error each later one takes."""
_DAMPING = 0.01


def spread_of(moment: Float64Array) -> Spread:
    """Return how errors spread over inputs whose mean of x x^T is (I, I) `moment`."""
    order = np.argsort(-np.diag(moment), kind="stable")
    damped = moment[np.ix_(order, order)]
    damped = damped + np.eye(len(order)) * (_DAMPING * np.mean(np.diag(moment)) + 1e-9)
    return order, np.linalg.cholesky(np.linalg.inv(damped)).T


def round_compensated(weight: Float64Array, moment: Float64Array, largest: float) -> Float64Array:
    """Return integers W' that make E |(W - W') x|^2 small, row by row.

    Args:
        weight: (O, I) in units of the grid.
        moment: (I, I), mean of x x^T.
        largest: magnitude that integers may have.
    """
    return round_spreading(weight, spread_of(moment), largest)


def round_spreading(weight: Float64Array, spread: Spread, largest: float) -> Float64Array:
    """Do what `round_compensated` does, for several weights of the same inputs."""
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
