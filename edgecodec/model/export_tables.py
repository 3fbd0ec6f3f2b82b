"""Export of the integer tables: everything of the model that must be exact.

Here, once, on the machine that converts, floats become integers; from then on only the integers
count.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgecodec.format import tables as fixed
from edgecodec.format.tables import PRECISION, QUALITIES, Tables
from edgecodec.model import config as fmt
from edgecodec.model.network import IntegerLinear, NeuralCodec

_LEAST_ESCAPE = 2
_LEAST_SHARE = 0.25

SCALE_ERROR = 0.35
"""Standard deviation of the natural logarithm of the true scale around the predicted one."""
_NODES = 21


def symbol_probabilities(sigma: float, half: int) -> tuple[npt.NDArray[np.float64], float]:
    """Return what a latent of predicted standard deviation `sigma` quantizes to.

    A Gaussian scale mixture (Wainwright and Simoncelli 1999): given the predicted scale, the true
    one is log-normal around it with deviation SCALE_ERROR, and such that the variance of the
    mixture stays sigma**2. Against plain Gaussians it saves 1.2 to 1.4 % of the bits
    (docs/experiments.md, 8).

    Args:
        sigma: standard deviation in steps.
        half: largest symbol asked for.

    Returns:
        (half + 1,) probabilities of the symbols 0..half, each positive one as likely as its
        negative; and the probability of all beyond them.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    scales = sigma * np.exp(SCALE_ERROR * nodes - SCALE_ERROR**2)
    edges = (np.arange(half + 1) + 0.5)[:, None] / (scales * math.sqrt(2))
    beyond = np.vectorize(math.erfc)(edges) @ (weights / weights.sum())
    probability = np.concatenate([[1.0], beyond[:-1]]) - beyond
    probability[1:] *= 0.5
    return probability, float(beyond[-1])


def symbol_frequencies(sigma: float) -> npt.NDArray[np.uint16]:
    """Return the frequencies of symbols of predicted standard deviation `sigma`, in steps.

    Returns:
        (2 w + 2,) uint16 of sum 2**14 for the symbols -w..w and the escape, which stands for all
        beyond w, where a quarter of a count would be too much; symmetric, every entry at least 1.
        Among such tables it has the least Kullback-Leibler divergence from
        `symbol_probabilities`.
    """
    probability, beyond = symbol_probabilities(sigma, math.ceil(6.0 * sigma) + 1)
    total = 1 << PRECISION
    half = max(1, int(np.count_nonzero(probability[1:] * total >= _LEAST_SHARE)))
    beyond += 2.0 * float(probability[half + 1 :].sum())
    escape = max(_LEAST_ESCAPE, round(beyond * total))
    p_centre, side = float(probability[0]), probability[1 : half + 1]
    # From a little below the best, move pairs from the centre to where another count gains most.
    freq = np.maximum(1, np.floor(side * (0.9 * total))).astype(np.int64)
    centre = total - escape - 2 * int(freq.sum())
    while True:
        gain = 2 * side * np.log2((freq + 1) / freq)  # bits saved per pair
        best = int(np.argmax(gain))
        if centre <= 2 or gain[best] <= p_centre * math.log2(centre / (centre - 2)):
            break
        freq[best] += 1
        centre -= 2
    if centre < 1:
        raise ValueError(f"sigma {sigma} is too wide for {PRECISION}-bit probabilities")
    return np.concatenate([freq[::-1], [centre], freq, [escape]]).astype(np.uint16)


@functools.cache
def all_frequencies() -> tuple[npt.NDArray[np.uint16], ...]:
    """Return the frequencies of every scale index; index 0 is not coded and has none."""
    rows = [symbol_frequencies(fixed.scale_of(i)) for i in range(1, fixed.SCALE_LEVELS)]
    return (np.zeros(0, np.uint16), *rows)


def _units(values: Tensor, frac: int, low: int, high: int) -> npt.NDArray[np.int64]:
    """Return values in units of 2**-frac, rounded half up as in training, clipped."""
    scaled = torch.floor(values.detach().float() * 2.0**frac + 0.5)
    return scaled.clamp(low, high).numpy().astype(np.int64)


def _bias(layer: IntegerLinear, extra: Tensor | None = None) -> npt.NDArray[np.int32]:
    bias = layer.bias if extra is None else layer.bias + extra
    return _units(bias, layer.accumulator_frac, -(1 << 22), 1 << 22).astype(np.int32)


def _weight(layer: IntegerLinear) -> npt.NDArray[np.int8]:
    return _units(layer.weight, fixed.WEIGHT_FRAC, -127, 127).astype(np.int8)


