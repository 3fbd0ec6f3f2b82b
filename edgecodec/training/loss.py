"""The loss of training: rate plus lambda times distortion, balanced over the qualities."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from edgecodec.model.network import NeuralCodec
from edgecodec.training.distortion import ms_ssim
from edgecodec.training.options import Objective
from edgecodec.training.ssimulacra2 import ssimulacra2

MS_SSIM_LAMBDA = 1280.0
"""What lambda is multiplied by for `1 - MS-SSIM` in place of the MSE of levels 0..255.

The ratio of CompressAI's pairs of lambdas (2.4 / 0.0018 to 60.5 / 0.0483): at these two values,
networks trained for either distortion spend about the same rate.
"""


BLOCK_WEIGHT = 2.0
"""Weight, beside the MSE's, of the squared errors of the means of 16 x 16 and 32 x 32 blocks."""
_BLOCKS = (16, 32)

_VISUAL_FACTOR = 0.006
_VISUAL_LAMBDA = 0.003
_VISUAL_POWER = 0.69
_VISUAL_KNEE = 0.05
_VISUAL_TOP_POWER = 0.85
_VISUAL_MSE = 0.15
"""Share of the MSE in the visual objective: against gaming the score."""


def visual_weight(lam: Tensor) -> Tensor:
    """Return what a point of SSIMULACRA2 is worth in bits per pixel, given lambda.

    0.006 (lambda / 0.003)**0.69, about the slope of the rate at the score that the MSE alone
    would reach there; beyond lambda = 0.05 it grows faster, since the last points before 90 cost
    ever more bits and scores came to stand at 81 otherwise.
    """
    lower = _VISUAL_FACTOR * (lam.clamp_max(_VISUAL_KNEE) / _VISUAL_LAMBDA) ** _VISUAL_POWER
    return lower * (lam / _VISUAL_KNEE).clamp_min(1.0) ** _VISUAL_TOP_POWER


class Losses(NamedTuple):
    """What the loss of a batch of N images is made of."""

    loss: Tensor
    """To be minimised, one number."""
    bpp: Tensor
    """(N,) bits per pixel, information content."""
    mse: Tensor
    """(N,) mean squared error of levels 0..255."""
    ms_ssim: Tensor | None = None
    """(N,) MS-SSIM; None where the objective does without."""
    ssimulacra2: Tensor | None = None
    """(N,) SSIMULACRA2; None where the objective does without."""
    block_mse: Tensor | None = None
    """(N,) sum of the mean squared errors of block means; None where the objective does without."""

    def detached(self) -> Losses:
        """Return the numbers without the graph behind them."""
        return Losses(*(None if part is None else part.detach() for part in self))  # type: ignore[arg-type]


def block_errors(error: Tensor) -> Tensor:
    """Return the mean squared errors of block means, summed over the sizes of blocks, (N,).

    Eyes see that of all errors first: smooth areas in blotches, flat ones off their colour.

    Args:
        error: (N, C, H, W), sides multiples of 32.
    """
    total = error.new_zeros(len(error))
    means, side = error, 1
    for block in _BLOCKS:
        means, side = F.avg_pool2d(means, block // side), block
        total = total + (means**2).mean((1, 2, 3))
    return total


def rate_distortion_loss(
    codec: NeuralCodec, x: Tensor, quality: Tensor, objective: Objective = "mse"
) -> Losses:
    """Return the loss of a batch, with rate and distortion per image.

    `bpp + lambda * (MSE + 2 * block errors)`, or `bpp + 1280 lambda * (1 - MS-SSIM)`, or
    `bpp + w(lambda) * (100 - SSIMULACRA2) + lambda * (0.15 * MSE + 2 * block errors)` with the w
    of `visual_weight`, divided by sqrt(lambda) so that
    the qualities balance: the step of the quantizer goes with 1 / sqrt(lambda), the gradient of
    the rate with its inverse, and those of the highest qualities would drown all others. The
    divisor is the same for both distortions, since near the optimum the gradient of the
    distortion is as large as that of the rate, whatever the distortion: measured at the start
    from photos, the norm for `msssim` is 1.0 to 1.4 times that for `mse`, from the lowest to the
    highest qualities. One learning rate and one limit of the norm serve both.

    Args:
        codec: in training or evaluation mode.
        x: (N, 3, H, W) float32, levels 0..255; for `msssim` 161 pixels a side or more.
        quality: (N,) in 1..100.
        objective: the distortion.
    """
    x_hat, bits_y, bits_z = codec(x, quality)
    error = x_hat - x
    mse = (error**2).mean((1, 2, 3))
    bpp = (bits_y + bits_z) / (x.shape[2] * x.shape[3])
    ratio = codec.cfg.lambda_max / codec.cfg.lambda_min
    lam = codec.cfg.lambda_min * ratio ** ((quality - 1.0) / 99.0)
    similarity, score, blocks = None, None, None
    if objective == "msssim":
        similarity = ms_ssim(x, x_hat)
        distortion = lam * MS_SSIM_LAMBDA * (1.0 - similarity)
    else:
        blocks = block_errors(error)
        distortion = lam * (mse + BLOCK_WEIGHT * blocks)
        if objective == "visual":
            score = ssimulacra2(x, x_hat)
            distortion = lam * (_VISUAL_MSE * mse + BLOCK_WEIGHT * blocks)
            distortion = distortion + visual_weight(lam) * (100.0 - score)
    loss = ((bpp + distortion) / lam.sqrt()).mean() * 0.1
    return Losses(loss, bpp, mse, similarity, score, blocks)
