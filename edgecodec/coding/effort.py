"""Encoder effort: a rate-distortion optimised choice of the symbols; decoders never know.

Three tools, in the order of their price:

- *closed loop*: the picture that the decoder will show is analysed again, and what the analysis
  misses moves the target of the quantizer: `t <- y_hat + y - g_a(g_s(y_hat))`. With analysis and
  synthesis close to transposes of each other (they start as an orthonormal transform) this is a
  step of parallel coordinate descent on the squared error of the pixels, errors of neighbouring
  symbols included, which rounding one by one ignores;
- *reluctant rounding* (RDOQ): a symbol moves one step towards zero where the bits saved outweigh
  the squared error. Alone it loses, because the errors it makes have the sign of the signal and
  add up in the pixels; inside the loop it gains;
- *search of the hyper-latents*: bits of z and of all that depends on it, cell by cell. Cells share
  nothing, so that one trial serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import HYPER_LIMIT, RELUCTANCES, Tables

Float32Array = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]
Reanalysis = Callable[[Int16Array], Float32Array]
"""Maps y_hat (h, w, M) int16 in units of 1/16 to the y of the picture it decodes to."""

STEP_WEIGHT = 6.0 / np.log(2.0)
"""Bits that a squared error of one step is worth: where a uniform quantizer is neither too fine nor
too coarse, d/dstep of `-log2(step) + weight * step**2 / 12` is zero."""


@dataclass(frozen=True)
class EffortPlan:
    """What an effort does.

    Attributes:
        loops: runs of synthesis and analysis.
        reluctance: of 1 shifts thresholds by what theory says for independent errors.
        passes: times all channels of z are tried.
    """

    loops: int = 0
    reluctance: float = 0.0
    passes: int = 0


PLANS = {
    1: EffortPlan(),
    2: EffortPlan(loops=1, reluctance=0.1),
    3: EffortPlan(loops=1, reluctance=0.1, passes=1),
    4: EffortPlan(loops=2, reluctance=0.1, passes=1),
    5: EffortPlan(loops=3, reluctance=0.1, passes=2),
    6: EffortPlan(loops=4, reluctance=0.1, passes=2),
    7: EffortPlan(loops=5, reluctance=0.1, passes=3),
    8: EffortPlan(loops=6, reluctance=0.1, passes=4),
    9: EffortPlan(loops=8, reluctance=0.1, passes=6),
}


@dataclass(frozen=True)
class Decision:
    """What to give the quantizer: hyper-latents, target and thresholds."""

    z: Int16Array
    y: Float32Array
    reluctance: Float32Array | None


def decide(
    coder: LatentCoder,
    quality: int,
    y: Float32Array,
    z: Float32Array,
    effort: int,
    reanalyse: Reanalysis,
) -> Decision:
    """Choose hyper-latents and the target of the quantizer for one window.

    Args:
        coder: of the model in use.
        quality: 1..100.
        y: (2 zh, 2 zw, M) float32 from the analysis.
        z: (zh, zw, Z) float32 from the analysis.
        effort: 1..9, one of PLANS.
        reanalyse: synthesis of a y_hat, and analysis of what it shows.
    """
    plan = PLANS[effort]
    z_hat = coder.quantize_hyper(quality, z)
    if plan == EffortPlan():
        return Decision(z_hat, y, None)
    thresholds = thresholds_of(coder.tables, plan.reluctance)
    target = y = np.ascontiguousarray(y)
    for loop in range(plan.loops + 1):
        if loop in (0, plan.loops):
            z_hat = _search_hyper(coder, quality, z_hat, target, thresholds, plan.passes)
        if loop < plan.loops:
            y_hat = dequantize(coder, quality, z_hat, target, thresholds)
            target = y_hat.astype(np.float32) * np.float32(1 / 16) + (y - reanalyse(y_hat))
    return Decision(z_hat, target, thresholds)


def dequantize(
    coder: LatentCoder,
    quality: int,
    z: Int16Array,
    y: Float32Array,
    reluctance: Float32Array | None,
) -> Int16Array:
    """Return the y_hat that a decoder would see, int16 in units of 1/16."""
    s, _ = coder.quantize(quality, z, y, reluctance)
    mu, _ = coder.predict(quality, z, s)
    step = coder.tables.step_y[quality - 1]
    y_hat = np.clip(((s.astype(np.int32) * step + 32) >> 6) + mu, -32768, 32767)
    return np.asarray(y_hat, np.int16)


def thresholds_of(tables: Tables, reluctance: float) -> Float32Array:
    """Return by how many steps the lower threshold of each magnitude moves up.

    Args:
        tables: with the frequencies that say what a symbol costs.
        reluctance: see EffortPlan.

    Returns:
        (levels, 4) float32, for `LatentCoder.quantize`: half the bits saved by k - 1 instead of k,
        over STEP_WEIGHT.
    """
    out = np.zeros((len(tables.frequencies), RELUCTANCES), np.float32)
    for index, bits in enumerate(tables.bits()[1:], 1):
        half = len(bits) // 2 - 1
        for k in range(1, RELUCTANCES + 1):
            at = min(k, half)
            saved = bits[half + at] - bits[half + at - 1]
            out[index, k - 1] = reluctance * saved / (2.0 * STEP_WEIGHT)
    return out


def _search_hyper(
    coder: LatentCoder,
    quality: int,
    z: Int16Array,
    y: Float32Array,
    reluctance: Float32Array,
    passes: int,
) -> Int16Array:
    """Move hyper-latents by one where that makes their cell cheaper."""
    if not passes:
        return z
    best = coder.price(quality, z, y, reluctance, weight=STEP_WEIGHT)
    z = z.copy()
    for _ in range(passes):
        moved = False
        for channel, direction in _moves(coder, quality):
            trial = z.copy()
            trial[..., channel] = (z[..., channel] + direction).clip(-HYPER_LIMIT, HYPER_LIMIT)
            cost = coder.price(quality, trial, y, reluctance, weight=STEP_WEIGHT)
            better = cost < best
            if better.any():
                moved = True
                z[better], best[better] = trial[better], cost[better]
        if not moved:
            break
    return z


def _moves(coder: LatentCoder, quality: int) -> list[tuple[int, int]]:
    """List channels and directions worth a trial: those of channels that vary at all."""
    index = coder.tables.index_z[quality - 1]
    return [(c, d) for c in np.flatnonzero(index > 1).tolist() for d in (-1, 1)]
