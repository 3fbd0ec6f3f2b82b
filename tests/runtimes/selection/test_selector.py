from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.bundle.manifest import MANIFEST, ArtefactEntry
from edgecodec.bundle.reading import GOLDEN, Bundle
from edgecodec.bundle.writing import hash_files
from edgecodec.coding.pixels import to_levels
from edgecodec.errors import (
    BackendError,
    BackendUnavailableError,
    BundleError,
    ConfigError,
    UnknownPluginError,
)
from edgecodec.runtimes import registry
from edgecodec.runtimes.backends import openvino_backend
from edgecodec.runtimes.backends.onnxruntime_backend import OnnxRuntimeBackend
from edgecodec.runtimes.backends.openvino_backend import OpenVinoBackend
from edgecodec.runtimes.backends.tflite_backend import TfliteBackend
from edgecodec.runtimes.base import Artefact, Availability, Session, SessionOptions
from edgecodec.runtimes.device.probe import probe_device
from edgecodec.runtimes.selection import competition, selector
from edgecodec.runtimes.selection.golden import Golden
from edgecodec.runtimes.selection.report import devices_report
from edgecodec.runtimes.selection.selector import TILE, choose, clear_cache, open_stage, size_class
from tests.runtimes.conftest import with_bf16

BUDGET_S = 0.05
Outputs = dict[str, npt.NDArray[np.float32]]


def spoil(
    monkeypatch: pytest.MonkeyPatch, backend: type, change: Callable[[Outputs], Outputs]
) -> None:
    """Make a backend's sessions answer something else."""
    load = backend.load  # type: ignore[attr-defined]

    def spoilt(self: Any, artefact: Artefact, options: SessionOptions) -> Session:
        session: Session = load(self, artefact, options)
        run = session.run
        session.run = lambda inputs: change(run(inputs))  # type: ignore[method-assign]
        return session

    monkeypatch.setattr(backend, "load", spoilt)


def refuse(monkeypatch: pytest.MonkeyPatch, backend: type, error: Exception) -> None:
    def load(*_: object) -> Session:
        raise error

    monkeypatch.setattr(backend, "load", load)


def withdraw(monkeypatch: pytest.MonkeyPatch, *backends: type) -> None:
    for backend in backends:
        monkeypatch.setattr(backend, "probe", lambda self: Availability(False, "not here"))


def with_artefacts(bundle: Bundle, tmp_path: Path, *entries: ArtefactEntry) -> Bundle:
    """Return a bundle whose manifest lists other artefacts, over the same files."""
    manifest = replace(bundle.manifest, artefacts=entries)
    copy = tmp_path / "copy.bundle"
    copy.mkdir()
    for name in manifest.files:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes((bundle.root / name).read_bytes())
    (copy / MANIFEST).write_text(replace(manifest, files=hash_files(copy)).to_json())
    return Bundle(copy)


def entry(bundle: Bundle, target: str, precision: str = "fp32") -> ArtefactEntry:
    found = next(
        e for e in bundle.manifest.artefacts if (e.stage, e.target) == ("synthesis", target)
    )
    return replace(found, precision=precision)


def names(choices: Any) -> set[str]:
    return {choice.backend for choice in choices}


def test_selector_ranks_what_is_right_by_time(bundle: Bundle) -> None:
    verdict = choose(bundle, threads=1, budget_s=BUDGET_S)
    assert [v.stage for v in verdict.stages] == ["analysis", "synthesis"]
    for stage in verdict.stages:
        assert names(stage.ranked) == {"onnxruntime", "openvino", "tflite"}
        times = [choice.median_s for choice in stage.ranked]
        assert None not in times
        assert times == sorted(times)  # type: ignore[type-var]
        assert stage.best.reason == "right results, fastest"
        assert names(stage.rejected) == {"torch"}
        assert "when nothing else works" in stage.rejected[0].reason
    json.dumps(verdict.to_dict())


def test_selector_measures_once_per_process(bundle: Bundle) -> None:
    first = choose(bundle, threads=1, budget_s=BUDGET_S)
    assert choose(Bundle(bundle.path), threads=1).stages[0] is first.stages[0]
    assert choose(bundle, threads=2, budget_s=BUDGET_S).stages[0] is not first.stages[0]


