from __future__ import annotations

import pytest
import torch

from edgecodec.model.network import NeuralCodec
from edgecodec.training.distortion import ms_ssim
from edgecodec.training.loss import rate_distortion_loss
from tests.training.conftest import SMALL


def test_loss_of_ms_ssim_weighs_it_1280_times_as_much_as_mse() -> None:
    torch.manual_seed(0)
    codec = NeuralCodec(SMALL)
    codec.eval()  # without the noise of training, so that the parts are the same each time
    x = torch.rand(2, 3, 192, 192) * 255
    quality = torch.tensor([20.0, 80.0])
    with torch.no_grad():
        losses = rate_distortion_loss(codec, x, quality, "msssim")
        plain = rate_distortion_loss(codec, x, quality)
        similarity = ms_ssim(x, codec(x, quality)[0])
    assert losses.ms_ssim is not None
    assert torch.allclose(losses.ms_ssim, similarity)
    lam = SMALL.lambda_min * (SMALL.lambda_max / SMALL.lambda_min) ** ((quality - 1) / 99)
    expected = losses.bpp / lam.sqrt() + 1280.0 * lam.sqrt() * (1.0 - losses.ms_ssim)
    assert float(losses.loss) == pytest.approx(0.1 * float(expected.mean()), rel=1e-5)
    assert plain.ms_ssim is None
    assert torch.equal(plain.bpp, losses.bpp)
