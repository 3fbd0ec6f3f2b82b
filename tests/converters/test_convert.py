"""A whole conversion of a tiny codec, and what becomes of a bad one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecodec.bundle.reading import WEIGHTS, Bundle
from edgecodec.bundle.writing import size_of
from edgecodec.codec import Codec
from edgecodec.coding.pixels import as_picture
from edgecodec.converters.checks.report import WRONG, ConversionReport
from edgecodec.converters.convert import convert_checkpoint
from edgecodec.errors import (
    BundleError,
    ConversionError,
    GoldenVectorError,
    MissingDependencyError,
    ParityError,
)
from edgecodec.format.coder import LatentCoder
from edgecodec.format.container import read_container
from edgecodec.runtimes.backends import openvino_backend
from edgecodec.runtimes.backends.openvino_backend import OpenVinoBackend
from edgecodec.runtimes.base import Artefact, SessionOptions
from edgecodec.runtimes.registry import get_backend
from tests.support.painting import picture, save_painting_codec


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecodec.converters.checks.judge._BUDGET_S", 0.01)
    monkeypatch.setattr("edgecodec.converters.checks.judge.SIZE", (64, 96))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_painting_codec(tmp_path / "codec.pt")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, (height, width) in enumerate(((70, 100), (40, 64))):
        picture(i, height, width).save(folder / f"{i}.png")
    return folder


def convert(checkpoint: Path, photos: Path | None, out: Path, **options: Any) -> ConversionReport:
    defaults: dict[str, Any] = {
        "targets": ["torch"],
        "precisions": ["fp32"],
        "name": "tiny",
        "progress": lambda line: None,
    }
    return convert_checkpoint(checkpoint, out, calibration=photos, **{**defaults, **options})


def test_conversion_writes_a_bundle_that_runs_everywhere(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    report = convert(
        checkpoint,
        photos,
        tmp_path / "b.zip",
        targets=["onnx", "openvino", "tflite"],
        precisions=["fp32", "fp16"],
        progress=told.append,
    )
    bundle = Bundle(tmp_path / "b.zip")
    manifest = bundle.manifest
    assert (manifest.name, manifest.model_id) == ("tiny", report.model_id)
    assert (manifest.latent_channels, manifest.hyper_channels) == (12, 4)
    assert (manifest.analysis_halo % 32, manifest.synthesis_halo) == (0, 2)
    (line,) = (line for line in told if line.startswith("analysis halo"))
    assert line.startswith(f"analysis halo {manifest.analysis_halo} pixels of ")
    assert line.endswith("0 of 2 photos are large and varied enough to tell, less needs 20")
    assert manifest.calibration["photos"] == 2
    assert len(manifest.artefacts) == 14 == len(report.rows)
    golden = bundle.golden()
    for entry in manifest.artefacts:
        assert entry.parity["checked"] is True
        assert entry.parity["photos"] == 2
        path = bundle.artefact_file(entry)
        assert entry.bytes == sum(p.stat().st_size for p in path.parent.glob(f"{path.stem}.*"))
        assert any(name.lower().startswith("conv") for name in entry.operators)
        backend = get_backend("onnxruntime" if entry.target == "onnx" else entry.target)
        artefact = Artefact(entry.stage, entry.target, entry.precision, path)  # type: ignore[arg-type]
        session = backend.load(artefact, SessionOptions(threads=1))
        if entry.stage == "synthesis":
            given = {"y_hat": golden["y_hat"][None].astype(np.float32)}
            found = as_picture(session.run(given)["x_hat"][0])
            allowed = 1 if entry.precision == "fp32" else 9
            assert np.abs(np.clip(found, 0, 255) - golden["x_hat"]).max() < allowed
            extreme = golden["y_hat_extreme"][None].astype(np.float32)
            found = as_picture(session.run({"y_hat": extreme})["x_hat"][0])
            assert np.abs(np.clip(found, 0, 255) - golden["x_hat_extreme"]).max() < allowed
        else:
            y = session.run({"x": golden["x"][None].astype(np.float32)})["y"][0]
            assert np.abs(y - golden["y"]).max() < (1e-3 if entry.precision == "fp32" else 1)
        session.close()
    assert sum("fp16" in line for line in told) == 6 + 3  # artefacts, and pairs judged
    assert all(row.status == "ok" for row in report.rows)
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["target"] == "torch"
    assert "openvino  fp16       synthesis" in report.table()
    bundle.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
@pytest.mark.parametrize("out", ["b", "b.zip"])
def test_conversion_that_is_terminated_leaves_nothing(
    checkpoint: Path, photos: Path, environment: dict[str, str], out: str
) -> None:
    place = checkpoint.parent
    before = sorted(place.iterdir())
    command = [sys.executable, "-m", "edgecodec", "convert", checkpoint.name, "-o", out]
    with subprocess.Popen(
        [*command, "--calibration", photos.name, "--to", "onnx"],
        cwd=place,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("onnx fp32 analysis"):
                break
        assert list(place.glob(f".{out}-*/bundle/onnx/*"))
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read().splitlines()[-1] == "edgecodec: terminated"
    assert process.returncode == 143
    assert sorted(place.iterdir()) == before


def test_bf16_is_openvinos_and_costs_no_weights(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    if OpenVinoBackend().lacks("bf16"):
        pytest.skip("this processor has no bfloat16")
    options: dict[str, Any] = {"targets": ["onnx", "openvino"], "precisions": ["fp32", "bf16"]}
    report = convert(checkpoint, photos, tmp_path / "b", **options)
    assert [row.status for row in report.rows] == 8 * ["ok"]
    with Bundle(tmp_path / "b") as bundle, Codec(bundle, "openvino", "bf16", 1) as codec:
        entries = [e for e in bundle.manifest.artefacts if e.precision == "bf16"]
        paths = [f"openvino/{stage}.bf16.xml" for stage in ("analysis", "synthesis")]
        assert [(e.path, e.exact) for e in entries] == [(path, False) for path in paths]
        assert all(set(e.loss) >= {"analysis_loss", "synthesis_loss"} for e in entries)
        assert 0 < entries[1].parity["x_hat"]["max_level_err"] <= 8
        data = codec.encode(picture(5))
        assert codec.choice("synthesis").precision == "bf16"
        with Codec(bundle, "onnxruntime", "fp32", 1) as other:
            assert np.array_equal(other.decode_latents(data), codec.decode_latents(data))
            shown = [np.asarray(c.decode(data)).astype(int) for c in (codec, other)]
            assert 0 < np.abs(shown[0] - shown[1]).max() <= 8
        weights = (bundle.root / WEIGHTS).stat().st_size
    convert(checkpoint, photos, tmp_path / "c", targets=["onnx", "openvino"])
    assert (tmp_path / "c" / WEIGHTS).stat().st_size == weights


def test_bf16_is_not_written_where_nothing_can_judge_it(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_backend, "_numbers", lambda core: ["FP32", "INT8"])
    options: dict[str, Any] = {"targets": ["openvino"], "precisions": ["fp32", "bf16"]}
    report = convert(checkpoint, photos, tmp_path / "b", **options)
    assert [(r.stage, r.precision, r.bytes) for r in report.refused] == [
        ("analysis", "bf16", 0),
        ("synthesis", "bf16", 0),
    ]
    reason = "bf16 needs a CPU with bfloat16; OpenVINO lists FP32, INT8 for this one"
    assert f"REFUSED: openvino bf16 synthesis: {reason}" in report.table()
    assert report.refusal().startswith("not written: openvino bf16 analysis, openvino bf16 synth")
    assert "convert on a CPU that has the arithmetic" in report.refusal()
    json.dumps(report.to_dict(), allow_nan=False)
    with Bundle(tmp_path / "b") as bundle:
        assert {e.precision for e in bundle.manifest.artefacts} == {"fp32"}
        assert not list(bundle.root.rglob("*bf16*"))


def test_bf16_that_is_something_else_is_left_out(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.converters.checks.parity import TOLERANCES, ParityLimits

    if OpenVinoBackend().lacks("bf16"):
        pytest.skip("this processor has no bfloat16")
    monkeypatch.setitem(TOLERANCES, "bf16", ParityLimits(8.0, -1, 0.0))
    options: dict[str, Any] = {"targets": ["openvino"], "precisions": ["fp32", "bf16"]}
    report = convert(checkpoint, photos, tmp_path / "b", **options)
    (row,) = report.refused
    assert (row.precision, row.stage, row.wrong) == ("bf16", "synthesis", True)
    assert "REFUSED: openvino bf16 synthesis: " in report.table()
    assert "output x_hat differs from the reference by" in row.reason
    assert report.refusal() == f"not written: openvino bf16 synthesis; {WRONG}"


def test_golden_file_decodes_to_the_golden_latents(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    convert(checkpoint, photos, tmp_path / "b")
    bundle = Bundle(tmp_path / "b")
    golden = bundle.golden()
    file = read_container(golden["file"].tobytes())
    height, width = golden["x"].shape[:2]
    assert (file.header.height, file.header.width) == (height, width)
    assert file.header.tables_id == bundle.manifest.tables_id
    assert file.header.quality == int(golden["quality"])
    (substream,) = file.substreams
    assert substream is not None
    coder = LatentCoder(bundle.tables(), "numpy")
    _, y_hat = coder.decode(file.header.quality, height // 32, width // 32, substream)
    assert np.array_equal(y_hat, golden["y_hat"])
    assert golden["y_hat"].dtype == np.int16
    assert golden["x"].dtype == golden["x_hat"].dtype == np.uint8
    assert golden["x_hat"].shape == golden["x"].shape


def test_conversion_is_reproducible(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"targets": ["onnx", "tflite"], "precisions": ["fp16"]}
    first = convert(checkpoint, photos, tmp_path / "first", **options)
    second = convert(checkpoint, photos, tmp_path / "second", **options)
    assert first.model_id == second.model_id
    files = Bundle(tmp_path / "first").manifest.files
    assert WEIGHTS in files
    assert files == Bundle(tmp_path / "second").manifest.files


def test_weights_are_stored_once(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    """Nowhere in the bundle do the bytes of a tensor stand as an artefact holds them."""
    targets = ["onnx", "openvino", "tflite", "torch"]
    report = convert(checkpoint, photos, tmp_path / "b", targets=targets)
    assert report.stored_bytes == size_of(tmp_path / "b") < report.plain_bytes
    assert f"size {report.stored_bytes / 1e6:.2f} MB" in report.table()
    with Bundle(tmp_path / "b") as bundle:
        names = {e.path for e in bundle.manifest.artefacts}
        names |= {n.replace(".xml", ".bin") for n in names}
        assert {n for n in names if (bundle.root / n).exists()} == {
            n for n in names if n.endswith(".xml")
        }
        reference = next(e for e in bundle.manifest.artefacts if e.target == "torch")
        whole = bundle.artefact_file(reference)
        tensors = torch.load(whole, weights_only=True)["tensors"].values()
        weights = [w for t in tensors if len(w := t.numpy().tobytes()) >= 256]
        assert len(weights) > 2
        assert all(w in whole.read_bytes() for w in weights)
        stored = [p.read_bytes() for p in bundle.root.rglob("*.*")]
        assert not [w for w in weights if any(w in data for data in stored)]


def test_demo_photo_serves_where_no_folder_is_named(checkpoint: Path, tmp_path: Path) -> None:
    report = convert(checkpoint, None, tmp_path / "b")
    assert report.calibration["photos"] == 1
    assert report.calibration["source"].startswith("demo.")


def test_unknown_precision_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="'int4' is not available; there are: fp32, fp16"):
        convert(tmp_path / "none.pt", None, tmp_path / "b", precisions=["fp32", "int4"])


def test_output_is_looked_at_before_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    for out in ("photo.png", "photo.png/x", "absent/x"):
        with pytest.raises(BundleError, match=r"photo\.png|absent"):
            convert(tmp_path / "none.pt", None, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_earlier_bundle_is_replaced_only_when_forced(
    checkpoint: Path, photos: Path, tmp_path: Path, name: str
) -> None:
    convert(checkpoint, photos, tmp_path / name, name="first")
    with pytest.raises(BundleError, match="add --force"):
        convert(checkpoint, photos, tmp_path / name, name="second")
    with Bundle(tmp_path / name) as bundle:
        assert bundle.manifest.name == "first"
    convert(checkpoint, photos, tmp_path / name, name="second", force=True)
    with Bundle(tmp_path / name) as bundle:
        assert bundle.manifest.name == "second"


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_bad_checkpoint_gives_one_clear_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"bad\.pt") as caught:
        convert(path, None, tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_weights_that_are_no_numbers_are_refused(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    payload = torch.load(checkpoint, weights_only=True)
    payload["weights"]["g_s.0.weight"][0] = torch.nan
    torch.save(payload, checkpoint)
    with pytest.raises(ConversionError, match=r"^g_s\.0\.weight is not finite"):
        convert(checkpoint, photos, tmp_path / "b")


def test_nothing_is_left_when_an_artefact_is_wrong(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.converters.checks.parity import TOLERANCES, ParityLimits

    monkeypatch.setitem(TOLERANCES, "fp32", ParityLimits(-1.0, -1, -1.0))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ParityError, match="analysis: torch fp32 output y differs"):
        convert(checkpoint, photos, tmp_path / "b")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("stage", ["analysis", "synthesis"])
def test_what_every_device_would_refuse_is_not_written(
    stage: str,
    checkpoint: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device's tolerances are shares of the largest value, the converter's are not."""
    from edgecodec.runtimes.selection.golden import TOLERANCES, Tolerance

    none = {"analysis": Tolerance(-1.0, 255, 255.0), "synthesis": Tolerance(1e9, -1, -1.0)}
    monkeypatch.setitem(TOLERANCES, "fp32", none[stage])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        GoldenVectorError, match=rf"^{stage}: torch fp32: every device would refuse it, [yx]"
    ):
        convert(checkpoint, photos, tmp_path / "b")
    assert sorted(tmp_path.iterdir()) == before


