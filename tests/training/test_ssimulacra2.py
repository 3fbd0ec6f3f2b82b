from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgecodec.evaluation import ssimulacra2 as in_numpy
from edgecodec.training.ssimulacra2 import ssimulacra2


def picture(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Waves, edges and a little noise."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / rng.uniform(4, 40) + columns / rng.uniform(4, 40)) for _ in range(3)]
    pixels = np.stack(waves, -1) * 70 + 120 + 50 * ((rows // 37 + columns // 29) % 2)[..., None]
    noisy: npt.NDArray[np.float64] = pixels + rng.normal(0, 3, pixels.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("size", [(256, 256), (259, 301), (50, 70)])
def test_score_is_that_of_numpy(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = picture(rng, *size)
    for sigma in (1.5, 6.0, 20.0):
        y = (x + rng.normal(0, sigma, x.shape)).clip(0, 255).astype(np.uint8)
        want = in_numpy.ssimulacra2(x, y)
        assert float(ssimulacra2(tensor(x), tensor(y))) == pytest.approx(want, abs=0.05)


def test_identical_pictures_score_a_hundred_and_each_has_its_own_score() -> None:
    x = torch.cat([tensor(picture(np.random.default_rng(k), 64, 96)) for k in range(2)])
    y = x.clone()
    y[1] += torch.randn_like(y[1]) * 5
    score = ssimulacra2(x, y)
    assert score.shape == (2,)
    assert float(score[0]) == pytest.approx(100.0, abs=0.05)
    assert 0 < float(score[1]) < 95


def test_gradients_are_finite_and_raise_the_score() -> None:
    torch.manual_seed(0)
    x = tensor(picture(np.random.default_rng(0), 192, 192))
    y = (x + torch.randn_like(x) * 8).requires_grad_()
    before = ssimulacra2(x, y)
    before.sum().backward()  # type: ignore[no-untyped-call]
    assert y.grad is not None
    assert torch.isfinite(y.grad).all()
    after = ssimulacra2(x, y.detach() + y.grad / y.grad.abs().max() * 8)
    assert float(after) > float(before.detach()) + 1
    for same in (x, torch.full_like(x, 255.0)):
        z = same.clone().requires_grad_()
        ssimulacra2(same, z).sum().backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        assert torch.isfinite(z.grad).all()


def test_pictures_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 pixels"):
        ssimulacra2(torch.zeros(1, 3, 7, 64), torch.zeros(1, 3, 7, 64))
