from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecodec.arrays import UInt8Array
from edgecodec.training import synthetic
from edgecodec.training.photos import CropStream, load_photos
from edgecodec.training.synthetic import synthetic_picture


def test_a_picture_is_a_function_of_its_generator() -> None:
    pictures = [synthetic_picture(64, np.random.default_rng(k)) for k in range(60)]
    again = [synthetic_picture(64, np.random.default_rng(k)) for k in range(60)]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures)
    assert all(np.array_equal(a, b) for a, b in zip(pictures, again, strict=True))
    cells = [p[y : y + 32, x : x + 32] for p in pictures for y in (0, 32) for x in (0, 32)]
    flat = [c[0, 0] for c in cells if (c == c[0, 0]).all()]
    assert 10 < len(flat) < len(cells) / 2
    assert (255, 255, 255) in {tuple(int(v) for v in c) for c in flat}


def test_pictures_need_no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_font_files", lambda: ())
    synthetic._font.cache_clear()
    for k in range(30):
        synthetic_picture(64, np.random.default_rng(k))
    monkeypatch.setattr(synthetic, "_font_files", lambda: ("no such font.ttf",))
    synthetic._font.cache_clear()
    for k in range(10):
        synthetic_picture(64, np.random.default_rng(k))
    synthetic._font.cache_clear()


def test_stream_draws_the_share_of_crops_it_is_told(photos: Path) -> None:
    loaded = load_photos([photos])

    def crops(share: float) -> list[UInt8Array]:
        stream = CropStream(loaded, batch=8, size=64, seed=3, start=5, synthetic=share)
        try:
            return [stream.next() for _ in range(4)]
        finally:
            stream.close()

    cut, mixed = crops(0.0), crops(0.4)
    assert all(np.array_equal(a, b) for a, b in zip(mixed, crops(0.4), strict=True))
    rng = np.random.default_rng((3, 5))
    rng.choice(3, 8, p=np.full(3, 1 / 3))
    drawn = rng.random(8) < 0.4
    assert 0 < drawn.sum() < 8
    assert not np.array_equal(cut[0], mixed[0])
