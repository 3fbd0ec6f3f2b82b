"""Profiles per layer: recorded ones of each runtime, and real ones that agree with each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.runtimes.base import STAGES, Artefact, SessionOptions
from edgecodec.runtimes.layers import tflite_layers
from edgecodec.runtimes.layers.base import FLOAT32, INT8, Layer, LayerProfiler, convolution_macs
from edgecodec.runtimes.layers.onnxruntime_layers import _macs, layers_of
from edgecodec.runtimes.layers.openvino_layers import arithmetic_of
from edgecodec.runtimes.layers.peak import Peak, measure_peaks, product_model
from edgecodec.runtimes.registry import get_backend
from edgecodec.runtimes.selection.golden import Golden

SIZE = (64, 96)
SUMMARY = """\
===== Run Order =====
        [node type]    [start]    [first]   [avg ms]        [%]     [cdf%]   [mem KB] [times called]   [Name]
    Delegate/Fully Connected (NC, F32) GEMM      0.000      {0}      {0}     3.320%     3.320%      0.000     1   [Delegate]:0
                     Delegate/Convert (NC)      0.000      0.208      0.149     0.080%     9.066%      0.000     1   [Delegate]:1
Delegate/Convolution (NHWC, QC8) DWConv      0.000      0.618      0.532     0.286%    33.358%      0.000     1   [Delegate]:2

===== Top by Computation Time =====
        [node type]    [start]    [first]   [avg ms]        [%]     [cdf%]   [mem KB] [times called]   [Name]
    Delegate/Fully Connected (NC, F32) GEMM      0.000      9.773      6.169     3.320%     3.320%      0.000     1   [Delegate]:0
