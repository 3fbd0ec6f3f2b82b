"""Our entropy model around transforms that are not ours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgecodec.format.coder import LatentCoder
from edgecodec.model.config import CodecConfig
from edgecodec.training.fitted import FittedCodec
from edgecodec.training.loss import rate_distortion_loss

CFG = CodecConfig(
    hyper_channels=4, hyper_analysis_channels=8, hyper_hidden=16, hyper_features=8,
    context_features=8, anchors=3,
)  # fmt: skip
CHANNELS = 12
UNITS = torch.logspace(-2, 1, CHANNELS)[:, None, None]


class Analysis(nn.Module):
    """The strongest cosines of squares of 16, per channel in a unit of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(basis())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.conv2d(x - 128.0, self.basis, stride=16)
        return y * UNITS


class Synthesis(Analysis):
    """The inverse, as far as there is one."""

    def forward(self, y_hat: Tensor) -> Tensor:
        return torch.conv_transpose2d(y_hat / UNITS, self.basis, stride=16) + 128.0


def basis() -> Tensor:
    """(12, 3, 16, 16), orthonormal: two frequencies each way, three colours."""
    n = (torch.arange(16) + 0.5) / 16
    waves = torch.stack([torch.ones(16) / 4, torch.cos(torch.pi * n) / 8**0.5])
    squares = torch.einsum("ui,vj->uvij", waves, waves).reshape(4, 16, 16)
    return torch.einsum("kij,cd->kcdij", squares, torch.eye(3)).reshape(12, 3, 16, 16)


def photos() -> list[np.ndarray]:
    """Blurred noise, calm on one side."""
    rng = np.random.default_rng(4)
    coarse = torch.from_numpy(rng.normal(0, 60, (6, 3, 6, 6)))
    coarse[..., :3] *= 0.1
    fine = nn.functional.interpolate(coarse, size=(96, 96), mode="bilinear")
    shown = (fine + 128).clamp(0, 255).byte().permute(0, 2, 3, 1)
    return list(shown.numpy())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """For networks as small as these a second one costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fitted() -> FittedCodec:
    codec = FittedCodec(Analysis(), Synthesis(), CHANNELS, CFG)
    codec.fit(photos(), steps=60, batch=4, size=64)
    return codec


def bpp_and_mse(codec: FittedCodec, quality: float) -> tuple[float, float]:
    x = torch.from_numpy(np.stack(photos())).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        losses = rate_distortion_loss(codec.eval(), x, torch.full((len(x),), quality))
    return float(losses.bpp.mean()), float(losses.mse.mean())


def test_units_make_up_for_those_of_the_transforms(fitted: FittedCodec) -> None:
    """An orthonormal transform has steps of its noise; a picture's unit is 1/16 of y's."""
    assert torch.allclose(fitted.unit.flatten() * UNITS.flatten() * 16, torch.ones(12), rtol=0.2)


def test_transforms_are_left_as_they_are(fitted: FittedCodec) -> None:
    assert torch.equal(fitted.get_parameter("g_a.basis"), basis())
    assert torch.equal(fitted.get_parameter("g_s.basis"), basis())


def test_learning_saves_bits(fitted: FittedCodec) -> None:
    fresh = FittedCodec(Analysis(), Synthesis(), CHANNELS, CFG)
    fresh.fit(photos(), steps=0, batch=4, size=64)
    (before, worse), (after, better) = (bpp_and_mse(c, 60.0) for c in (fresh, fitted))
    assert after < 0.9 * before
    assert better < 1.1 * worse


def test_qualities_span_a_range(fitted: FittedCodec) -> None:
    low, high = bpp_and_mse(fitted, 1.0), bpp_and_mse(fitted, 100.0)
    assert low[0] < 0.7 * high[0]
    assert low[1] > 1.4 * high[1]  # much of it is what 12 channels cannot hold


def test_stages_and_tables_code_what_training_sees(fitted: FittedCodec) -> None:
    """The decoder's integers are those of the model in torch."""
    x = torch.from_numpy(photos()[0].copy()).permute(2, 0, 1)[None].float()
    coder = LatentCoder(fitted.tables.to_bytes())
    with torch.inference_mode():
        y, z = fitted.analysis(x)
        quality = torch.tensor([50.0])
        z_hat = coder.quantize_hyper(50, z[0].permute(1, 2, 0).numpy())
        coded = fitted.code(y, torch.from_numpy(z_hat).permute(2, 0, 1)[None].float(), quality)
        s, _ = coder.quantize(50, z_hat, np.ascontiguousarray(y[0].permute(1, 2, 0).numpy()))
        found = coded.s_hat[0].permute(1, 2, 0).numpy()
        assert np.mean(found != s) < 0.01  # where a division falls on the other side of a half
        x_hat = fitted.synthesis(coded.y_hat)
    assert x_hat.shape == x.shape
    assert float(((x_hat - x) ** 2).mean()) < 300
