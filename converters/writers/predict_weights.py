"""Find what int8 tensors can be predicted from, so that a bundle travels smaller.

See `edgecodec.bundle.predictions`. Whatever the quantizer did, a tensor comes back to the byte: a
poor prediction only leaves larger differences.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float16Array, Float32Array, Int8Array
from edgecodec.bundle.predictions import Prediction, Predictions

_ALIKE = 0.75
"""Least share of signs that agree: scales are positive. In layers that do not belong together half
do."""
_SWEEPS = 10


def predict_weights(data: bytearray, arrays: Mapping[int, npt.NDArray[np.generic]]) -> Predictions:
    """Replace int8 tensors of `weights.bin` by differences where these compress better.

    Args:
        data: content of `weights.bin`, changed in place.
        arrays: its tensors by where they begin, filters as (outputs, inputs, ...).
    """
    floats = {
        at: _three_axes(a).astype(np.float16)
        for at, a in arrays.items()
        if a.dtype == np.float16 and a.ndim > 1
    }
    found = []
    for offset, array in arrays.items():
        if array.dtype != np.int8 or array.ndim < 2:
            continue
        codes = _three_axes(array).astype(np.int8)
        prediction = _best(offset, codes, floats)
        if prediction is not None:
            predicted = prediction.codes(floats[prediction.base])
            differences = (codes.view(np.uint8) - predicted.view(np.uint8)).tobytes()
            stored = codes.tobytes()
            factors = prediction.rows.nbytes + prediction.columns.nbytes
            if len(zlib.compress(differences)) + factors < len(zlib.compress(stored)):
                data[offset : offset + len(stored)] = differences
                found.append(prediction)
    return Predictions(found)


def _three_axes(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return array.reshape(*array.shape[:2], -1)


def _best(offset: int, codes: Int8Array, floats: Mapping[int, Float16Array]) -> Prediction | None:
    """Return the prediction from the tensor whose signs agree best, (outputs, inputs, rest) all."""
    signs = np.sign(codes)
    best, most = None, _ALIKE
    for base, weights in floats.items():
        if weights.shape == codes.shape:
            share = float(np.mean(signs * np.sign(weights).astype(np.int8) >= 0))
            if share > most:
                best, most = base, share
    if best is None:
        return None
    rows, columns = _factors(codes, floats[best])
    outputs, inputs, rest = codes.shape
    return Prediction(offset, best, (outputs, inputs, rest), rows, columns)


def _factors(codes: Int8Array, weights: Float16Array) -> tuple[Float32Array, Float32Array]:
    """Return factors of least squared error per output and input, in turns."""
    q, w = codes.astype(np.float32), weights.astype(np.float32)
    products, squares = (q * w).sum(2), np.square(w).sum(2)
    rows, columns = np.ones(q.shape[0], np.float32), np.ones(q.shape[1], np.float32)
    for _ in range(_SWEEPS):
        rows = products @ columns / np.maximum(squares @ columns**2, np.float32(1e-20))
        columns = rows @ products / np.maximum(rows**2 @ squares, np.float32(1e-20))
    return rows, columns
