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

from edgecodec.bundle.reading import Bundle
from edgecodec.cli import main
from edgecodec.codec import Codec
from edgecodec.converters.checks import parity
from edgecodec.converters.checks.report import ConversionReport
from edgecodec.converters.convert import DEFAULT_MAX_LOSS, convert_checkpoint
from edgecodec.errors import BundleError, ConversionError
from edgecodec.model.network import NeuralCodec
from edgecodec.runtimes.base import Artefact, Session
from tests.support.painting import (
    CONFIG,
    lean_on,
    painting_codec,
    picture,
    save_painting_codec,
    spoil,
)

TARGETS = ("onnx", "openvino", "tflite")
RUNTIMES = ("onnxruntime", "openvino", "tflite")


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecodec.converters.checks.judge._BUDGET_S", 0.01)
    monkeypatch.setattr("edgecodec.converters.checks.judge.SIZE", (64, 96))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_painting_codec(tmp_path_factory.mktemp("codec") / "codec.pt")


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
    }
    return convert_checkpoint(checkpoint, out, calibration=photos, **{**defaults, **options})


@pytest.fixture(scope="module")
def converted(
    checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bundle]:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecodec.converters.checks.judge._BUDGET_S", 0.01)
        patch.setattr("edgecodec.converters.checks.judge.SIZE", (64, 96))
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
        assert abs(entry.loss["synthesis_loss"]) < 1
        assert abs(entry.loss["analysis_loss"]) < 1
        assert entry.requires.startswith(RUNTIMES[TARGETS.index(entry.target)])
        assert entry.parity["checked"] is True
        assert ("exact_inputs" in entry.parity) == entry.exact
        converted.artefact_file(entry)
    json.loads(converted.manifest.to_json())


def test_the_golden_vector_has_the_one_answer(converted: Bundle) -> None:
    golden = converted.golden()
    for name in ("x_hat", "x_hat_extreme"):
        found = golden[f"{name}_int8"]
        assert found.dtype == np.uint8
        assert found.shape == golden[name].shape
        assert np.abs(found.astype(int) - golden[name]).max() < 64


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


