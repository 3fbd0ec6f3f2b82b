from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgecodec.cli import main
from edgecodec.model.checkpoint import export_weights, load_checkpoint, load_codec
from edgecodec.model.config import CodecConfig
from edgecodec.model.data import load_photos, random_crop
from edgecodec.model.training import TrainingOptions, train

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
OPTIONS = TrainingOptions(
    steps=30, batch=2, size=64, final_size=128, warmup=2, validate_every=1000, learning_rate=2e-3
)


@pytest.fixture(scope="module")
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


def run(photos: Path, out: Path, *, resume: Path | None = None, steps: int = 30) -> str:
    log = io.StringIO()
    options = TrainingOptions(**{**OPTIONS.__dict__, "steps": steps})
    valid = [photos] if steps == 30 else []
    train([photos], valid, out, options, device="cpu", resume=resume, config=SMALL, log=log)
    return log.getvalue()


def test_load_photos_reads_folders_and_tar_files(photos: Path) -> None:
    assert [p.shape for p in load_photos([photos])] == [(160, 200, 3)] * 3
    with pytest.raises(ValueError, match="no such file"):
        load_photos([photos / "nowhere"])
    with pytest.raises(ValueError, match="no photos of at least 500"):
        load_photos([photos], min_side=500)


def test_random_crop_is_a_function_of_its_generator(photos: Path) -> None:
    photo = load_photos([photos])[0]
    a = random_crop(photo, 64, np.random.default_rng(5))
    b = random_crop(photo, 64, np.random.default_rng(5))
    assert a.shape == (64, 64, 3)
    assert np.array_equal(a, b)


def test_train_lowers_the_loss(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "codec.pt", steps=400)
    rows = [json.loads(line) for line in (tmp_path / "codec.log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2
    assert losses[-1] < 0.8 * losses[0]


def test_interrupted_training_continues_exactly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after 11 of 30 steps and resumed, a run ends with the weights of one not stopped."""
    torch.use_deterministic_algorithms(True)
    try:
        whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
        run(photos, whole)
        from edgecodec.model import training

        original = training.Trainer._one_step

        def interrupted(self: training.Trainer, batch: np.ndarray) -> object:
            if self.step == 11:
                self.save()
                raise KeyboardInterrupt
            return original(self, batch)

        monkeypatch.setattr(training.Trainer, "_one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(photos, parts)
        monkeypatch.undo()
        assert load_checkpoint(parts)["step"] == 11
        run(photos, parts, resume=parts)
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = load_checkpoint(whole), load_checkpoint(parts)
    assert a["step"] == b["step"] == 30
    for kind in ("weights", "raw"):
        assert all(torch.equal(a[kind][k], b[kind][k]) for k in a[kind])


def test_export_weights_keeps_what_a_release_needs(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "codec.pt")
    export_weights(tmp_path / "codec.pt", tmp_path / "release.pt")
    release = load_checkpoint(tmp_path / "release.pt")
    assert "optimiser" not in release
    assert all(v.dtype == torch.float16 for v in release["weights"].values())
    assert load_codec(tmp_path / "release.pt").cfg == SMALL
    with pytest.raises(ValueError, match="--restart"):
        run(photos, tmp_path / "more.pt", resume=tmp_path / "release.pt")


def test_load_checkpoint_refuses_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_codec(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_codec(path)
    torch.save({"format": "other"}, path)
    with pytest.raises(ValueError, match="not an edgecodec checkpoint"):
        load_codec(path)
    torch.save({"format": "edgecodec-checkpoint-1", "config": {}, "weights": {}}, path)
    with pytest.raises(ValueError, match="does not fit"):
        load_codec(path)


def test_train_command_says_what_is_wrong(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.pt")
    assert main(["train", "--images", str(tmp_path / "none"), "--out", out]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main(["train", "--images", str(photos), "--out", out, "--size", "100"]) == 1
    assert "multiple of 64" in capsys.readouterr().err
    assert not Path(out).exists()
