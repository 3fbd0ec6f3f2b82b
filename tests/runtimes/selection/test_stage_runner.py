"""What fails in use gives way, once, with one warning, and the results still come out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import BackendError, ConfigError
from edgecodec.runtimes.backends.onnxruntime_backend import OnnxRuntimeBackend
from edgecodec.runtimes.backends.openvino_backend import OpenVinoBackend
from edgecodec.runtimes.backends.tflite_backend import TfliteBackend
from edgecodec.runtimes.base import Artefact, RunSettings, Session, SessionOptions, lend
from edgecodec.runtimes.selection.competition import Tools
from edgecodec.runtimes.selection.selector import Selector
from edgecodec.runtimes.selection.stage_runner import StageRunner
from edgecodec.runtimes.selection.store import Store

Outputs = dict[str, npt.NDArray[np.float32]]
Y_HAT = np.random.default_rng(0).integers(-99, 99, (1, 4, 6, 4)).astype(np.float32)
SIZE = (64, 96)
ORDER = ("tflite", "openvino", "onnxruntime", "torch")


class Faulty:
    """A session whose runs go wrong while `broken` is set."""

    broken = False

    def __init__(self, session: Session, fault: Callable[[Outputs], Outputs]) -> None:
        self._session, self._fault = session, fault
        self.close = session.close

    def run(self, inputs: Mapping[str, npt.NDArray[np.float32]]) -> Outputs:
        outputs = self._session.run(inputs)
        return self._fault(outputs) if Faulty.broken else outputs


def crash(_: Outputs) -> Outputs:
    raise MemoryError("no memory left")


def lose(_: Outputs) -> Outputs:
    raise RuntimeError("device lost")


def with_nan(outputs: Outputs) -> Outputs:
    value = outputs["x_hat"].copy()
    value[0, 3, 5, 1] = np.nan
    return {"x_hat": value}


FAULTS: dict[str, Callable[[Outputs], Outputs]] = {
    "no memory left": crash,
    "with NaN or infinity": with_nan,
    "of shape (1, 64, 95, 3), expected (1, 64, 96, 3)": lambda o: {"x_hat": o["x_hat"][:, :, 1:]},
    "as float64": lambda o: {"x_hat": o["x_hat"].astype(np.float64)},
    "gave no x_hat": lambda o: {"x": o["x_hat"]},
}


@pytest.fixture
def selector() -> Selector:
    """One that ranks backends as in ORDER, without timing."""

    def timed(candidates: Any, *_: object) -> None:
        for candidate in candidates:
            candidate.median_s = 1.0 + ORDER.index(candidate.name)

    return Selector(Tools(Store(cores=lambda: 2), timed))


@pytest.fixture(autouse=True)
def _sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faulty, "broken", False)


def break_later(
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Outputs], Outputs],
    *backends: type,
    kind: type = Faulty,
) -> None:
    for backend in backends:
        load = backend.load  # type: ignore[attr-defined]

        def faulty(
            self: Any, artefact: Artefact, options: SessionOptions, load: Any = load
        ) -> Session:
            wrapped: Session = kind(load(self, artefact, options), fault)
            return wrapped

        monkeypatch.setattr(backend, "load", faulty)


@pytest.mark.parametrize("reason", FAULTS)
def test_failure_in_use_gives_way_to_the_next(
    bundle: Bundle,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: str,
    selector: Selector,
) -> None:
    break_later(monkeypatch, FAULTS[reason], TfliteBackend)
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    assert runner.open(SIZE).backend == "tflite"
    expected = tiny.synthesise(Y_HAT)["x_hat"]
    for broken in (False, True, True):
        Faulty.broken = broken
        found = runner.run({"y_hat": Y_HAT}, SIZE)["x_hat"]
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert runner.open().backend == "openvino"
    assert runner.open((512, 512)).backend == "openvino"  # nor is it taken for other sizes
    runner.close()
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    text = caplog.records[0].getMessage()
    assert text.startswith("synthesis: tflite fp32 failed in use (tflite: ")
    assert "going on with openvino fp32" in text
    assert reason in text


class Lent(Faulty):
    """The same, whose results can be seen where they lie."""

    def lend(
        self,
        inputs: Mapping[str, npt.NDArray[np.float32]],
        use: Callable[[Mapping[str, npt.NDArray[np.float32]]], Any],
    ) -> Any:
        def shown(outputs: Mapping[str, npt.NDArray[np.float32]]) -> Any:
            return use(self._fault(dict(outputs)) if Faulty.broken else outputs)

        return lend(self._session, inputs, shown)


@pytest.mark.parametrize("kind", [Faulty, Lent])
@pytest.mark.parametrize("reason", FAULTS)
def test_what_is_shown_gives_way_likewise(
    bundle: Bundle,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: str,
    kind: type,
    selector: Selector,
) -> None:
    break_later(monkeypatch, FAULTS[reason], TfliteBackend, kind=kind)
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    runner.open(SIZE)
    expected = tiny.synthesise(Y_HAT)["x_hat"]
    for broken in (False, True, True):
        Faulty.broken = broken
        seen: list[npt.NDArray[np.float32]] = []

        def look(outputs: Mapping[str, npt.NDArray[np.float32]], seen: Any = seen) -> bool:
            seen.append(outputs["x_hat"].copy())
            return bool(np.isfinite(seen[-1]).all())

        runner.lend({"y_hat": Y_HAT}, look, SIZE)
        np.testing.assert_allclose(seen[-1], expected, atol=1e-3)
        assert len(seen) <= 2
    runner.close()
    assert len(caplog.records) == 1
    assert reason in caplog.records[0].getMessage()


def test_squares_of_any_side_are_taken_and_returned_as_pixels(
    bundle: Bundle,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    selector: Selector,
) -> None:
    def in_squares(outputs: Outputs) -> Outputs:
        _, height, width, _ = outputs["x_hat"].shape
        parts = outputs["x_hat"].reshape(1, height // 4, 4, width // 4, 4, 3).swapaxes(2, 3)
        return {"x_hat": np.ascontiguousarray(parts).reshape(1, height // 4, width // 4, 48)}

    break_later(monkeypatch, in_squares, TfliteBackend)
    monkeypatch.setattr(Faulty, "broken", True)
    runner = StageRunner(bundle, "synthesis", RunSettings(backend="tflite"), selector)
    found = runner.run({"y_hat": Y_HAT}, SIZE)["x_hat"]
    np.testing.assert_allclose(found, tiny.synthesise(Y_HAT)["x_hat"], atol=1e-3)
    runner.lend({"y_hat": Y_HAT}, lambda o: o["x_hat"].shape == (1, 16, 24, 48), SIZE)
    runner.close()


def test_failed_choice_is_forgotten_on_disk(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    selector: Selector,
) -> None:
    break_later(monkeypatch, lose, TfliteBackend)
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    runner.open(SIZE)
    Faulty.broken = True
    runner.run({"y_hat": Y_HAT}, SIZE)
    runner.close()
    selector.clear()  # as in another process
    verdict = selector.choose(bundle, stages=("synthesis",), size=SIZE).stages[0]
    assert verdict.best.backend == "openvino"
    failed = [c for c in verdict.rejected if c.backend == "tflite"]
    assert failed
    assert all("failed in use: tflite: device lost" in c.reason and not c.ok for c in failed)
    Faulty.broken = False
    again = selector.choose(bundle, stages=("synthesis",), size=SIZE, refresh=True).stages[0]
    assert again.best.backend == "tflite"


def test_want_of_memory_is_not_remembered_on_disk(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, selector: Selector
) -> None:
    """What this process lacked, the next one may have."""
    break_later(monkeypatch, crash, TfliteBackend)
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    runner.open(SIZE)
    Faulty.broken = True
    runner.run({"y_hat": Y_HAT}, SIZE)
    assert runner.open(SIZE).backend == "openvino"
    runner.close()
    selector.clear()  # as in another process
    verdict = selector.choose(bundle, stages=("synthesis",), size=SIZE).stages[0]
    assert verdict.best.backend == "tflite"


def test_named_backend_raises_its_error(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    selector: Selector,
) -> None:
    break_later(monkeypatch, with_nan, TfliteBackend)
    runner = StageRunner(bundle, "synthesis", RunSettings(backend="tflite"), selector)
    runner.open(SIZE)
    Faulty.broken = True
    with pytest.raises(BackendError, match=r"^tflite: gave x_hat with NaN"):
        runner.run({"y_hat": Y_HAT}, SIZE)
    Faulty.broken = False
    runner.run({"y_hat": Y_HAT}, SIZE)
    runner.close()


def test_two_failures_reach_the_third(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    selector: Selector,
) -> None:
    break_later(monkeypatch, crash, TfliteBackend, OpenVinoBackend)
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    runner.open(SIZE)
    Faulty.broken = True
    runner.run({"y_hat": Y_HAT}, SIZE)
    assert runner.open().backend == "onnxruntime"
    runner.close()
    assert [r.getMessage().split(" failed")[0] for r in caplog.records] == [
        "synthesis: tflite fp32",
        "synthesis: openvino fp32",
    ]


def test_nothing_is_forgotten_when_all_fail(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    selector: Selector,
) -> None:
    break_later(monkeypatch, crash, TfliteBackend, OpenVinoBackend, OnnxRuntimeBackend)
    monkeypatch.setenv("EDGECODEC_DISABLE", "torch")
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    runner.open(SIZE)
    Faulty.broken = True
    with pytest.raises(BackendError, match=r"nothing could run synthesis: tflite: no memory left"):
        runner.run({"y_hat": Y_HAT}, SIZE)
    assert "failed in use (" not in caplog.text
    Faulty.broken = False
    runner.run({"y_hat": Y_HAT}, SIZE)
    assert runner.open().backend == "tflite"
    runner.close()


def test_reference_is_taken_when_all_else_fails_in_use(
    bundle: Bundle,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    selector: Selector,
) -> None:
    break_later(monkeypatch, crash, TfliteBackend, OpenVinoBackend, OnnxRuntimeBackend)
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    runner.open(SIZE)
    Faulty.broken = True
    found = runner.run({"y_hat": Y_HAT}, SIZE)["x_hat"]
    np.testing.assert_allclose(found, tiny.synthesise(Y_HAT)["x_hat"], atol=1e-3)
    assert runner.open().backend == "torch"
    runner.close()


def test_threads_that_fail_together_warn_once(
    bundle: Bundle,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    selector: Selector,
) -> None:
    workers = 8
    barrier = threading.Barrier(workers)
    broken = threading.local()

    def fail_together(outputs: Outputs) -> Outputs:
        if not hasattr(broken, "once"):  # the first run of each thread
            broken.once = True
            barrier.wait(timeout=30)
        raise RuntimeError("device lost")

    break_later(monkeypatch, fail_together, TfliteBackend)
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    runner.open(SIZE)
    Faulty.broken = True
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(runner.run, {"y_hat": Y_HAT}, SIZE) for _ in range(workers)]
        found = [job.result(timeout=60)["x_hat"] for job in jobs]
    expected = tiny.synthesise(Y_HAT)["x_hat"]
    for x_hat in found:
        np.testing.assert_allclose(x_hat, expected, atol=1e-3)
    assert [r.getMessage().count("device lost") for r in caplog.records] == [1]
    runner.close()


def test_input_that_does_not_fit_blames_no_backend(
    bundle: Bundle,
    caplog: pytest.LogCaptureFixture,
    selector: Selector,
) -> None:
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    with pytest.raises(BackendError, match="input y_hat must be 1x"):
        runner.run({"y_hat": Y_HAT[..., :3]}, SIZE)
    with pytest.raises(BackendError, match="synthesis takes y_hat; given: x"):
        runner.run({"x": Y_HAT}, SIZE)
    runner.run({"y_hat": Y_HAT * np.float32(np.nan)}, SIZE)  # the caller's NaN
    assert runner.open().backend == "tflite"
    assert not caplog.records
    runner.close()


def test_size_classes_share_sessions(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    selector: Selector,
) -> None:
    loads = []
    load = TfliteBackend.load

    def counted(self: Any, artefact: Artefact, options: SessionOptions) -> Session:
        loads.append(options.threads)
        return load(self, artefact, options)

    monkeypatch.setattr(TfliteBackend, "load", counted)
    for size in (SIZE, (512, 512)):
        selector.choose(bundle, stages=("synthesis",), size=size)
    loads.clear()
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    assert runner.open(SIZE).backend == runner.open((512, 512)).backend == "tflite"
    assert len(loads) == 1
    runner.close()


def test_closed_runner_refuses(
    bundle: Bundle,
    caplog: pytest.LogCaptureFixture,
    selector: Selector,
) -> None:
    runner = StageRunner(bundle, "synthesis", RunSettings(), selector)
    runner.open(SIZE)
    runner.close()
    with pytest.raises(ConfigError, match="the codec is closed"):
        runner.run({"y_hat": Y_HAT}, SIZE)
    assert not caplog.records