"""  # noqa: E501


def node(name: str, microseconds: int, operator: str, **arguments: Any) -> dict[str, Any]:
    args = {"op_name": operator, "node_index": "3", **arguments}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


CONV = {
    "input_type_shape": [{"uint8": [1, 8, 12, 64]}, {"float": []}, {"int8": [128, 64, 3, 3]}],
    "output_type_shape": [{"uint8": [1, 128, 8, 12]}],
}


def test_onnxruntime_trace() -> None:
    runs = [
        {"cat": "Session", "name": "model_run", "dur": 99},
        *(node("conv", t, "QLinearConv", **CONV) for t in (900, 800, 100, 300, 200)),
        *(node("relu", t, "Relu", input_type_shape=[{"float": [1]}]) for t in (9, 8, 1, 3, 2)),
    ]
    conv, relu = layers_of(runs, {"conv_kernel_time": 7})
    assert conv == Layer("conv", "QLinearConv", (1e-4, 3e-4, 2e-4), 7, INT8)
    assert conv.median_s == pytest.approx(2e-4)
    assert (relu.macs, relu.arithmetic) == (None, FLOAT32)
    with pytest.raises(BackendError, match="no layers"):
        layers_of(runs[:1], {})


def test_onnxruntime_macs() -> None:
    assert _macs({"op_name": "QLinearConv", **CONV}) == 128 * 8 * 12 * 64 * 9
    product = {"input_type_shape": [{"float": [5, 7]}, {"float": [7, 3]}]}
    product["output_type_shape"] = [{"float": [5, 3]}]
    assert _macs({"op_name": "MatMul", **product}) == 5 * 7 * 3
    assert _macs({"op_name": "Add", **product}) is None
    assert _macs({"op_name": "Conv"}) is None
    assert _macs({"op_name": "Conv", **product}) is None  # weights unseen


def test_litert_summaries() -> None:
    runs = [SUMMARY.format(f"{ms:.3f}") for ms in (9.0, 8.0, 6.0, 7.0)]
    first, second, third = tflite_layers.layers_of(runs, [("dense", 11), ("depthwise", 22)])
    assert first == Layer("dense", "Fully Connected (NC, F32) GEMM", (0.006, 0.007), 11, FLOAT32)
    assert second.operator == "Convert (NC)"
    assert second.macs is None
    assert (third.name, third.macs, third.arithmetic) == ("depthwise", 22, INT8)
    unmatched = tflite_layers.layers_of(runs, [("dense", 11)])
    assert [layer.macs for layer in unmatched] == [None, None, None]


@pytest.mark.parametrize("summaries", [[], ["nothing"], [SUMMARY, SUMMARY.replace("DWConv", "X")]])
def test_litert_summaries_of_unknown_form_are_refused(summaries: list[str]) -> None:
    with pytest.raises(BackendUnavailableError, match="form"):
        tflite_layers.layers_of(summaries, [])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.abort()", "exit code -6"),
        ("raise SystemExit('LiteRtRun returned 3')", "LiteRtRun returned 3"),
        ("import time; time.sleep(60)", "does not answer"),
    ],
)
def test_litert_process_that_ends_badly_is_told(
    monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    monkeypatch.setattr(tflite_layers, "_PROGRAM", program)
    monkeypatch.setattr(tflite_layers, "TIMEOUT_S", 1.0 if "sleep" in program else 60.0)
    with pytest.raises(BackendUnavailableError, match=message):
        tflite_layers._run_child("{}")


def test_openvino_kernels() -> None:
    names = ("brgconv_avx512_f32", "jit_uni_I8", "brgconv_avx512_amx_bf16", "unknown", "undef")
    assert [arithmetic_of(n) for n in names] == [FLOAT32, INT8, "bfloat16", "", ""]


def test_macs_of_convolutions() -> None:
    assert convolution_macs((1, 128, 64, 96), (3, 8, 8)) == 128 * 64 * 96 * 3 * 64


@pytest.fixture(scope="module")
def golden(shipped: Bundle) -> Golden:
    return Golden.of(shipped)


def profile(shipped: Bundle, golden: Golden, name: str, stage: str) -> list[Layer]:
    backend = get_backend(name)
    if not backend.probe().ok:
        pytest.skip(f"{name} is not here")
    assert isinstance(backend, LayerProfiler)
    entry = next(
        e for e in shipped.manifest.artefacts
        if (e.stage, e.target, e.precision) == (stage, backend.target, "fp32")
    )  # fmt: skip
    artefact = Artefact(stage, entry.target, "fp32", shipped.artefact_file(entry))  # type: ignore[arg-type]
    inputs = golden.workload(stage, SIZE)  # type: ignore[arg-type]
    return backend.profile_layers(artefact, SessionOptions(1), inputs, 2)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "tflite"])
@pytest.mark.parametrize("stage", STAGES)
def test_profiles_of_all_runtimes_count_the_same_work(
    shipped: Bundle, golden: Golden, name: str, stage: str
) -> None:
    layers = profile(shipped, golden, name, stage)
    assert len({layer.name for layer in layers}) > 10
    assert all(len(layer.samples_s) == 2 for layer in layers)
    assert sum(layer.median_s for layer in layers) > 0
    convolutions = [layer for layer in layers if layer.macs is not None]
    assert {layer.arithmetic for layer in convolutions} == {FLOAT32}
    per_pixel = sum(layer.macs or 0 for layer in convolutions) / (SIZE[0] * SIZE[1])
    reference = profile(shipped, golden, "onnxruntime", stage)
    expected = sum(layer.macs or 0 for layer in reference) / (SIZE[0] * SIZE[1])
    # ONNX Runtime computes a change of layout beside a pixel shuffle as a convolution of its own.
    assert per_pixel == pytest.approx(expected, rel=1e-3)
    assert 5e3 < per_pixel < 12e3


def test_peaks_are_measured_and_products_right() -> None:
    ort = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (8, 8), np.uint8), rng.integers(-127, 128, (8, 8), np.int8)
    session = ort.InferenceSession(
        product_model("MatMulInteger", 2, 3, 6, right), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"a": left})
    assert (found == left.astype(np.int32) @ right.astype(np.int32)).all()
    peaks = measure_peaks(1, side=64)
    assert set(peaks) == {FLOAT32, INT8}
    assert all(peak.gmacs_per_s > 0.01 for peak in peaks.values())


def test_numpy_gives_the_peak_where_onnxruntime_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> object:
        raise BackendUnavailableError("onnxruntime", "absent")

    monkeypatch.setattr("edgecodec.runtimes.layers.peak.import_vendor", absent)
    monkeypatch.setattr("edgecodec.runtimes.layers.peak.BUDGET_S", 0.01)
    peaks = measure_peaks(1, side=64)
    assert list(peaks) == [FLOAT32]
    assert isinstance(peaks[FLOAT32], Peak)
    assert peaks[FLOAT32].source.startswith("NumPy")


def test_nothing_is_left_of_a_profile(
    shipped: Bundle, golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    layers = profile(shipped, golden, "onnxruntime", "synthesis")
    assert list(tmp_path.iterdir()) == []
    json.dumps([vars(layer) for layer in layers])
