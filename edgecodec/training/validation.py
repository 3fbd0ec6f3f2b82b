"""Rate and distortion of a codec in training, on photos it never trains on."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from edgecodec.evaluation.metrics import MS_SSIM_MIN_SIDE
from edgecodec.format.strides import HYPER_STRIDE
from edgecodec.model.network import NeuralCodec
from edgecodec.training.distortion import ms_ssim
from edgecodec.training.photos import UInt8Array, to_images


class Judged(NamedTuple):
    """Averages over the photos of a validation at one quality."""

    bpp: float
    """Bits per pixel, information content."""
    psnr: float
    """Decibels."""
    ms_ssim: float | None
    """Over the photos of 161 pixels a side or more; None where there are none."""


def validate(
    codec: NeuralCodec, photos: list[UInt8Array], device: torch.device
) -> dict[int, Judged]:
    """Return rate and distortion per quality on centre crops of at most 512 pixels a side."""
    codec.eval()
    result = {}
    for q in (5, 25, 50, 75, 95):
        rates, values, similarities = [], [], []
        for photo in photos:
            h, w = (min(512, n // HYPER_STRIDE * HYPER_STRIDE) for n in photo.shape[:2])
            top, left = (photo.shape[0] - h) // 2, (photo.shape[1] - w) // 2
            # A copy, because decoded photos are read-only and torch warns of sharing such memory.
            crop = photo[top : top + h, left : left + w].copy()
            x = to_images(crop[None], device)
            with torch.inference_mode():
                x_hat, bits_y, bits_z = codec(x, torch.tensor([float(q)], device=device))
                x_hat = (x_hat + 0.5).clamp(0, 255).floor()  # as `to_levels`
                if min(h, w) >= MS_SSIM_MIN_SIDE:
                    similarities.append(float(ms_ssim(x, x_hat)))
            error = x_hat - x
            values.append(10 * math.log10(255**2 / max(1e-9, float((error**2).mean()))))
            rates.append(float(bits_y + bits_z) / (h * w))
        similarity = float(np.mean(similarities)) if similarities else None
        result[q] = Judged(float(np.mean(rates)), float(np.mean(values)), similarity)
    codec.train()
    return result
