from __future__ import annotations

import pytest
import torch

from edgecodec.model.network import NeuralCodec
from edgecodec.training.distortion import ms_ssim
from edgecodec.training.loss import block_errors, rate_distortion_loss, visual_weight
from edgecodec.training.ssimulacra2 import ssimulacra2
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


def test_visual_loss_is_rate_score_and_a_share_of_squares() -> None:
    torch.manual_seed(0)
    codec = NeuralCodec(SMALL).eval()
    x = torch.rand(2, 3, 192, 192) * 255
    quality = torch.tensor([20.0, 80.0])
    with torch.no_grad():
        losses = rate_distortion_loss(codec, x, quality, "visual")
        x_hat, *_ = codec(x, quality)
        plain = rate_distortion_loss(codec, x, quality)
    score, blocks = ssimulacra2(x, x_hat), block_errors(x_hat - x)
    lam = SMALL.lambda_min * (SMALL.lambda_max / SMALL.lambda_min) ** ((quality - 1) / 99)
    seen = visual_weight(lam) * (100 - score) + lam * (0.15 * losses.mse + 2 * blocks)
    expected = 0.1 * ((losses.bpp + seen) / lam.sqrt()).mean()
    assert float(losses.loss) == pytest.approx(float(expected), rel=1e-5)
    squares = 0.1 * ((plain.bpp + lam * (plain.mse + 2 * blocks)) / lam.sqrt()).mean()
    assert float(plain.loss) == pytest.approx(float(squares), rel=1e-5)


def test_block_errors_are_those_of_means() -> None:
    error = torch.randn(1, 3, 64, 96) + 0.5
    want = 0.0
    for side in (16, 32):
        blocks = error.reshape(3, 64 // side, side, 96 // side, side).mean((2, 4))
        want += float((blocks**2).mean())
    assert float(block_errors(error)) == pytest.approx(want, rel=1e-4)


def test_a_point_of_the_score_is_worth_more_towards_the_top() -> None:
    weights = visual_weight(torch.tensor([0.003, 0.05, 0.8]))
    assert weights.tolist() == pytest.approx([0.006, 0.0418, 0.441], rel=0.01)
