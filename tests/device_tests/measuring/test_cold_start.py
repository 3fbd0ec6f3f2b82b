"""Cold starts: real processes, whose phases make up the whole."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecodec.codec import Codec
from edgecodec.device_tests.measuring import cold_start
from edgecodec.device_tests.measuring.cold_start import (
    PHASES,
    ColdStartJob,
    child,
    measure_cold_starts,
    run_child,
)
from edgecodec.errors import BackendError

UInt8Array = npt.NDArray[np.uint8]


@pytest.fixture
def job(tmp_path: Path, small: UInt8Array) -> ColdStartJob:
    Image.fromarray(small).save(tmp_path / "photo.png")
    return ColdStartJob(
        "ours", "encode", str(tmp_path / "photo.png"), 60, "onnxruntime", "fp32", threads=1
    )


def test_phases_make_up_the_time_of_the_process(
    job: ColdStartJob, tmp_path: Path, small_file: bytes
) -> None:
    (tmp_path / "photo.ecx").write_bytes(small_file)
    decode = replace(job, action="decode", input=str(tmp_path / "photo.ecx"))
    begin = time.monotonic()
    starts = measure_cold_starts([job, decode], 1)
    whole = time.monotonic() - begin
    assert [(s.codec, s.action) for s in starts] == [("ours", "encode"), ("ours", "decode")]
    for start in starts:
        assert tuple(start.phases_s) == PHASES
        assert all(s[0] >= 0 for s in start.phases_s.values())
        assert start.phases_s["import"][0] > 0.01
        assert start.phases_s["load"][0] > 0.01
        assert start.total_s[0] == pytest.approx(sum(s[0] for s in start.phases_s.values()))
        assert start.peak_bytes[0] > 20e6
        assert start.again_s[0] > 0
    assert sum(start.total_s[0] for start in starts) < whole


def test_child_runs_classical_codecs(
    job: ColdStartJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open(job.input) as image:
        image.save(tmp_path / "photo.jpg")
    classical = replace(job, codec="jpeg", backend="", quality=80)
    for one in (classical, replace(classical, action="decode", input=str(tmp_path / "photo.jpg"))):
        child(time.monotonic(), json.dumps(vars(one)))
        told = json.loads(capsys.readouterr().out)
        assert set(told["phases"]) == set(PHASES) - {"interpreter"}
        assert all(s >= 0 for s in told["phases"].values())


def test_child_that_fails_or_hangs_is_an_error_of_ours(job: ColdStartJob) -> None:
    with pytest.raises(BackendError, match=r"ours: a cold start failed: .*absent"):
        run_child(replace(job, input="absent.png"))
    with pytest.raises(BackendError, match=r"over 0\.01 s"):
        run_child(job, timeout_s=0.01)


def test_what_is_loaded_is_what_runs_a_picture_of_that_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the first call would pay for loading another backend."""
    asked: list[object] = []
    monkeypatch.setattr(Codec, "choice", lambda self, *what: asked.append(what))
    for action in ("encode", "decode"):
        job = ColdStartJob("auto", action, "x", 60, backend="auto", size=(3000, 4000))
        with ExitStack() as stack:
            cold_start._loaded(job, stack)
    assert asked == [("analysis", (3000, 4000)), ("synthesis", (3000, 4000))]
