"""Integer tables of a codec without hyper-latents: each channel has one mean and one scale.

The simplest entropy model the format can express (docs/own-codec.md): every weight of the
hyper-synthesis is zero, its biases say everything. It costs more bits than a hyperprior, which
knows where a picture is busy, and needs nothing but samples of latents.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgecodec.errors import ConfigError
from edgecodec.format import tables as fixed
from edgecodec.format.tables import QUALITIES, Tables
from edgecodec.model.export_tables import all_frequencies

_SAMPLES = 16_384


def steps_between(coarsest: float, finest: float) -> npt.NDArray[np.float64]:
    """Return (100,) quantization steps of qualities 1 to 100, each the same ratio finer."""
    return np.geomspace(coarsest, finest, QUALITIES)


def channel_tables(y: npt.NDArray[np.floating], steps: npt.NDArray[np.floating]) -> Tables:
    """Return tables that code each channel of y with a mean and a scale of its own.

    The mean is that of the samples; the scale is the one that codes their symbols in the fewest
    bits, at each quality anew.

    Args:
        y: (N, M) latents at N places of typical photos; some thousands are enough.
        steps: (100,) or (100, M) quantization steps by quality, in the unit of y, falling; the
            finest should be near 1 and is at least 1/16.

    Raises:
        ConfigError: shapes other than these, or numbers that are not finite and in range.
    """
    m = y.shape[1] if y.ndim == 2 else 0
    if not m or not len(y) or not np.isfinite(y).all():
        raise ConfigError(f"y must be finite numbers of shape (samples, channels), not {y.shape}")
    if steps.shape not in ((QUALITIES,), (QUALITIES, m)):
        raise ConfigError(f"steps must be of shape (100,) or (100, {m}), not {steps.shape}")
    rows = np.broadcast_to(steps.reshape(QUALITIES, -1), (QUALITIES, m))
    step_y = np.rint(rows * (1 << fixed.Y_FRAC + fixed.STEP_FRAC))
    if not (np.isfinite(rows).all() and 64 <= step_y.min() <= step_y.max() <= 131071):
        raise ConfigError("steps must lie between 1/16 and 127")
    mu = np.rint(y.mean(0) * (1 << fixed.Y_FRAC))
    if np.abs(mu).max() > 1 << 14:
        raise ConfigError("the mean of a channel lies beyond 1024; give y in a coarser unit")
    some = y[:: -(-len(y) // _SAMPLES)] - mu / (1 << fixed.Y_FRAC)
    index = np.stack([_best_indexes(some / row) for row in rows])
    # Of the accumulators of the hyper-synthesis as docs/FORMAT.md has them.
    mu_shift = fixed.ACTIVATION_FRAC + fixed.WEIGHT_FRAC - fixed.HEAD_GAIN_LOG2 - fixed.Y_FRAC
    index_shift = fixed.ACTIVATION_FRAC + fixed.WEIGHT_FRAC - fixed.HEAD_GAIN_LOG2
    ones = np.ones((QUALITIES, 1))
    return Tables(
        frequencies=all_frequencies(),
        w1=np.zeros((1, 1), np.int8),
        w2=np.zeros((4, 1), np.int8),
        c1=np.zeros((1, m), np.int8),
        c2=np.zeros((1, 2 * m), np.int8),
        c3=np.zeros((1, 3 * m), np.int8),
        w3=np.zeros((2 * m, 2), np.int8),
        b1=np.zeros((QUALITIES, 1), np.int32),
        b2=np.zeros(4, np.int32),
        bc=np.zeros((3, 1), np.int32),
        b3=(mu * (1 << mu_shift)).astype(np.int32),
        index_bias=(index << index_shift).astype(np.int32),
        step_y=step_y.astype(np.int32),
        step_z=ones.astype(np.int32),
        index_z=ones.astype(np.uint8),
        gain_z=ones.astype(np.float32),
    )


def _best_indexes(s: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Return the scale index, 1 or more, that codes each channel of (N, M) in the fewest bits."""
    limit = fixed.SYMBOL_LIMIT
    symbols = np.clip(np.floor(s + 0.5), -limit, limit).astype(np.int64)
    reach = int(np.abs(symbols).max())
    width = 2 * reach + 1
    places = symbols + reach + width * np.arange(s.shape[1])
    counts = np.bincount(places.ravel(), minlength=width * s.shape[1]).reshape(-1, width)
    best: npt.NDArray[np.int64] = np.argmin(counts @ _costs(reach).T, 1) + 1
    return best


def _costs(reach: int) -> npt.NDArray[np.float64]:
    """Return the bits of symbols -reach..reach, one row per scale index from 1 on."""
    values = np.arange(-reach, reach + 1)
    rows = []
    for row in all_frequencies()[1:]:
        half = len(row) // 2 - 1
        bits = fixed.PRECISION - np.log2(row.astype(np.float64))
        beyond = np.maximum(np.abs(values) - half - 1, 0)
        nibbles = np.ceil(np.log2(2.0 * beyond + 2.0) / 4)
        coded = bits[np.clip(values + half, 0, 2 * half)]
        rows.append(np.where(np.abs(values) <= half, coded, bits[-1] + 4 + 4 * nibbles))
    return np.stack(rows)
