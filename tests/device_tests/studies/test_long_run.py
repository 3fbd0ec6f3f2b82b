from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.device_tests.studies import long_run as module
from edgecodec.device_tests.studies.long_run import (
    ALLOWED_HELD,
    SHAPES,
    LongRun,
    ProcessSample,
    long_run,
    main,
    make_jobs,
    make_pictures,
    sample,
)
from edgecodec.errors import EdgeCodecError
from tests.support.tiny_codec import write_tiny_codec


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_codec(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each collects the garbage of the whole test run."""
    monkeypatch.setattr(module, "SAMPLES", 4)


@pytest.fixture
def bundle(tiny: Path) -> Iterator[Bundle]:
    with Bundle(tiny) as made:
        yield made


def flat(count: int = 100) -> LongRun:
    samples = [ProcessSample(n, n, 500 << 20, 300 << 20, 20, 9, 10**6) for n in range(count)]
    return LongRun(["a fp32"], 3, cycles=count, samples=samples)


@pytest.mark.parametrize(
    ("name", "step"),
    [("rss_bytes", 1 << 20), ("held_bytes", ALLOWED_HELD // 50), ("files", 1), ("threads", 1)],
)
def test_what_grows_is_named(name: str, step: int) -> None:
    result = flat()
    assert result.grown() == []
    result.samples = [
        replace(s, **{name: getattr(s, name) + n * step}) for n, s in enumerate(result.samples)
    ]
    assert result.grown() == [name]
    assert not result.to_dict()["passed"]
    assert f"{name} grew" in result.text()
    assert result.text().endswith("FAILED")


def test_warm_up_and_a_few_high_samples_are_no_growth() -> None:
    result = flat()
    for n in (*range(15), 40, 70, 99):
        result.samples[n] = replace(result.samples[n], held_bytes=(200 + n) << 20, files=30)
    assert result.passed


def test_system_that_tells_nothing_is_no_failure() -> None:
    result = flat()
    result.samples = [
        replace(s, rss_bytes=None, held_bytes=None, files=None) for s in result.samples
    ]
    assert result.passed
    assert "?" in result.text()


def test_nothing_done_is_not_passed() -> None:
    assert not LongRun([], 0).passed
    assert LongRun([], 0).text().endswith("FAILED")


def test_sample_sees_what_is_opened_and_held(tmp_path: Path) -> None:
    before = sample(1, 0.0)
    if before.held_bytes is None or before.files is None:
        pytest.skip("this system does not tell")
    with (tmp_path / "x").open("w"):
        block = np.ones(32 << 20, np.uint8)
        after = sample(2, 0.0)
    assert after.files == before.files + 1
    assert after.held_bytes is not None
    assert after.held_bytes > before.held_bytes + block.nbytes // 2


def test_every_picture_meets_every_encoder_and_jobs_are_repeatable() -> None:
    names = ["a fp32", "b fp32", "b int8"]
    jobs = make_jobs(names)
    assert {(j.picture, j.encoder) for j in jobs} == {
        (p, n) for p in range(len(SHAPES)) for n in names
    }
    assert {j.decoder for j in jobs} == set(names)
    assert jobs == make_jobs(names)
    for (height, width, tile), pixels in zip(SHAPES, make_pictures(), strict=True):
        assert pixels.shape[:2] == (height, width)
        assert tile % 32 == 0
    assert any(tile < max(height, width) for height, width, tile in SHAPES)


def test_tens_of_cycles_are_alike(bundle: Bundle) -> None:
    result = long_run(bundle, 4 * len(SHAPES), ["onnxruntime"], reopen=20)
    assert result.codecs == ["onnxruntime fp32"]
    assert (result.cycles, result.jobs, result.reopened) == (52, len(SHAPES), 2)
    assert not result.differences
    assert [s.cycles for s in result.samples] == [13, 26, 39, 52]
    assert result.growth("files") in (0, None)
    assert result.growth("threads") == 0


def test_result_that_changes_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    plain = Codec.decode

    def sometimes_wrong(self: Codec, data: bytes) -> object:
        nonlocal calls
        calls += 1
        image = plain(self, data)
        if calls == 20:
            return 255 - np.asarray(image)
        return image

    monkeypatch.setattr(Codec, "decode", sometimes_wrong)
    result = long_run(bundle, 2 * len(SHAPES), ["onnxruntime"], reopen=0)
    assert len(result.differences) == 1
    assert "its pixels changed" in result.differences[0]
    assert not result.passed


def test_cycle_that_fails_is_told_and_the_others_go_on(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    plain = module.run_job

    def fails_once(*args: object) -> tuple[str, str]:
        if next(calls) == 3:
            raise EdgeCodecError("no")
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "run_job", fails_once)
    result = long_run(bundle, 10, ["onnxruntime"], reopen=0)
    assert len(result.differences) == 1
    assert result.differences[0].endswith(": no")
    assert result.cycles == 10


def test_command_prints_writes_and_says_by_its_exit_code(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LongRun, "grown", lambda self: [])  # few cycles: caches still fill
    out = tmp_path / "x.json"
    args = ["--bundle", str(tiny), "--cycles", "13", "--backends", "onnxruntime,torch"]
    assert main([*args, "--json", str(out)]) == 0
    assert capsys.readouterr().out.endswith("passed\n")
    values = json.loads(out.read_text())
    assert values["passed"]
    assert values["cycles"] == 13
    assert "torch fp32" in values["skipped"]
    monkeypatch.setattr(LongRun, "grown", lambda self: ["files"])
    assert main(args) == 1


@pytest.mark.slow
def test_shipped_model_on_every_backend_neither_grows_nor_changes(
    shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its sums may change with where its buffers lie; it is the reference, and never chosen.
    monkeypatch.setenv("EDGECODEC_DISABLE", "torch")
    result = long_run(shipped, 400, reopen=0)
    assert len(result.codecs) >= 2
    assert not result.differences
    assert result.growth("files") in (0, None)
    assert result.growth("threads") == 0
    assert (result.growth("held_bytes") or 0) < 64 << 20  # buffers still grow with the pictures
