from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from edgecodec.evaluation import metrics
from edgecodec.training.distortion import ms_ssim

Image = npt.NDArray[np.uint8]


def photo_like(height: int, width: int, seed: int = 0) -> tuple[Image, Image]:
    """A smooth, coloured image with grain and an edge, and a blurred, noisy, brighter copy."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (4, 4, 0))
    image = 110 + 100 * image / np.abs(image).max() + rng.normal(0, 5, (height, width, 1))
    image[:, width // 3 :] += 30
    other = ndimage.gaussian_filter(image, (0.8, 0.8, 0)) + rng.normal(0, 6, image.shape) + 2
    first, second = (np.clip(x, 0, 255).round().astype(np.uint8) for x in (image, other))
    return first, second


def random_pair(height: int, width: int) -> tuple[Image, Image]:
    """Noise, and noise that shares a third of it: without that a term may be negative."""
    rng = np.random.default_rng(1)
    first, other = (rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(2))
    return first, (first / 3 + other * (2 / 3)).round().astype(np.uint8)


def batch(*images: Image) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("size", [(161, 161), (192, 192), (256, 256), (201, 339), (512, 512)])
@pytest.mark.parametrize("kind", [photo_like, random_pair])
def test_ms_ssim_equals_the_numpy_metric(kind: object, size: tuple[int, int]) -> None:
    assert callable(kind)
    a, b = kind(*size)
    expected = metrics.ms_ssim(a, b)
    assert 0.01 < expected < 0.99
    assert float(ms_ssim(batch(a), batch(b))) == pytest.approx(expected, abs=1e-5)


def test_ms_ssim_judges_each_image_of_a_batch_alone() -> None:
    a, b = photo_like(192, 192)
    c, d = random_pair(192, 192)
    together = ms_ssim(batch(a, c, a), batch(b, d, a))
    assert together.shape == (3,)
    expected = [metrics.ms_ssim(a, b), metrics.ms_ssim(c, d), 1.0]
    np.testing.assert_allclose(together.numpy(), expected, atol=1e-5)


def test_ms_ssim_ignores_autocast_and_memory_layout() -> None:
    a, b = (batch(image) for image in photo_like(192, 192))
    expected = ms_ssim(a, b)
    b = b.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = ms_ssim(a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_ms_ssim_gradient_is_that_of_its_values() -> None:
    a, b = (batch(image) for image in photo_like(161, 163))
    b.requires_grad_()
    (gradient,) = torch.autograd.grad(ms_ssim(a, b).sum(), b)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (float(ms_ssim(a, b + step * direction)) for step in (100.0, -100.0))
    assert (ahead - behind) / 200.0 == pytest.approx(float(gradient.norm()), rel=0.02)


def test_ms_ssim_gradients_are_finite_for_any_image() -> None:
    """Also where a term is negative, and where nothing but rounding is left of a variance."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((1, 3, 192, 192), generator=generator) * 255
    photo = batch(photo_like(192, 192)[0])
    flat = torch.full_like(noise, 255.0)
    for x, x_hat in (
        (photo, photo),
        (flat, flat),
        (flat, torch.zeros_like(flat)),
        (flat, photo),
        (photo, flat),
        (noise, noise.flip(3)),
        (noise, 255.0 - noise),
        (photo, 255.0 - photo),
        (photo, 1e5 * (noise - 128.0)),
        (photo, 1e5 + photo),
    ):
        guess = x_hat.clone().requires_grad_()
        value = ms_ssim(x, guess)
        (gradient,) = torch.autograd.grad(value.sum(), guess)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
    assert float(ms_ssim(photo, photo)) == pytest.approx(1.0, abs=1e-6)
    assert float(ms_ssim(photo, 255.0 - photo)) < 0.2
    assert float(ms_ssim(flat, flat)) == pytest.approx(1.0, abs=1e-6)


def test_descent_on_ms_ssim_restores_an_image() -> None:
    a, b = (batch(image) for image in photo_like(161, 161))
    x_hat = b.clone().requires_grad_()
    optimiser = torch.optim.Adam([x_hat], lr=1.0)
    before = float(ms_ssim(a, b))
    for _ in range(8):
        optimiser.zero_grad()
        (1.0 - ms_ssim(a, x_hat)).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    after = float(ms_ssim(a, x_hat.detach()))
    assert 1.0 - after < 0.5 * (1.0 - before)


def test_ms_ssim_refuses_images_below_five_scales() -> None:
    with pytest.raises(ValueError, match="at least 161 pixels per side, the images are 160 x 200"):
        ms_ssim(torch.zeros(1, 3, 200, 160), torch.zeros(1, 3, 200, 160))
