"""Every target computes what torch computes, at every size; and what `plan` refuses."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from edgecodec.bundle.manifest import Precision
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.writers.targets import TARGETS, lacks, plan
from edgecodec.errors import (
    ConfigError,
    ConversionError,
    MissingDependencyError,
    UnknownPluginError,
)
from edgecodec.runtimes.base import StageName


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_artefact_equals_torch_at_every_size(target: str, traced: Any, run_artefact: Any) -> None:
    case, module, graph = traced.case, traced.module, traced.graph
    rng = np.random.default_rng(2)
    # OpenVINO compiles kernels anew for each size.
    for size in case.sizes[: 2 if target == "openvino" else None]:
        x = rng.normal(size=(1, *size, case.channels)).astype(np.float32)
        with torch.inference_mode():
            expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2)))
        expected = expected.permute(0, 2, 3, 1).numpy()
        found = run_artefact(graph, target, "fp32", x)["x_out"]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * max(1e-3, np.abs(expected).max())


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_fp16_differs_by_little(target: str, small_graph: Any, run_artefact: Any) -> None:
    x = np.random.default_rng(3).normal(size=(1, 6, 4, 3)).astype(np.float32)
    exact = run_artefact(small_graph, "torch", "fp32", x)["x_hat"]
    found = run_artefact(small_graph, target, "fp16", x)["x_hat"]
    assert 0 < np.abs(found - exact).max() < 4e-3 * np.abs(exact).max()


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_two_outputs_keep_their_names(target: str, run_artefact: Any) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 2, 1), torch.nn.Conv2d(2, 5, 2, stride=2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.first(x)
            return y, self.second(torch.relu(y))

    graph = graph_from_module(Two(), stage="s", inputs={"x": 3}, outputs=["y", "z"])
    found = run_artefact(graph, target, "fp32", np.ones((1, 4, 6, 3), np.float32))
    assert {name: value.shape for name, value in found.items()} == {
        "y": (1, 4, 6, 2),
        "z": (1, 2, 3, 5),
    }


def planned(targets: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    """Return target and precision of all that is planned."""
    return [(part.target.name, part.precision) for part in plan(targets, precisions)]


def test_plan_puts_the_reference_first_and_once() -> None:
    assert planned(["tflite", "torch", "onnx", "tflite"], ["fp16", "fp32"]) == [
        ("torch", "fp32"),
        ("tflite", "fp32"),
        ("tflite", "fp16"),
        ("onnx", "fp32"),
        ("onnx", "fp16"),
    ]


def test_plan_knows_int8_of_all_but_torch() -> None:
    assert planned(["onnx", "torch"], ["int8"]) == [("torch", "fp32"), ("onnx", "int8")]


def test_plan_knows_bf16_of_openvino_alone() -> None:
    assert planned(["onnx", "openvino"], ["bf16", "fp32", "int8"]) == [
        ("torch", "fp32"),
        ("onnx", "fp32"),
        ("onnx", "int8"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
    ]
    message = "^precision 'bf16' is not available for onnx, tflite; it is for: openvino$"
    with pytest.raises(ConversionError, match=message):
        plan(["onnx", "tflite"], ["fp32", "bf16"])
    with pytest.raises(ConversionError, match="'int8' is not available for torch; it is for: onnx"):
        plan(["torch"], ["fp32", "int8"])


def test_plan_takes_a_precision_for_one_stage_alone() -> None:
    both: tuple[StageName, ...] = ("analysis", "synthesis")
    for asked, stages in (
        (["fp32", "int8:analysis"], ("analysis",)),
        (["int8:synthesis", "fp32"], ("synthesis",)),
        (["int8:synthesis", "fp32", "int8:analysis"], both),
        (["int8:analysis", "int8", "fp32"], both),
    ):
        found = plan(["onnx"], asked)
        assert [(part.precision, part.stages) for part in found] == [
            ("fp32", both),
            ("fp32", both),
            ("int8", stages),
        ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int8:", "names no stage that there is; write one of: int8, int8:analysis, int8:synth"),
        ("fp16:decoder", "names no stage that there is; write one of: fp16, fp16:analysis, fp16:s"),
        ("int8:analysis:synthesis", "names no stage that there is; write one of: int8, int8:an"),
        ("fp8:analysis", "is not available; there are: fp32, fp16, bf16, int8; for one stage"),
        (":analysis", "is not available; there are: fp32, fp16, bf16, int8; for one stage"),
        (
            ":",
            "is not available; there are: fp32, fp16, bf16, int8; for one stage alone as int8:",
        ),
    ],
)
def test_plan_repeats_what_it_does_not_understand(text: str, words: str) -> None:
    with pytest.raises(ConversionError) as caught:
        plan(["onnx"], ["fp32", text])
    assert str(caught.value).startswith(f"precision {text!r} {words}")


def test_backends_say_themselves_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky:
        def lacks(self, precision: str) -> str:
            return f"no {precision} here" if precision == "fp16" else ""

    backends = {"onnxruntime": Picky(), "tflite": object()}
    monkeypatch.setattr("edgecodec.converters.writers.targets.get_backend", backends.__getitem__)
    assert lacks(TARGETS["onnx"], "fp16") == "no fp16 here"
    assert lacks(TARGETS["onnx"], "bf16") == lacks(TARGETS["tflite"], "fp16") == ""


def test_plan_refuses_unknown_names() -> None:
    with pytest.raises(UnknownPluginError, match="no target named 'coreml'; there are: onnx"):
        plan(["coreml"], ["fp32"])
    with pytest.raises(ConversionError, match="'fp8' is not available; there are: fp32, fp16"):
        plan(["onnx"], ["fp8"])
    with pytest.raises(ConfigError, match="at least one target"):
        plan([], ["fp32"])


def test_plan_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "edgecodec.converters.writers.targets.find_spec",
        lambda name: None if name == "openvino" else real(name),
    )
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgecodec\[openvino\]'"):
        plan(["onnx", "openvino"], ["fp32"])


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_writers_refuse_other_precisions(
    target: str, precision: Precision, small_graph: Any, tmp_path: Any
) -> None:
    with pytest.raises(ConversionError, match=r"synthesis: .*(not available|without int8 codes)"):
        TARGETS[target].load_writer()(small_graph, tmp_path / "x", precision)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"openvino"}))
def test_writers_but_that_of_openvino_refuse_bf16(
    target: str, small_graph: Any, tmp_path: Any
) -> None:
    with pytest.raises(ConversionError, match="synthesis: precision 'bf16' is not available; the"):
        TARGETS[target].load_writer()(small_graph, tmp_path / "x", "bf16")
    assert not list(tmp_path.iterdir())