@torch.no_grad()
def build_tables(codec: NeuralCodec) -> Tables:
    """Return the integer tables of a codec, one row per quality 1..100."""
    q = torch.arange(1, QUALITIES + 1, dtype=torch.float32)
    m = codec.cfg.latent_channels
    h_s = codec.h_s
    sigma_z = codec.log_sigma_z(q).exp().clamp(fixed.SCALE_MIN, fixed.SCALE_MAX)
    index_z = torch.round(torch.log(sigma_z / fixed.SCALE_MIN) / fixed.log_scale_step())
    heads = _bias(h_s.heads)
    index_bias = h_s.heads.bias[m:] + codec.index_bias(q)
    c1, c2, c3 = (_weight(layer) for layer in h_s.contexts())
    return Tables(
        frequencies=all_frequencies(),
        w1=_weight(h_s.first),
        w2=_weight(h_s.second),
        c1=c1,
        c2=c2,
        c3=c3,
        w3=_weight(h_s.heads),
        b1=_bias(h_s.first, codec.hidden_bias(q)),
        b2=_bias(h_s.second),
        bc=np.stack([_bias(layer) for layer in h_s.contexts()]),
        b3=heads[:m],
        index_bias=_units(index_bias, h_s.heads.accumulator_frac, -(1 << 22), 1 << 22).astype(
            np.int32
        ),
        step_y=_units(
            codec.log_step_y(q).exp(), fixed.Y_FRAC + fixed.STEP_FRAC, 1, (1 << 17) - 1
        ).astype(np.int32),
        step_z=_units(
            codec.log_step_z(q).exp(), fixed.Z_FRAC + fixed.Z_STEP_FRAC, 1, (1 << 15) - 1
        ).astype(np.int32),
        # Hyper-latents are always coded: index 0, "not coded", is not theirs to have.
        index_z=index_z.clamp(1, fixed.SCALE_LEVELS - 1).numpy().astype(np.uint8),
        gain_z=codec.log_enc_z(q).exp().numpy().astype(np.float32),
    )


class PredictionTables(NamedTuple):
    """The integers of the prediction of hyper-latents and of cells of one colour.

    Z hyper channels, H hidden units, M latent channels. With z_fix of the left and the upper cell
    in units of 2**-4, zeros outside the tile and for flat cells, and q the quality:

        hidden = clip((w1 . [left, above] + b1[q] + 32) >> 6, 0, 255)
        mean = clip(w2[:Z] . hidden + b2, -2**14, 2**14)
        index = clip((w2[Z:] . hidden + index_bias[q] + 128) >> 8, 1, 63)
        z_fix = clip((symbol * step_z[q] + mean + 8) >> 4, -2047, 2047)

    Accumulators are in units of 2**-10; both heads count fourfold, hence the smaller shifts. The
    encoder's symbol is z * gain_z[q] - mean / step_z[q], rounded, within -127..127.

    A flat cell of colour (r, g, b) has the four latents, in units of 2**-4,

        y_hat = clip((flat_weight . (r, g, b) + flat_bias + 2048) >> 12, -2**15, 2**15 - 1)
    """

    w1: npt.NDArray[np.int8]
    """(H, 2 Z), columns of the left cell, then of the upper one."""
    b1: npt.NDArray[np.int32]
    """(100, H)."""
    w2: npt.NDArray[np.int8]
    """(2 Z, H), rows of means, then of scale indexes."""
    b2: npt.NDArray[np.int32]
    """(Z,), of the means."""
    index_bias: npt.NDArray[np.int32]
    """(100, Z)."""
    flat_weight: npt.NDArray[np.int32]
    """(M, 3), in units of 2**-12 of an integer latent per level."""
    flat_bias: npt.NDArray[np.int32]
    """(M,)."""


_FLAT_FRAC = 12


@torch.no_grad()
def build_prediction_tables(codec: NeuralCodec) -> PredictionTables:
    """Return the integers of a codec that predicts hyper-latents and has flat cells."""
    prediction = codec.z_prediction
    if prediction is None or not codec.cfg.flat_cells:
        raise ValueError("the codec predicts no hyper-latents, or has no flat cells")
    q = torch.arange(1, QUALITIES + 1, dtype=torch.float32)
    z = codec.cfg.hyper_channels
    heads, limit = prediction.heads, 1 << 22
    index_bias = heads.bias[z:] + codec.z_index_bias(q)
    unit = fmt.Y_UNIT * 2.0 ** (fixed.Y_FRAC + _FLAT_FRAC)
    flat_weight = codec.flat_weight * (unit / fmt.PIXEL_UNIT)
    flat_bias = codec.flat_bias * unit - fmt.PIXEL_OFFSET * flat_weight.sum(1)
    return PredictionTables(
        w1=_weight(prediction.first),
        b1=_bias(prediction.first, codec.z_hidden_bias(q)),
        w2=_weight(heads),
        b2=_bias(heads)[:z],
        index_bias=_units(index_bias, heads.accumulator_frac, -limit, limit).astype(np.int32),
        flat_weight=_units(flat_weight, 0, -(1 << 22), 1 << 22).astype(np.int32),
        flat_bias=_units(flat_bias, 0, -(1 << 30), 1 << 30).astype(np.int32),
    )


def export_tables(codec: NeuralCodec) -> bytes:
    """Return the content of `tables.bin` for a codec."""
    return build_tables(codec).to_bytes()
