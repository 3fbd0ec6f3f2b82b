"""Export of the integer tables: everything of the model that must be exact.

Here, once, on the machine that converts, floats become integers; from then on only the integers
count.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgecodec import tables as fixed
from edgecodec.model.network import IntegerLinear, NeuralCodec
from edgecodec.tables import PRECISION, QUALITIES, Tables

_TAIL_SIGMAS = 4.2
_ESCAPE_FREQUENCY = 2


def gaussian_frequencies(sigma: float) -> npt.NDArray[np.uint16]:
    """Return the frequencies of a zero-mean Gaussian integrated over unit steps.

    Args:
        sigma: standard deviation in steps.

    Returns:
        (2 w + 2,) uint16 of sum 2**14 for the symbols -w..w and the escape; symmetric, every
        entry at least 1. Among such tables it has the least Kullback-Leibler divergence up to
        the parity that symmetry asks for.
    """
    half = max(1, math.ceil(_TAIL_SIGMAS * sigma - 0.5))
    k = np.arange(half + 1)
    upper = np.array([math.erf((v + 0.5) / (sigma * math.sqrt(2))) for v in k])
    side = 0.5 * np.diff(upper)  # probability of +v, v = 1..half
    total = (1 << PRECISION) - _ESCAPE_FREQUENCY
    wanted = side * total
    freq = np.maximum(1, np.floor(wanted)).astype(np.int64)
    centre = total - 2 * int(freq.sum())
    # Move pairs from the centre to where another count gains most: bits saved per pair.
    p_centre = float(upper[0])
    while True:
        gain = 2 * side * np.log2((freq + 1) / freq)
        best = int(np.argmax(gain))
        if centre <= 2 or gain[best] <= p_centre * math.log2(centre / (centre - 2)):
            break
        freq[best] += 1
        centre -= 2
    if centre < 1:
        raise ValueError(f"sigma {sigma} is too wide for {PRECISION}-bit probabilities")
    return np.concatenate([freq[::-1], [centre], freq, [_ESCAPE_FREQUENCY]]).astype(np.uint16)


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
    rows = [gaussian_frequencies(fixed.scale_of(i)) for i in range(1, fixed.SCALE_LEVELS)]
    heads = _bias(h_s.heads)
    index_bias = h_s.heads.bias[m:] + codec.index_bias(q)
    c1, c2, c3 = (_weight(layer) for layer in h_s.contexts())
    return Tables(
        frequencies=(np.zeros(0, np.uint16), *rows),
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


def export_tables(codec: NeuralCodec) -> bytes:
    """Return the content of `tables.bin` for a codec."""
    return build_tables(codec).to_bytes()
