"""Candidates that crash, hang or answer wrongly do so in a process of their own."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.runtimes import environment, registry
from edgecodec.runtimes.base import RunSettings
from edgecodec.runtimes.selection import store as store_module
from edgecodec.runtimes.selection import trial
from edgecodec.runtimes.selection.candidates import Candidate
from edgecodec.runtimes.selection.choice import StageVerdict
from edgecodec.runtimes.selection.competition import Tools
from edgecodec.runtimes.selection.selector import Selector, shared
from edgecodec.runtimes.selection.store import Store
from edgecodec.runtimes.selection.transient import is_transient
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
    return shared.choose(
        bundle, RunSettings(1), stages=("synthesis",), size=SIZE, budget_s=0.02
    ).stages[0]


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


def test_trial_without_a_thread_of_its_own_tells_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is run that could hang, and nothing is said against the runtime."""

    def later(*_: object, **__: object) -> None:
        raise RuntimeError("unable to start watchdog thread")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", later)
    assert trial.main([json.dumps([{"bundle": str(bundle.path)}] * 2)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) == 3  # that it begins, and one for each job
    for line in lines[1:]:
        assert "cannot start 1 thread (" in line
        assert "ulimit -u" in line
        assert is_transient(BackendError("mine", line))


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
        shared.open_stage(bundle, "synthesis", RunSettings(1, backend="mine"), size=SIZE)


def test_what_a_device_lacks_is_asked_once_in_a_process_of_its_own(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run_child(jobs: list[dict[str, Any]]) -> tuple[list[str], str, bool]:
        names = [job["settings"]["backend"] for job in jobs]
        asked.extend(names)
        lacks = [name == "openvino" for name in names]
        return ["not here: no such arithmetic" if lack else "" for lack in lacks], "", True

    monkeypatch.setattr(trial, "_run_child", run_child)
    monkeypatch.delenv(environment.TRUST, raising=False)
    (lacking,) = [c for c in verdict_of(bundle).rejected if c.backend == "openvino"]
    assert lacking.reason == "no such arithmetic"
    assert asked.count("openvino") == 1
    shared.clear()
    shared.choose(bundle, RunSettings(2), stages=("synthesis",), size=SIZE, budget_s=0.02)
    assert asked.count("openvino") == 1


def test_candidate_that_hangs_is_rejected(
    bundle: Bundle, install_backend: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LIMIT_S", 1.0)
    install_backend("time.sleep(1000)")
    told = next(c.reason for c in verdict_of(bundle).rejected if c.backend == "mine")
    assert told == "its trial in another process did not end within 1 s"
    with pytest.raises(BackendError, match="mine: its trial in another process did not end"):
        shared.open_stage(bundle, "synthesis", RunSettings(1, backend="mine"), size=SIZE)


def test_trial_ends_itself_when_nobody_is_left_to_end_it(
    bundle: Bundle, install_backend: Install
) -> None:
    """Whoever began it may have been killed; native code that hangs lets no thread run."""
    install_backend("time.sleep(600)", fine=True)
    settings = {"threads": 1, "backend": "mine", "precision": "fp32"}
    job = {"bundle": str(bundle.path), "stage": "synthesis", "settings": settings, "size": SIZE}
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


def test_backend_that_killed_a_process_is_tried_in_another(bundle: Bundle) -> None:
    """Trusted or not."""
    tried: list[str] = []

    def failing(
        _: Bundle, candidates: Sequence[Candidate], size: tuple[int, int], store: Store
    ) -> None:
        for candidate in candidates:
            tried.append(candidate.name)
            candidate.reject(BackendError(candidate.name, "crashed"))

    store = Store()
    died = store.trial_name(bundle, "synthesis", RunSettings(None, "openvino", "fp32"))
    folder = environment.cache_folder() or Path()
    folder.mkdir()
    (folder / f"{store_module._marker(died)}-{os.getpid()}").touch()
    for _ in range(2):  # it stays under suspicion
        selector = Selector(Tools(store, trial=failing))
        verdict = selector.choose(
            bundle, RunSettings(1), stages=("synthesis",), size=SIZE, budget_s=0.02
        )
        assert "openvino" not in {c.backend for c in verdict.stages[0].ranked}
        for path in folder.glob("verdict-*"):
            path.unlink()
    assert tried == ["openvino", "openvino"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "raise RuntimeError('pthread_create: Resource temporarily unavailable')",
            "pthread_create",
        ),
        ("raise ValueError('odd') from MemoryError()", "odd (out of memory or threads)"),
        (
            "os.write(2, b'terminate called after throwing std::system_error\\n'); os.abort()",
            "crashed (signal 6): terminate called after throwing std::system_error",
        ),
    ],
)
def test_want_of_threads_or_memory_is_not_remembered(
    bundle: Bundle, install_backend: Install, body: str, told: str
) -> None:
    install_backend(body)
    (rejected,) = [c for c in verdict_of(bundle).rejected if c.backend == "mine"]
    assert told in rejected.reason
    assert list((environment.cache_folder() or Path()).glob("verdict-*")) == []
    install_backend("pass", fine=True)
    assert "mine" in {c.backend for c in verdict_of(bundle).ranked}
