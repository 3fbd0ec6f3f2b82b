from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.model.config import CodecConfig
from edgecodec.training import initialisation

SMALL = CodecConfig(
    latent_channels=16,
    hyper_channels=8,
    fine_channels=16,
    fine_blocks=1,
    coarse_channels=16,
    coarse_blocks=1,
    hyper_analysis_channels=16,
    hyper_hidden=16,
    hyper_features=8,
)

LAPPED = replace(
    SMALL,
    analysis_fine_channels=24,
    analysis_fine_blocks=2,
    coarse_expansion=24,
    depthwise=5,
    overlap=4,
    replicate=1,
    z_hidden=12,
    flat_cells=1,
)
"""With all that is new in the second shape."""


@pytest.fixture(scope="session", autouse=True)
def _few_crops_for_components() -> Iterator[None]:
    """4096 crops take seconds and a gigabyte; the photos of tests have little variety."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialisation, "_CROPS", 256)
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one photo and a tar of two: smooth colours with edges."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:160, :200]
    blobs = []
    for _ in range(3):
        waves = [np.sin(rows / rng.uniform(5, 30) + columns / rng.uniform(5, 30)) for _ in range(3)]
        pixels = np.stack(waves, -1) * 90 + 128 + 40 * ((rows // 32 + columns // 40) % 2)[..., None]
        buffer = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
        blobs.append(buffer.getvalue())
    (folder / "a.png").write_bytes(blobs[0])
    with tarfile.open(folder / "more.tar", "w") as tar:
        for k, blob in enumerate(blobs[1:]):
            info = tarfile.TarInfo(f"x/{k}.png")
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return folder