def test_open_stage_gives_a_session_that_computes(bundle: Bundle, tiny: Any) -> None:
    y_hat = np.ones((1, 3, 5, 4), np.float32)
    for _ in range(2):  # measured, then from the cache
        session, choice = open_stage(bundle, "synthesis", threads=1, budget_s=BUDGET_S)
        assert choice.ok
        found = session.run({"y_hat": y_hat})["x_hat"]
        np.testing.assert_allclose(found, tiny.synthesise(y_hat)["x_hat"], atol=1e-3)
        session.close()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "tflite", "torch"])
def test_named_backend_is_used(bundle: Bundle, name: str) -> None:
    session, choice = open_stage(bundle, "analysis", name, "fp32", 1)
    session.close()
    assert (choice.backend, choice.precision, choice.median_s) == (name, "fp32", None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda out: {k: v + 2 for k, v in out.items()},
            "differs from the reference by up to 2 le",
        ),
        (lambda out: {k: v * np.nan for k, v in out.items()}, "holds NaN"),
        (lambda out: {k: v[:, :8] for k, v in out.items()}, "has shape"),
        (lambda out: {k: v.astype(np.float64) for k, v in out.items()}, "not a float32 map"),
        (lambda out: {}, "gives no x_hat, only nothing"),
    ],
)
def test_backend_that_answers_wrongly_is_never_chosen(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Outputs], Outputs],
    reason: str,
) -> None:
    spoil(monkeypatch, OpenVinoBackend, change)
    with caplog.at_level(logging.WARNING, "edgecodec.runtimes"):
        verdict = choose(bundle, stages=("synthesis",), threads=1, budget_s=BUDGET_S).stages[0]
    assert names(verdict.ranked) == {"onnxruntime", "tflite"}
    assert reason in next(c.reason for c in verdict.rejected if c.backend == "openvino")
    assert reason in caplog.text
    with pytest.raises(BackendError, match=r"^openvino: .*" + reason):
        choose(bundle, backend="openvino", stages=("synthesis",))


def test_latents_that_are_wrong_are_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, TfliteBackend, lambda out: {**out, "z": out["z"] + 1.0})
    with pytest.raises(BackendError, match=r"z differs from the reference by up to 1, allow"):
        open_stage(bundle, "analysis", "tflite")


def test_backend_that_crashes_gives_way_and_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, OnnxRuntimeBackend, ZeroDivisionError("in the driver"))
    withdraw(monkeypatch, OpenVinoBackend)
    session, choice = open_stage(bundle, "synthesis", budget_s=BUDGET_S)
    session.close()
    assert choice.backend == "tflite"
    verdict = choose(bundle, stages=("synthesis",)).stages[0]
    reasons = {c.backend: c.reason for c in verdict.rejected}
    assert reasons["onnxruntime"] == "synthesis.fp32.onnx: in the driver"
    assert reasons["openvino"] == "not here"


