"""A whole conversion to int8: exact on every runtime, and refused where it costs too much."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgecodec.bundle import Bundle
from edgecodec.cli import main
from edgecodec.codec import Codec
from edgecodec.converters.convert import convert_checkpoint
from edgecodec.converters.report import ConversionReport
from edgecodec.errors import ConversionError
from edgecodec.model.checkpoint import save_checkpoint
from edgecodec.model.network import NeuralCodec
from tests.converters.test_convert import CONFIG

TARGETS = ("onnx", "openvino", "tflite")
RUNTIMES = ("onnxruntime", "openvino", "tflite")


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecodec.converters.judging._BUDGET_S", 0.01)
    monkeypatch.setattr("edgecodec.converters.judging.SIZE", (64, 96))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("codec") / "codec.pt"
    codec = NeuralCodec(CONFIG)
    save_checkpoint(path, {"config": CONFIG.to_dict(), "weights": codec.state_dict(), "step": 0})
    return path


def picture(seed: int, height: int = 64, width: int = 96) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    return folder


def convert(checkpoint: Path, photos: Path, out: Path, **options: Any) -> ConversionReport:
    defaults: dict[str, Any] = {
        "targets": TARGETS,
        "precisions": ["fp32", "int8"],
        "name": "tiny",
        "progress": lambda line: None,
        "max_loss": 1e6,
    }
    return convert_checkpoint(checkpoint, out, calibration=photos, **{**defaults, **options})


@pytest.fixture(scope="module")
def converted(
    checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bundle]:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecodec.converters.judging._BUDGET_S", 0.01)
        patch.setattr("edgecodec.converters.judging.SIZE", (64, 96))
        # An untrained network has no curve to speak of; what int8 costs it means nothing.
        patch.setattr("edgecodec.converters.gate.bd_rate", lambda *curves: 0.5)
        report = convert(checkpoint, photos, folder)
    assert not report.refused
    with Bundle(folder) as bundle:
        yield bundle


def test_a_bundle_has_int8_for_each_target(converted: Bundle) -> None:
    entries = [e for e in converted.manifest.artefacts if e.precision == "int8"]
    assert {(e.target, e.stage) for e in entries} == {
        (target, stage) for target in TARGETS for stage in ("analysis", "synthesis")
    }
    for entry in entries:
        assert entry.exact == (entry.stage == "synthesis")
        assert entry.loss["synthesis_loss"] == 0.5
        assert entry.requires.startswith(RUNTIMES[TARGETS.index(entry.target)])
        assert entry.parity["checked"] is True
        assert ("exact_inputs" in entry.parity) == entry.exact
        converted.artefact_file(entry)
    json.loads(converted.manifest.to_json())


def test_the_golden_vector_has_the_one_answer(converted: Bundle) -> None:
    golden = converted.golden()
    found = golden["x_hat_int8"]
    assert found.dtype == np.uint8
    assert found.shape == golden["x_hat"].shape
    assert np.abs(found.astype(int) - golden["x_hat"]).max() < 64


def test_every_runtime_decodes_the_same_pixels(converted: Bundle) -> None:
    image = np.asarray(picture(9, 70, 100))
    decoded = []
    data = b""
    for runtime in RUNTIMES:
        with Codec(converted.root, backend=runtime, precision="int8") as codec:
            data = data or codec.encode(image, quality=60)
            decoded.append(np.asarray(codec.decode(data)))
    assert decoded[0].shape == image.shape
    assert np.array_equal(decoded[0], decoded[1])
    assert np.array_equal(decoded[0], decoded[2])


def test_what_costs_too_much_is_left_out(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(checkpoint), "-o", str(tmp_path / "b"), "--to", "onnx"]
    arguments += ["--precision", "int8", "--calibration", str(photos), "--max-bd-loss=-1e9"]
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert "not written: onnx int8 analysis, onnx int8 synthesis" in shown.err
    assert "REFUSED: onnx int8 synthesis: loses" in shown.out
    with Bundle(tmp_path / "b") as bundle:
        assert {e.target for e in bundle.manifest.artefacts} == {"torch"}
    assert not list((tmp_path / "b").rglob("*int8*"))


def test_a_corrupt_photo_is_named_and_only_corrupt_ones_are_an_error(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"nonsense")
    options: dict[str, Any] = {"targets": ["onnx"], "precisions": ["int8"]}
    with pytest.raises(ConversionError, match="no photo that can be used"):
        convert(checkpoint, folder, tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()
    picture(0).save(folder / "c.png")
    told: list[str] = []
    convert(checkpoint, folder, tmp_path / "b", progress=told.append, **options)
    assert sum("LEFT OUT" in line and "not a readable photo" in line for line in told) == 2
    with Bundle(tmp_path / "b") as bundle:
        assert bundle.manifest.calibration["photos"] == 1


@pytest.mark.parametrize("kind", ["noise", "black"])
def test_unlikely_photos_end_in_a_refusal_or_a_bundle(
    kind: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(2 if kind == "noise" else 1):
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise * (kind == "noise")).save(folder / f"{i}.png")
    options: dict[str, Any] = {"targets": ["onnx"], "precisions": ["int8"], "max_loss": 4.0}
    report = convert(checkpoint, folder, tmp_path / "b", **options)
    with Bundle(tmp_path / "b") as bundle:
        written = {(e.target, e.stage) for e in bundle.manifest.artefacts}
    for row in report.rows:
        assert ((row.target, row.stage) in written) != row.refused
        if row.target == "onnx" and not row.refused:
            assert row.bd_loss is not None
            assert row.bd_loss <= 4.0


def test_a_broken_synthesis_is_refused_with_its_analysis(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a picture that is nowhere near, nobody can tell what the analysis costs."""
    monkeypatch.setattr("edgecodec.converters.gate.bd_rate", lambda *curves: float("inf"))
    options: dict[str, Any] = {"targets": ["onnx"], "precisions": ["fp32"], "max_loss": 1e9}
    report = convert(checkpoint, photos, tmp_path / "b", **options)
    assert [row.refused for row in report.rows] == [False, False, True, True]
    json.dumps(report.to_dict(), allow_nan=False)