def test_missing_packages_and_foreign_folders_are_named(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        convert(checkpoint, photos, photos)
    monkeypatch.setattr(
        "edgecodec.converters.writers.targets.find_spec",
        lambda name: None if name == "torch" else True,
    )
    with pytest.raises(MissingDependencyError, match=r"torch is not installed.*\[convert\]"):
        convert(checkpoint, photos, tmp_path / "b")


def test_artefact_without_its_runtime_is_written_and_told(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.runtimes.registry import UnavailableBackend

    real = get_backend
    monkeypatch.setattr(
        "edgecodec.converters.checks.parity.get_backend",
        lambda name: UnavailableBackend(name, "is away") if name == "onnxruntime" else real(name),
    )
    told: list[str] = []
    report = convert(checkpoint, photos, tmp_path / "b", targets=["onnx"], progress=told.append)
    unchecked = [row for row in report.rows if row.target == "onnx"]
    assert [row.status for row in unchecked] == ["not checked", "not checked"]
    assert "NOT CHECKED: onnx fp32 analysis: onnxruntime: is away" in report.table()
    assert sum(line.startswith("NOT CHECKED") for line in told) == 2
    entries = Bundle(tmp_path / "b").manifest.artefacts
    assert [e.parity["checked"] for e in entries if e.target == "onnx"] == [False, False]
