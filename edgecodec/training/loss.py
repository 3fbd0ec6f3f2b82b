"""The loss of training: rate plus lambda times distortion, balanced over the qualities."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from edgecodec.model.network import NeuralCodec
from edgecodec.training.distortion import ms_ssim
from edgecodec.training.options import Objective

MS_SSIM_LAMBDA = 1280.0
"""What lambda is multiplied by for `1 - MS-SSIM` in place of the MSE of levels 0..255.

The ratio of CompressAI's pairs of lambdas (2.4 / 0.0018 to 60.5 / 0.0483): at these two values,
networks trained for either distortion spend about the same rate.
"""


class Losses(NamedTuple):
    """What the loss of a batch of N images is made of."""

    loss: Tensor
    """To be minimised, one number."""
    bpp: Tensor
    """(N,) bits per pixel, information content."""
    mse: Tensor
    """(N,) mean squared error of levels 0..255."""
    ms_ssim: Tensor | None
    """(N,) MS-SSIM; None where the objective does without."""

    def detached(self) -> Losses:
        """Return the numbers without the graph behind them."""
        similarity = None if self.ms_ssim is None else self.ms_ssim.detach()
        return Losses(self.loss.detach(), self.bpp.detach(), self.mse.detach(), similarity)


def rate_distortion_loss(
    codec: NeuralCodec, x: Tensor, quality: Tensor, objective: Objective = "mse"
) -> Losses:
    """Return the loss of a batch, with rate and distortion per image.

    `bpp + lambda * MSE`, or `bpp + 1280 lambda * (1 - MS-SSIM)`, divided by sqrt(lambda) so that
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
    mse = ((x_hat - x) ** 2).mean((1, 2, 3))
    bpp = (bits_y + bits_z) / (x.shape[2] * x.shape[3])
    ratio = codec.cfg.lambda_max / codec.cfg.lambda_min
    lam = codec.cfg.lambda_min * ratio ** ((quality - 1.0) / 99.0)
    similarity = ms_ssim(x, x_hat) if objective == "msssim" else None
    distortion = mse if similarity is None else MS_SSIM_LAMBDA * (1.0 - similarity)
    return Losses(((bpp + lam * distortion) / lam.sqrt()).mean() * 0.1, bpp, mse, similarity)
