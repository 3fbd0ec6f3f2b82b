"""The start from photos against principal components that NumPy finds by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgecodec.arrays import UInt8Array
from edgecodec.model.config import CodecConfig
from edgecodec.model.network import NeuralCodec
from edgecodec.training.initialisation import start_from_photos
from edgecodec.training.photos import CropStream, load_photos
from tests.training.conftest import SMALL

SEED = 7
EXACT = replace(SMALL, fine_channels=192, coarse_channels=32, latent_channels=32)
"""All 192 components of 8 x 8 blocks: then both stages together are one transform of 16 x 16."""


@pytest.fixture(scope="module")
def crops(photos: Path) -> UInt8Array:
    """(256, 64, 64, 3), the crops that the components are taken from."""
    stream = CropStream(load_photos([photos]), batch=64, size=64, seed=SEED, start=0)
    try:
        return np.concatenate([stream.next() for _ in range(4)])
    finally:
        stream.close()


@pytest.fixture(scope="module")
def energies(crops: UInt8Array) -> npt.NDArray[np.float64]:
    """(768,) what the principal components of 16 x 16 blocks share of the squares, descending."""
    levels: npt.NDArray[np.float64] = crops.astype(np.float64) - 127.5
    rows = levels.reshape(-1, 4, 16, 4, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 768)
    return np.linalg.eigvalsh(rows.T @ rows / rows.size)[::-1].astype(np.float64)


def best_psnr(energies: npt.NDArray[np.float64], kept: int) -> float:
    """PSNR in dB of the best linear code of 16 x 16 blocks with `kept` numbers per block."""
    return float(10 * np.log10(255**2 / energies[kept:].sum()))


def started(cfg: CodecConfig, photos: Path, seed: int = SEED) -> NeuralCodec:
    torch.manual_seed(0)
    codec = NeuralCodec(cfg).eval()
    start_from_photos(codec, load_photos([photos]), seed)
    return codec


@torch.inference_mode()
def transformed(codec: NeuralCodec, crops: UInt8Array) -> tuple[Tensor, float]:
    """Return y and the PSNR in dB of what comes back of it without quantization."""
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).float()
    y, _ = codec.analyse(x)
    error = codec.synthesise(y) - x
    return y, float(10 * torch.log10(255**2 / error.square().mean()))


def test_start_reaches_the_floor_of_linear_transforms(
    photos: Path, crops: UInt8Array, energies: npt.NDArray[np.float64]
) -> None:
    _, psnr = transformed(started(EXACT, photos), crops)
    assert psnr == pytest.approx(best_psnr(energies, 32), abs=0.02)


def test_start_in_two_stages_stays_near_the_floor(
    photos: Path, crops: UInt8Array, energies: npt.NDArray[np.float64]
) -> None:
    """Also with few fine channels, and far from where random weights begin."""
    cfg = replace(SMALL, fine_channels=48, coarse_channels=32, latent_channels=32)
    _, psnr = transformed(started(cfg, photos), crops)
    _, random = transformed(NeuralCodec(cfg).eval(), crops)
    floor = best_psnr(energies, 32)
    assert floor - 1.0 < psnr < floor + 0.01
    assert psnr > random + 10.0


@pytest.mark.parametrize(
    ("fine", "coarse", "latent"), [(192, 48, 24), (192, 24, 48), (200, 32, 32)]
)
def test_start_takes_any_channel_counts(
    photos: Path,
    crops: UInt8Array,
    energies: npt.NDArray[np.float64],
    fine: int,
    coarse: int,
    latent: int,
) -> None:
    """What is too much of one kind stays zero; what is too little sets the floor."""
    cfg = replace(SMALL, fine_channels=fine, coarse_channels=coarse, latent_channels=latent)
    y, psnr = transformed(started(cfg, photos), crops)
    kept = min(coarse, latent)
    assert psnr == pytest.approx(best_psnr(energies, kept), abs=0.02)
    assert not y[:, kept:].any()


def test_start_orders_the_channels_by_deviation(photos: Path, crops: UInt8Array) -> None:
    codec = started(EXACT, photos)
    y, _ = transformed(codec, crops)
    deviations = y.square().mean((0, 2, 3)).sqrt()
    assert (deviations[1:] <= deviations[:-1] * 1.001).all()
    assert deviations[0] > 4 * deviations[-1]
    # The scale index that the hyper-synthesis starts with follows them.
    scales = codec.h_s.heads.bias[EXACT.latent_channels :]
    assert (scales[1:] <= scales[:-1]).all()
    assert scales[0] > scales[-1]


def test_start_is_a_function_of_the_seed(photos: Path) -> None:
    a, b, other = (started(SMALL, photos, seed).state_dict() for seed in (SEED, SEED, SEED + 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], other[name]) for name in a)
