"""The parity check passes what is right, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgecodec.converters.checks.parity import Sample, check_artefact, make_samples
from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.writers.to_torch import write_torch
from edgecodec.errors import ParityError
from edgecodec.runtimes.base import Artefact, Availability


class Analysis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 16, stride=16), nn.Conv2d(4, 2, 2, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return y, self.second(y)


@pytest.fixture
def synthesis() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 768, 1), nn.PixelShuffle(16)).eval()


@pytest.fixture
def samples(synthesis: nn.Module) -> list[Sample]:
    rng = np.random.default_rng(5)
    photos = [rng.integers(0, 256, (32, side, 3), dtype=np.uint8) for side in (64, 96)]
    return make_samples(Analysis().eval(), synthesis, photos)


@pytest.fixture
def graph(synthesis: nn.Module) -> Graph:
    return graph_from_module(synthesis, stage="synthesis", inputs={"y_hat": 4}, outputs=["x_hat"])


def check(graph: Graph, samples: list[Sample], folder: Path) -> dict[str, Any]:
    path = folder / "synthesis.fp32.pt"
    write_torch(graph, path)
    return check_artefact(
        Artefact("synthesis", "torch", "fp32", path), "torch", samples, pytest.fail
    )


def with_bias(graph: Graph, change: Any) -> Graph:
    first = graph.nodes[0]
    assert isinstance(first, Conv2d)
    return replace(graph, nodes=(replace(first, bias=change(first.bias)), *graph.nodes[1:]))


def test_samples_are_what_the_stages_take_and_give(samples: list[Sample]) -> None:
    inputs, outputs = samples[1].of("analysis")
    assert inputs["x"].shape == (1, 32, 96, 3)
    assert (outputs["y"].shape, outputs["z"].shape) == ((1, 2, 6, 4), (1, 1, 3, 2))
    inputs, outputs = samples[1].of("synthesis")
    assert np.array_equal(inputs["y_hat"], np.rint(inputs["y_hat"]))
    assert outputs["x_hat"].shape == (1, 32, 96, 3)
    assert outputs["x_hat"].dtype == np.float32


def test_right_artefact_passes_with_its_figures(
    graph: Graph, samples: list[Sample], tmp_path: Path
) -> None:
    found = check(graph, samples, tmp_path)
    assert found["checked"] is True
    assert (found["backend"], found["photos"]) == ("torch", 2)
    assert found["x_hat"]["max_abs_err"] < 1e-3
    assert found["x_hat"]["max_level_err"] <= 1


def test_wrong_artefact_is_refused_with_figures(
    graph: Graph, samples: list[Sample], tmp_path: Path
) -> None:
    wrong = with_bias(graph, lambda bias: bias + np.float32(3.0))
    with pytest.raises(ParityError, match=r"synthesis: torch fp32 output x_hat differs") as caught:
        check(wrong, samples, tmp_path)
    assert 3 <= caught.value.max_abs_err <= 4
    assert caught.value.tolerance == 1


def test_small_difference_of_all_pixels_is_refused(
    graph: Graph, samples: list[Sample], tmp_path: Path
) -> None:
    wrong = with_bias(graph, lambda bias: bias + np.float32(0.1))
    with pytest.raises(ParityError, match=r"x_hat \(rms\) differs from the reference by 0\.1"):
        check(wrong, samples, tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(
    value: float, graph: Graph, samples: list[Sample], tmp_path: Path
) -> None:
    wrong = with_bias(graph, lambda bias: np.where(np.arange(768) == 5, value, bias).astype("f4"))
    with pytest.raises(ParityError):
        check(wrong, samples, tmp_path)


def test_wrong_latents_are_refused(tmp_path: Path) -> None:
    module = Analysis().eval()
    photo = np.full((32, 64, 3), 100, np.uint8)
    good = make_samples(module, nn.PixelShuffle(2), [photo])
    with torch.no_grad():
        module.get_parameter("second.bias").add_(0.02)
    changed = graph_from_module(module, stage="analysis", inputs={"x": 3}, outputs=["y", "z"])
    write_torch(changed, tmp_path / "analysis.fp32.pt")
    artefact = Artefact("analysis", "torch", "fp32", tmp_path / "analysis.fp32.pt")
    with pytest.raises(ParityError, match=r"output z differs from the reference by 0\.02"):
        check_artefact(artefact, "torch", good, pytest.fail)


def test_missing_runtime_is_recorded_and_told(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent:
        def probe(self) -> Availability:
            return Availability(False, "is not installed")

    monkeypatch.setattr("edgecodec.converters.checks.parity.get_backend", lambda name: Absent())
    told: list[str] = []
    artefact = Artefact("synthesis", "tflite", "fp32", tmp_path / "synthesis.fp32.tflite")
    found = check_artefact(artefact, "tflite", samples, told.append)
    assert found == {"checked": False, "reason": "tflite: is not installed"}
    assert told == ["NOT CHECKED: synthesis.fp32.tflite, because tflite is not installed"]