def test_backend_that_fails_at_the_size_measured_gives_way(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(out: Outputs) -> Outputs:
        if out["x_hat"].shape[1] > 100:
            raise MemoryError("too large")
        return out

    spoil(monkeypatch, TfliteBackend, change)
    verdict = choose(bundle, stages=("synthesis",), budget_s=BUDGET_S).stages[0]
    assert "tflite" not in names(verdict.ranked)
    assert any(c.reason == "failed at 512x1024: too large" for c in verdict.rejected)


def test_backend_that_fails_after_it_was_chosen_gives_way(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = choose(bundle, stages=("synthesis",), budget_s=BUDGET_S).stages[0]
    refuse(monkeypatch, type(registry.get_backend(first.best.backend)), BackendError("it", "gone"))
    session, choice = open_stage(bundle, "synthesis")
    session.close()
    assert choice.backend in {c.backend for c in first.ranked[1:]} - {first.best.backend}
    assert "it: gone; measuring anew" in caplog.text
    assert first.best.backend in names(choose(bundle, stages=("synthesis",)).stages[0].rejected)


def test_torch_is_taken_when_nothing_else_works(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw(monkeypatch, OnnxRuntimeBackend, OpenVinoBackend, TfliteBackend)
    session, choice = open_stage(bundle, "synthesis")
    session.close()
    assert choice.backend == "torch"


def test_named_backend_never_falls_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, TfliteBackend, BackendError("tflite", "no delegate"))
    with pytest.raises(BackendError, match=r"^tflite: no delegate$"):
        open_stage(bundle, "synthesis", "tflite")
    withdraw(monkeypatch, OpenVinoBackend)
    with pytest.raises(BackendUnavailableError, match=r"^openvino: not here$"):
        open_stage(bundle, "synthesis", "openvino")


def test_error_lists_every_candidate_when_nothing_works(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw(monkeypatch, OnnxRuntimeBackend, OpenVinoBackend)
    refuse(monkeypatch, TfliteBackend, BackendError("tflite", "no delegate"))
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(BackendError, match="nothing can run synthesis here: ") as caught:
        open_stage(bundle, "synthesis")
    for part in ("onnxruntime fp32: not here", "tflite fp32: no delegate", "torch fp32: torch is"):
        assert part in str(caught.value)


def test_missing_precision_is_told_with_those_there_are(bundle: Bundle) -> None:
    with pytest.raises(
        BundleError, match="no int8 artefact of synthesis for tflite; there are: onnx fp32, openvi"
    ):
        open_stage(bundle, "synthesis", "tflite", "int8")
    with pytest.raises(BundleError, match="no fp16 artefact of analysis; there are"):
        open_stage(bundle, "analysis", precision="fp16")


def test_unknown_backend_and_threads_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UnknownPluginError, match="coreml"):
        open_stage(bundle, "synthesis", "coreml")
    with pytest.raises(ConfigError, match="threads"):
        open_stage(bundle, "synthesis", threads=0)


def test_damaged_artefact_is_told_or_avoided(bundle: Bundle, tmp_path: Path) -> None:
    copy = with_artefacts(bundle, tmp_path, entry(bundle, "onnx"), entry(bundle, "tflite"))
    with (copy.root / "tflite" / "synthesis.fp32.tflite").open("ab") as handle:
        handle.write(b"x")
    with pytest.raises(BundleError, match="is damaged"):
        open_stage(copy, "synthesis", "tflite")
    session, choice = open_stage(copy, "synthesis")
    session.close()
    assert choice.backend == "onnxruntime"


def test_every_precision_is_held_to_its_own_tolerance(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = with_artefacts(bundle, tmp_path, entry(bundle, "onnx"), entry(bundle, "tflite", "fp16"))
    spoil(monkeypatch, TfliteBackend, lambda out: {k: v + 0.8 for k, v in out.items()})
    verdict = choose(copy, stages=("synthesis",), threads=1, budget_s=BUDGET_S).stages[0]
    assert {(c.backend, c.precision) for c in verdict.ranked} == {
        ("onnxruntime", "fp32"),
        ("tflite", "fp16"),
    }
    spoil(monkeypatch, OnnxRuntimeBackend, lambda out: {k: v + 0.8 for k, v in out.items()})
    verdict = choose(copy, stages=("synthesis",), refresh=True, threads=1).stages[0]
    assert [c.backend for c in verdict.ranked] == ["tflite"]
    assert "allowed 1 (rms 0.33)" in verdict.rejected[0].reason
    spoil(monkeypatch, TfliteBackend, lambda out: {k: v + 9 for k, v in out.items()})
    with pytest.raises(BackendError, match="nothing can run synthesis"):
        choose(copy, stages=("synthesis",), refresh=True, threads=1)


def test_bf16_takes_part_where_the_cpu_has_it(bundle: Bundle, tmp_path: Path) -> None:
    if OpenVinoBackend().lacks("bf16"):
        pytest.skip("this processor has no bfloat16")
    copy = Bundle(with_bf16(bundle, tmp_path / "copy.bundle"))
    verdict = choose(copy, threads=1, budget_s=BUDGET_S)
    for stage in verdict.stages:
        assert ("openvino", "bf16") in {(c.backend, c.precision) for c in stage.ranked}


def test_bf16_is_passed_over_where_the_cpu_lacks_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    copy = Bundle(with_bf16(bundle, tmp_path / "copy.bundle"))
    monkeypatch.setattr(openvino_backend, "_numbers", lambda core: ["FP32", "INT8"])
    monkeypatch.setattr(competition, "is_untried", lambda bundle, candidate: False)
    reason = "bf16 needs a CPU with bfloat16; OpenVINO lists FP32, INT8 for this one"
    with caplog.at_level(logging.WARNING, "edgecodec.runtimes"):
        report = devices_report(copy, 1, budget_s=BUDGET_S)
    assert not caplog.records  # nothing is wrong
    for stage in report.verdicts:
        assert "bf16" not in {choice.precision for choice in stage.ranked}
        rejected = [c for c in stage.rejected if c.precision == "bf16"]
        assert [(c.backend, c.reason) for c in rejected] == [("openvino", reason)]
    assert report.text().count(reason) == 2
    for backend in ("auto", "openvino"):
        with pytest.raises(BackendUnavailableError, match=f"^openvino: {reason}$"):
            open_stage(copy, "synthesis", backend, "bf16", 1)
    with pytest.raises(BundleError, match="no bf16 artefact of synthesis for tflite; there are: "):
        open_stage(copy, "synthesis", "tflite", "bf16")


def test_bf16_is_held_to_its_own_tolerance(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if OpenVinoBackend().lacks("bf16"):
        pytest.skip("this processor has no bfloat16")
    copy = Bundle(with_bf16(bundle, tmp_path / "copy.bundle"))
    spoil(monkeypatch, OpenVinoBackend, lambda out: {k: v + 0.6 for k, v in out.items()})
    session, _ = open_stage(copy, "synthesis", "openvino", "bf16", 1)
    session.close()
    with pytest.raises(BackendError, match="allowed 1 "):
        open_stage(copy, "synthesis", "openvino", "fp32", 1)
    spoil(monkeypatch, OpenVinoBackend, lambda out: {k: v + 9 for k, v in out.items()})
    clear_cache()
    with pytest.raises(BackendError, match=r"allowed 8 \(rms 1\.00\)"):
        open_stage(copy, "synthesis", "openvino", "bf16", 1)


def test_precision_is_not_given_up_for_less_than_a_tenth(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = with_artefacts(bundle, tmp_path, entry(bundle, "onnx"), entry(bundle, "tflite", "fp16"))

    def timed(candidates: Any, *_: object) -> None:
        for candidate in candidates:
            candidate.median_s = {"onnxruntime": 1.09, "tflite": 1.0}[candidate.name]

    monkeypatch.setattr(competition, "time_candidates", timed)
    verdict = choose(copy, stages=("synthesis",), threads=1).stages[0]
    assert verdict.best.reason == "right results, 1.09 times the fastest"
    assert [c.precision for c in verdict.ranked] == ["fp32", "fp16"]


def test_int8_is_not_given_up_for_noise(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of int8 are the same in every run, those of a half precision are not."""
    kinds = [("onnx", "fp32"), ("openvino", "bf16"), ("tflite", "int8")]
    copy = with_artefacts(bundle, tmp_path, *(entry(bundle, *kind) for kind in kinds))
    monkeypatch.setattr(openvino_backend, "_numbers", lambda core: ["BF16", "FP32"])
    times = {"fp32": 2.0, "bf16": 1.0, "int8": 1.03}

    def timed(candidates: Any, *_: object) -> None:
        for candidate in candidates:
            candidate.median_s = times[candidate.entry.precision]

    monkeypatch.setattr(competition, "time_candidates", timed)

    def ranked() -> list[str]:
        verdict = choose(copy, stages=("synthesis",), threads=1, refresh=True).stages[0]
        return [c.precision for c in verdict.ranked]

    assert ranked() == ["int8", "bf16", "fp32"]
    times["int8"] = 1.06
    assert ranked() == ["bf16", "int8", "fp32"]
    times |= {"fp32": 1.14, "int8": 2.0}
    assert ranked() == ["fp32", "bf16", "int8"]


def test_int8_must_match_its_own_golden_result_exactly(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = with_artefacts(bundle, tmp_path, entry(bundle, "tflite", "int8"))
    golden = copy.golden()
    np.savez(copy.root / GOLDEN, allow_pickle=False, x_hat_int8=golden["x_hat"], **golden)
    manifest = replace(copy.manifest, files=hash_files(copy.root))
    (copy.root / MANIFEST).write_text(manifest.to_json())
    copy = Bundle(copy.path)
    assert choose(copy, stages=("synthesis",), precision="int8").stages[0].best.ok
    spoil(monkeypatch, TfliteBackend, lambda out: {k: v + 0.6 for k, v in out.items()})
    for precision in ("int8", "auto"):
        with pytest.raises(BackendError, match=r"up to 1 levels .*, allowed 0"):
            choose(copy, stages=("synthesis",), precision=precision, threads=1)


def test_what_is_wrong_on_full_colours_alone_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kernels are that sum in half precision: right on a photo, far off where all is full."""
    copy = with_artefacts(bundle, tmp_path, entry(bundle, "onnx"), entry(bundle, "tflite", "fp16"))
    arrays = copy.golden()
    extreme = np.rint(np.clip(1.0 + arrays["y_hat"][:2, :4], -99, 99)).astype(np.int16)
    graph = Artefact("synthesis", "onnx", "fp32", copy.artefact_file(entry(copy, "onnx")))
    with closing(OnnxRuntimeBackend().load(graph, SessionOptions(1))) as session:
        x_hat = session.run({"y_hat": extreme[None].astype(np.float32)})["x_hat"][0]
    arrays |= {"y_hat_extreme": extreme, "x_hat_extreme": to_levels(x_hat)}
    np.savez(copy.root / GOLDEN, allow_pickle=False, **arrays)
    manifest = replace(copy.manifest, files=hash_files(copy.root))
    (copy.root / MANIFEST).write_text(manifest.to_json())
    copy = Bundle(copy.path)
    verdict = choose(copy, stages=("synthesis",), threads=1, budget_s=BUDGET_S).stages[0]
    assert names(verdict.ranked) == {"onnxruntime", "tflite"}

    def far_off(out: Outputs) -> Outputs:
        return {k: v + 12 * (v.shape[1] == x_hat.shape[0]) for k, v in out.items()}

    spoil(monkeypatch, TfliteBackend, far_off)
    verdict = choose(copy, stages=("synthesis",), threads=1, refresh=True).stages[0]
    assert names(verdict.ranked) == {"onnxruntime"}
    assert verdict.rejected[0].reason.endswith("(full colours)")


def test_latents_of_full_colours_without_their_pixels_are_a_damaged_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = bundle.golden()
    monkeypatch.setattr(bundle, "golden", lambda: {**arrays, "y_hat_extreme": arrays["y_hat"]})
    with pytest.raises(BundleError, match="lacks an array"):
        Golden.of(bundle)


def test_size_class_is_the_nearest_by_area() -> None:
    assert size_class(1, 1) == (128, 128)
    assert size_class(768, 512) == (512, 1024)
    assert size_class(1024, 1024) == TILE
    assert size_class(4000, 6000) == TILE
    for power in range(14, 19):
        # Just below and above the geometric mean of two classes.
        assert math.prod(size_class(1, int(1.41 * 2**power))) == 2**power
        assert math.prod(size_class(1, int(1.42 * 2**power))) == 2 ** (power + 1)


def test_devices_report_tells_backends_choices_and_reasons(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw(monkeypatch, OpenVinoBackend)
    report = devices_report(bundle, 1, budget_s=BUDGET_S)
    text = report.text()
    for part in (
        "onnxruntime  yes",
        "openvino     no",
        "not here",
        "synthesis, threads 1, 1024x512 pixels, measured 2",
    ):
        assert part in text
    assert "-> " in text
    values = json.loads(json.dumps(report.to_dict()))
    assert values["backends"]["openvino"] == {
        "ok": False,
        "reason": "not here",
        "version": "",
        "accelerator": "cpu",
        "devices": [],
    }
    assert values["stages"][0]["ranked"][0]["median_s"] > 0
    assert values["device"]["usable_cores"] >= 1


def test_devices_report_bears_a_bundle_that_nothing_can_run(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = with_artefacts(bundle, tmp_path, entry(bundle, "tflite"))
    withdraw(monkeypatch, TfliteBackend)
    report = devices_report(copy)
    assert report.verdicts == ()
    assert "synthesis: tflite: not here" in report.text()
    assert "no artefact of analysis" in report.text()
    assert devices_report(None).problems == ()


def test_thread_counts_take_part_when_left_open(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(competition, "thread_counts", lambda: (3, 1))
    rounds: list[set[tuple[str, int | None]]] = []

    def timed(candidates: Any, *_: object) -> None:
        """Make one thread twice as fast as the default, and each round slower than the last."""
        rounds.append({(c.name, c.threads) for c in candidates})
        for c in candidates:
            assert c.session is not None
            speed = {None: 1.0, 3: 0.99, 2: 1.0, 1: 0.5}[c.threads]
            own = {"onnxruntime": 1.2, "openvino": 1.0, "tflite": 1.5}[c.name]
            c.median_s = speed * own * len(rounds)

    monkeypatch.setattr(competition, "time_candidates", timed)
    verdict = choose(bundle, stages=("synthesis",)).stages[0]
    default = {(name, None) for name in ("onnxruntime", "openvino", "tflite")}
    # The best so far takes part in each round; 3 threads gain too little to replace it.
    challengers = [{("openvino", n), ("onnxruntime", n), ("openvino", None)} for n in (3, 1)]
    assert rounds == [default, *challengers]
    assert [(c.backend, c.threads) for c in verdict.ranked[:3]] == [
        ("openvino", 1),
        ("onnxruntime", 1),
        ("openvino", None),
    ]
    assert verdict.best.median_s == pytest.approx(0.5)
    assert verdict.ranked[2].median_s == pytest.approx(1.0)  # on the scale of the first round
    rounds.clear()
    choose(bundle, stages=("synthesis",), threads=2)
    assert all(threads == 2 for some in rounds for _, threads in some)


def test_thread_count_must_be_surely_faster(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(competition, "thread_counts", lambda: (1,))
    high = 1.1

    def timed(candidates: Any, *_: object) -> None:
        for c in candidates:
            c.median_s, c.high_s = (1.0, 1.2) if c.threads is None else (0.7, high)

    monkeypatch.setattr(competition, "time_candidates", timed)
    assert choose(bundle, stages=("synthesis",)).stages[0].best.threads is None
    high = 0.9
    assert choose(bundle, stages=("synthesis",), refresh=True).stages[0].best.threads == 1


def test_thread_counts_are_those_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(usable: int, physical: int) -> tuple[int, ...]:
        device = replace(probe_device(), physical_cores=physical)
        monkeypatch.setattr(competition, "usable_cores", lambda: usable)
        monkeypatch.setattr(competition, "probe_device", lambda: device)
        return competition.thread_counts()

    assert counts(2, 2) == (1,)
    assert counts(8, 8) == (4, 1)
    assert counts(8, 4) == (8, 4, 2, 1)
    assert counts(2, 4) == (1,)
    assert counts(4, 0) == (2, 1)
    assert counts(1, 1) == ()


def test_variables_force_and_forbid_backends(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECODEC_BACKEND", "openvino")
    verdict = choose(bundle, stages=("synthesis",)).stages[0]
    assert (verdict.backend, verdict.best.backend) == ("openvino", "openvino")
    session, choice = open_stage(bundle, "synthesis", "tflite")  # what is named goes before
    session.close()
    assert choice.backend == "tflite"
    monkeypatch.setenv("EDGECODEC_DISABLE", "openvino, tflite")
    with pytest.raises(BackendUnavailableError, match="openvino: forbidden by EDGECODEC_DISABLE"):
        choose(bundle, stages=("synthesis",))
    monkeypatch.delenv("EDGECODEC_BACKEND")
    verdict = choose(bundle, stages=("synthesis",), threads=1).stages[0]
    assert names(verdict.ranked) == {"onnxruntime"}
    assert "forbidden by EDGECODEC_DISABLE" in devices_report(bundle, 1).text()
    monkeypatch.delenv("EDGECODEC_DISABLE")  # another question, so another answer
    verdict = choose(bundle, stages=("synthesis",), threads=1, budget_s=BUDGET_S).stages[0]
    assert names(verdict.ranked) == {"onnxruntime", "openvino", "tflite"}


@pytest.mark.parametrize("variable", ["EDGECODEC_BACKEND", "EDGECODEC_DISABLE", "EDGECODEC_RISKY"])
def test_variable_that_names_no_backend_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "tflight")
    with pytest.raises(UnknownPluginError, match=f"{variable} named 'tflight'; there are: onnx"):
        choose(bundle, stages=("synthesis",))
    with pytest.raises(UnknownPluginError, match=variable):
        devices_report(bundle)


def test_wrong_time_limit_is_told_as_such_and_costs_nothing(
    shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = choose(shipped, backend="onnxruntime", precision="fp32", threads=1, stages=["analysis"])
    clear_cache()
    with monkeypatch.context() as wrong:
        wrong.setenv("EDGECODEC_TIMEOUT", "soon")
        with pytest.raises(ConfigError, match="EDGECODEC_TIMEOUT must be"):
            open_stage(shipped, "analysis", "onnxruntime", "fp32", 1)
    again = choose(shipped, backend="onnxruntime", precision="fp32", threads=1, stages=["analysis"])
    assert again == known


def test_no_more_threads_than_cores_to_run_on(
    shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selector, "usable_cores", lambda: 2)
    for asked, given in ((1, 1), (2, 2), (1000, 2)):
        verdict = choose(
            shipped, backend="onnxruntime", precision="fp32", threads=asked, stages=["analysis"]
        )
        assert verdict.of("analysis").best.threads == given
