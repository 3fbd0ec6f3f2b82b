from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgecodec.evaluation import metrics
from edgecodec.model.network import NeuralCodec
from edgecodec.training.photos import load_photos, to_images
from edgecodec.training.validation import validate
from tests.training.conftest import SMALL


def test_validate_takes_photos_that_fit_exactly(tmp_path: Path) -> None:
    """Such a photo is not cropped, and torch warns of memory that is read-only."""
    Image.new("RGB", (64, 64), (90, 120, 30)).save(tmp_path / "a.png")
    result = validate(NeuralCodec(SMALL), load_photos([tmp_path]), torch.device("cpu"))
    assert sorted(result) == [5, 25, 50, 75, 95]
    assert all(judged.ms_ssim is None for judged in result.values())


def test_validate_tells_the_ms_ssim_of_whole_levels(photos: Path, tmp_path: Path) -> None:
    with Image.open(photos / "a.png") as photo:
        photo.resize((200, 200)).save(tmp_path / "a.png")
    codec = NeuralCodec(SMALL)
    result = validate(codec, load_photos([tmp_path, photos]), torch.device("cpu"))
    crop = load_photos([tmp_path])[0][4:196, 4:196]  # the only one that is large enough
    with torch.inference_mode():
        x = to_images(crop[None].copy(), torch.device("cpu"))
        x_hat = codec.eval()(x, torch.tensor([50.0]))[0].clamp(0, 255).round()
    decoded = x_hat[0].permute(1, 2, 0).numpy().astype(np.uint8)
    assert result[50].ms_ssim == pytest.approx(metrics.ms_ssim(crop, decoded), abs=1e-5)