@pytest.mark.parametrize("stage", ["analysis", "synthesis"])
def test_one_stage_alone_may_be_int8(
    stage: str, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    options: dict[str, Any] = {"targets": ["onnx"], "progress": told.append}
    precisions = ["fp32", f"int8:{stage}"]
    report = convert(checkpoint, photos, tmp_path / "b", precisions=precisions, **options)
    assert not report.refused
    (row,) = (row for row in report.rows if row.precision == "int8")
    assert row.stage == stage
    assert row.bd_loss is not None
    assert row.speed_up is not None
    (measured,) = (line for line in told if line.startswith("measuring the ranges"))
    assert measured.startswith(f"measuring the ranges of the {stage} on ")
    with Bundle(tmp_path / "b") as bundle:
        assert ("x_hat_int8" in bundle.golden()) == (stage == "synthesis")
        (loss,) = (e.loss for e in bundle.manifest.artefacts if e.precision == "int8")
        assert {name for name in loss if name.endswith(("_loss", "_worst"))} == {
            f"{stage}_loss",
            f"{stage}_worst",
        }
        image = picture(9, 70, 100)
        with Codec(bundle, backend="onnxruntime") as codec:
            assert codec.decode(codec.encode(image)).size == image.size
        with Codec(bundle, backend="onnxruntime", precision="int8") as codec:
            other = "synthesis" if stage == "analysis" else "analysis"
            codec.choice(stage)  # type: ignore[arg-type]
            with pytest.raises(BundleError, match=f"int8.*{other}|{other}.*int8"):
                codec.choice(other)  # type: ignore[arg-type]


def arguments(checkpoint: Path, photos: Path, tmp_path: Path, *more: str) -> list[str]:
    given = ["convert", str(checkpoint), "-o", str(tmp_path / "b"), "--to", "onnx"]
    return [*given, "--precision", "int8", "--calibration", str(photos), *more]


def written(bundle: Path) -> set[tuple[str, str]]:
    with Bundle(bundle) as found:
        return {(e.target, e.stage) for e in found.manifest.artefacts}


TORCH = {("torch", "analysis"), ("torch", "synthesis")}


def test_what_costs_too_much_is_left_out(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(checkpoint, photos, tmp_path, "--max-bd-loss=0")) == 1
    shown = capsys.readouterr()
    assert "not written: onnx int8 analysis, onnx int8 synthesis" in shown.err
    assert "REFUSED: onnx int8 synthesis: loses" in shown.out
    assert written(tmp_path / "b") == TORCH
    assert not list((tmp_path / "b").rglob("*int8*"))


def test_a_refusal_names_the_layers_that_cost_most(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = painting_codec()
    spoil(codec.g_s[4])
    bad = save_painting_codec(tmp_path / "codec.pt", codec)
    report = tmp_path / "report.json"
    assert main(arguments(bad, photos, tmp_path, "--json", str(report))) == 1
    shown = capsys.readouterr()
    worst = "g_s.4.enter .. g_s.4.leave"
    assert f"not written: onnx int8 synthesis; most of it by {worst} (+" in shown.err
    assert "try 20 to 40 typical photos (--calibration), not 3" in shown.err
    assert "what costs most:\nonnx int8 synthesis: +" in shown.out
    assert "above all: most of the loss is there" in shown.out
    (found,) = json.loads(report.read_text())["diagnoses"]
    assert [found["target"], found["stage"], found["photos"]] == ["onnx", "synthesis", 2]
    assert found["costs"][0]["group"] == worst
    assert found["costs"][0]["loss"] > 4 > found["costs"][1]["loss"]
    assert written(tmp_path / "b") == {*TORCH, ("onnx", "analysis")}


def test_a_corrupt_photo_is_named_and_only_corrupt_ones_are_an_error(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"nonsense")
    assert main(arguments(checkpoint, folder, tmp_path)) == 1
    assert "no photo that can be used" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    for i in range(2):
        picture(i).save(folder / f"c{i}.png")
    assert main(arguments(checkpoint, folder, tmp_path)) == 0
    told = capsys.readouterr().err.splitlines()
    left_out = [line for line in told if line.startswith("LEFT OUT")]
    assert ["a.png: not an image" in line for line in left_out] == [True, False]
    assert written(tmp_path / "b") == {*TORCH, ("onnx", "analysis"), ("onnx", "synthesis")}
    with Bundle(tmp_path / "b") as bundle:
        assert bundle.manifest.calibration["photos"] == 2
        assert bundle.manifest.calibration["judged"] == 2  # one of these, and the demo photo


@pytest.mark.parametrize("kind", ["noise", "black"])
def test_photos_that_tell_nothing_are_skipped_by_name_and_alone_an_error(
    kind: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(3 if kind == "noise" else 1):
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise * (kind == "noise")).save(folder / f"{i}.png")
    assert main(arguments(checkpoint, folder, tmp_path)) == 1
    reason = "no photo that can be used" if kind == "noise" else "0.png: of a single colour"
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    picture(0).save(folder / "9.png")
    assert main(arguments(checkpoint, folder, tmp_path)) == 0
    told = capsys.readouterr().err
    assert told.count("which tells nothing about photos") == (3 if kind == "noise" else 1)


def test_ranges_that_fit_no_float_are_told_with_what_to_do(tmp_path: Path) -> None:
    codec = painting_codec()
    lean_on(codec, 40.0)
    checkpoint = save_painting_codec(tmp_path / "codec.pt", codec)
    Image.fromarray(np.asarray(picture(0)) // 3).save(tmp_path / "dark.png")
    with pytest.raises(ConversionError, match=r"^synthesis: .*; leave out int8, or give more typ"):
        convert(checkpoint, tmp_path / "dark.png", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("dark", [False, True])
def test_ranges_of_photos_unlike_any_other_end_in_a_refusal(
    dark: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On others as dark int8 loses nothing; but it is judged on the demo photo, too."""
    codec = painting_codec()
    lean_on(codec)
    checkpoint = save_painting_codec(tmp_path / "codec.pt", codec)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        pixels = np.asarray(picture(i))
        Image.fromarray(pixels // 3 if dark else pixels).save(folder / f"{i}.png")
    assert main(arguments(checkpoint, folder, tmp_path)) == dark
    assert ("not written: onnx int8 synthesis" in capsys.readouterr().err) == dark
    assert (("onnx", "synthesis") in written(tmp_path / "b")) != dark


def test_a_loss_on_one_photo_alone_is_refused(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecodec.converters.checks.judge.SINGLE_PHOTO", -1e9)
    options: dict[str, Any] = {"targets": ["onnx"], "precisions": ["fp32"]}
    report = convert(checkpoint, photos, tmp_path / "b", **options)
    assert [row.refused for row in report.rows] == [False, False, True, True]
    assert "on one of the photos, allowed" in report.rows[2].reason
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_codec_whose_quality_does_not_rise_is_not_judged(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fp32 was compared with torch number by number; nothing tells what int8 may lose."""
    torch.manual_seed(0)
    untrained = save_painting_codec(tmp_path / "codec.pt", NeuralCodec(CONFIG))
    options = ("--precision", "fp32,int8")
    assert main(arguments(untrained, photos, tmp_path, *options)) == 1
    shown = capsys.readouterr()
    assert "not written: onnx int8 analysis, onnx int8 synthesis; nothing" in shown.err
    assert "--max-bd-loss inf" in shown.err
    assert "OK: onnx fp32 analysis: not judged: the checkpoint's own quality" in shown.out
    assert "REFUSED: onnx int8 synthesis: not judged" in shown.out
    assert written(tmp_path / "b") == {*TORCH, ("onnx", "analysis"), ("onnx", "synthesis")}
    assert not list((tmp_path / "b").rglob("*int8*"))
    report = tmp_path / "report.json"
    more = ("--max-bd-loss", "inf", "--json", str(report), "--force")
    assert main(arguments(untrained, photos, tmp_path, *more)) == 0
    assert json.loads(report.read_text())["max_loss"] is None


@pytest.mark.parametrize("value", ["nan", "much"])
def test_a_loss_that_is_no_number_is_wrong_usage(
    value: str, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments(checkpoint, photos, tmp_path, "--max-bd-loss", value))
    assert caught.value.code == 2


def test_help_tells_the_loss_that_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert f"(default: {DEFAULT_MAX_LOSS:g})" in " ".join(capsys.readouterr().out.split())


def test_a_runtime_that_computes_otherwise_is_refused_and_the_others_are_written(
    checkpoint: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check = parity._check_answers

    def inexact(session: Session, artefact: Artefact, answers: Any) -> None:
        if artefact.target == "openvino":
            answers = [(y_hat, x_hat + 1) for y_hat, x_hat in answers]
        check(session, artefact, answers)

    monkeypatch.setattr(parity, "_check_answers", inexact)
    more = ("--to", "onnx,openvino", "--precision", "fp32,int8")
    assert main(arguments(checkpoint, photos, tmp_path, *more)) == 1
    shown = capsys.readouterr()
    assert "not written: openvino int8 synthesis; its runtime here computes" in shown.err
    assert "REFUSED: openvino int8 synthesis: synthesis: openvino int8 output x_hat" in shown.out
    with Bundle(tmp_path / "b") as bundle:
        found = {(e.target, e.precision, e.stage) for e in bundle.manifest.artefacts}
    assert ("openvino", "int8", "analysis") in found
    assert ("onnx", "int8", "synthesis") in found
    assert ("openvino", "int8", "synthesis") not in found
