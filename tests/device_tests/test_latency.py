"""The benchmark: everything is measured as often as asked, and the table says what it may."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecodec.device_tests.latency import DEMO_PHOTO, LatencyReport, Measurement, benchmark
from edgecodec.errors import BackendError, ConfigError, EdgeCodecError
from edgecodec.runtimes.device import probe_device


@pytest.fixture
def photo_file(tmp_path: Path, small: npt.NDArray[np.uint8]) -> Path:
    Image.fromarray(small).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_benchmark_measures_every_stage(photo_file: Path) -> None:
    report = benchmark(
        [photo_file, photo_file], backends=["onnxruntime"], against=["jpeg"], runs=3, threads=1
    )
    rows = {(m.codec, m.stage): m for m in report.measurements}
    ours = {stage for codec, stage in rows if codec == "onnxruntime"}
    assert {"encode", "decode", "encode: analysis", "decode: synthesis"} <= ours
    assert {stage for codec, stage in rows if codec == "jpeg"} == {"encode", "decode"}
    for m in rows.values():
        assert len(m.samples_s) == 3
        assert all(s > 0 for s in m.samples_s)
    whole = rows["onnxruntime", "decode"].median_s
    parts = [m.median_s for (c, s), m in rows.items() if c != "jpeg" and s.startswith("decode: ")]
    assert max(parts) < 1.5 * whole
    assert report.sizes["onnxruntime"]["photo.png"] > 0
    assert report.sizes["jpeg"]["photo.png"] > 0
    json.dumps(report.to_dict())


def report_of(*measurements: Measurement) -> LatencyReport:
    return LatencyReport(probe_device(), 60, {"a": {"x": 123}}, measurements, {"b": "absent"})


def test_table_gives_percentiles_only_with_enough_samples() -> None:
    few = Measurement("a", "x", "encode", tuple(0.001 * n for n in range(1, 100)))
    many = Measurement("a", "x", "decode", tuple(0.001 * n for n in range(1, 101)))
    lines = report_of(few, many).text().splitlines()
    first = next(line for line in lines if " encode" in line).split()
    second = next(line for line in lines if " decode" in line).split()
    assert first[2] == "50.00"
    assert first[4] == "-"
    assert "123" in first
    assert second[4] == "95.05"
    assert "b: not here (absent)" in lines


def test_table_flags_noise() -> None:
    steady = Measurement("a", "x", "encode", (0.010, 0.0101, 0.0102))
    noisy = Measurement("a", "x", "decode", (0.010, 0.020, 0.030))
    assert noisy.iqr_s == pytest.approx(0.010)
    assert noisy.percentile(0) == pytest.approx(0.010)
    text = report_of(steady, noisy).text()
    assert text.count("noisy") == 1


def test_nothing_that_works_is_a_backend_error(
    photo_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.codec import Codec

    def broken(self: Codec, stage: object) -> None:
        raise BackendError(self.backend, "broken")

    monkeypatch.setattr(Codec, "choice", broken)
    with pytest.raises(BackendError, match="onnxruntime: broken"):
        benchmark([photo_file], backends=["onnxruntime"])


def test_wrong_inputs_are_errors_of_ours(photo_file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"x\.png"):
        benchmark([tmp_path / "x.png"], backends=["onnxruntime"], threads=1)
    with pytest.raises(EdgeCodecError, match="there are"):
        benchmark([photo_file], backends=["onnxruntime"], against=["gif"], threads=1)


def test_demo_photo_is_where_it_is_looked_for() -> None:
    assert DEMO_PHOTO.is_file()
