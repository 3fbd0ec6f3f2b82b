"""Candidates that crash, hang or answer wrongly do so in a process of their own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.runtimes import environment, registry
from edgecodec.runtimes.selection import store, trial
from edgecodec.runtimes.selection.candidates import Candidate
from edgecodec.runtimes.selection.choice import StageVerdict
from edgecodec.runtimes.selection.selector import choose, clear_cache, open_stage
from tests.runtimes.test_registry import install

SIZE = (64, 96)
BACKEND = """
import os, time
from edgecodec.runtimes.base import Availability
from edgecodec.runtimes.backends.onnxruntime_backend import OnnxRuntimeBackend

class Mine(OnnxRuntimeBackend):
    name = "mine"
    def load(self, artefact, options):
        assert os.getpid() != {pid} or {fine}, "loaded where it may do harm"
        session = super().load(artefact, options)
        run = session.run
        def changed(inputs):
            outputs = run(inputs)
            {body}
            return outputs
        session.run = changed
        return session
"""
Install = Callable[..., None]


@pytest.fixture
def install_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a backend `mine` of another package, whose runs end with some statement."""

    def put(body: str, fine: bool = False) -> None:
        source = BACKEND.format(body=body, pid=os.getpid(), fine=fine)
        install(tmp_path / "site", "pack", "mine = edgecodec_test_trial:Mine", {})
        (tmp_path / "site" / "edgecodec_test_trial.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.delitem(__import__("sys").modules, "edgecodec_test_trial", raising=False)
        monkeypatch.setenv("EDGECODEC_DISABLE", "torch,openvino")
        registry.refresh()

    return put


def verdict_of(bundle: Bundle) -> StageVerdict:
    return choose(bundle, stages=("synthesis",), threads=1, size=SIZE, budget_s=0.02).stages[0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.abort()", "its trial in another process crashed (signal 6)"),
        ("os._exit(7)", "its trial in another process crashed (exit code 7)"),
        ("os._exit(1)", "its trial in another process crashed (exit code 1)"),
        ("outputs['x_hat'] += 3", "x_hat differs from the reference by up to 3 levels"),
        ("raise ValueError('odd')", "odd"),
    ],
)
def test_candidate_that_fails_in_a_process_of_its_own_is_rejected(
    bundle: Bundle,
    install_backend: Install,
    caplog: pytest.LogCaptureFixture,
    body: str,
    reason: str,
) -> None:
    install_backend(body)
    with caplog.at_level(logging.WARNING, "edgecodec.runtimes"):
        verdict = verdict_of(bundle)
    told = next(c.reason for c in verdict.rejected if c.backend == "mine")
    assert reason in told
    assert {c.backend for c in verdict.ranked} == {"onnxruntime", "tflite"}
    assert [r.getMessage() for r in caplog.records] == [
        f"synthesis: rejected mine fp32, 1 thread: {told}"
    ]


def test_what_a_device_lacks_is_no_fault(
    bundle: Bundle, install_backend: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install_backend(
        "from edgecodec.errors import BackendUnavailableError as Lacking; "
        "raise Lacking('mine', 'no such arithmetic')"
    )
    with caplog.at_level(logging.WARNING, "edgecodec.runtimes"):
        verdict = verdict_of(bundle)
    assert not caplog.records
    assert [c.reason for c in verdict.rejected if c.backend == "mine"] == ["no such arithmetic"]
    with pytest.raises(BackendUnavailableError, match=r"^mine: no such arithmetic$"):
        open_stage(bundle, "synthesis", "mine", threads=1, size=SIZE)


def test_what_a_device_lacks_is_asked_once_in_a_process_of_its_own(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run_child(jobs: list[dict[str, object]]) -> tuple[list[str], str, bool]:
        asked.extend(str(job["backend"]) for job in jobs)
        lacks = [job["backend"] == "openvino" for job in jobs]
        return ["not here: no such arithmetic" if lack else "" for lack in lacks], "", True

    monkeypatch.setattr(trial, "_run_child", run_child)
    monkeypatch.delenv(environment.TRUST, raising=False)
    (lacking,) = [c for c in verdict_of(bundle).rejected if c.backend == "openvino"]
    assert lacking.reason == "no such arithmetic"
    assert asked.count("openvino") == 1
    clear_cache()
    choose(bundle, stages=("synthesis",), threads=2, size=SIZE, budget_s=0.02)
    assert asked.count("openvino") == 1


def test_candidate_that_hangs_is_rejected(
    bundle: Bundle, install_backend: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LIMIT_S", 1.0)
    install_backend("time.sleep(1000)")
    told = next(c.reason for c in verdict_of(bundle).rejected if c.backend == "mine")
    assert told == "its trial in another process did not end within 1 s"
    with pytest.raises(BackendError, match="mine: its trial in another process did not end"):
        open_stage(bundle, "synthesis", "mine", threads=1, size=SIZE)


def test_trial_ends_itself_when_nobody_is_left_to_end_it(
    bundle: Bundle, install_backend: Install
) -> None:
    """Whoever began it may have been killed; native code that hangs lets no thread run."""
    install_backend("time.sleep(600)", fine=True)
    job = {"bundle": str(bundle.path), "stage": "synthesis", "backend": "mine",
           "precision": "fp32", "threads": 1, "size": SIZE}  # fmt: skip
    code = (
        "from edgecodec.runtimes.selection import trial; trial.LIMIT_S, trial.GRACE_S = 1, 0.5; "
        f"trial.main([{json.dumps([job])!r}])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert b"Timeout" in done.stderr
    assert time.monotonic() - begin < 30


def test_candidate_that_fails_at_the_size_in_question_only_is_rejected(
    bundle: Bundle, install_backend: Install
) -> None:
    install_backend("outputs['x_hat'].shape[1] < 100 or os.abort()")
    told = next(c.reason for c in verdict_of(bundle).rejected if c.backend == "mine")
    assert "crashed (signal 6)" in told


def test_candidate_that_passes_its_trial_takes_part(
    bundle: Bundle, install_backend: Install
) -> None:
    install_backend("pass", fine=True)
    assert "mine" in {c.backend for c in verdict_of(bundle).ranked}


def test_backend_that_killed_a_process_is_tried_in_another(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def in_child(_: Bundle, candidate: Candidate, size: tuple[int, int]) -> None:
        tried.append(candidate.name)
        raise BackendError(candidate.name, "crashed")

    monkeypatch.setattr("edgecodec.runtimes.selection.competition.try_in_child", in_child)
    died = store.trial_name(bundle, "synthesis", "openvino", "fp32")
    folder = environment.cache_folder() or Path()
    folder.mkdir()
    (folder / f"{store._marker(died)}-{os.getpid()}").touch()
    for _ in range(2):  # it stays under suspicion
        clear_cache()
        assert "openvino" not in {c.backend for c in verdict_of(bundle).ranked}
        for path in folder.glob("verdict-*"):
            path.unlink()
    assert tried == ["openvino", "openvino"]
    monkeypatch.setenv("EDGECODEC_RISKY", "tflite")
    verdict_of(bundle)
    assert tried[2:] == ["openvino", "tflite"]
