"""The table of layers: sums by operator, the slowest, speeds only where all is known."""

from __future__ import annotations

import json

import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.device_tests.measuring.layer_profile import (
    SLOWEST,
    NetworkProfile,
    of_peak,
    profile_networks,
    speed,
)
from edgecodec.runtimes.base import Artefact, RunSettings, SessionOptions, StageName
from edgecodec.runtimes.layers.base import FLOAT32, INT8, Layer
from edgecodec.runtimes.layers.peak import Peak
from edgecodec.runtimes.registry import get_backend
from edgecodec.runtimes.selection.choice import Choice

PEAKS = {FLOAT32: Peak(FLOAT32, 100.0, "test")}
LAYERS = (
    Layer("a", "Conv", (0.002, 0.004, 0.003), 100_000_000, FLOAT32),
    Layer("b", "Add", (0.001, 0.001, 0.001)),
    Layer("c", "Conv", (0.001, 0.001, 0.001), 50_000_000, FLOAT32),
    Layer("d", "QConv", (0.001, 0.001, 0.001), 50_000_000, INT8),
)
PROFILE = NetworkProfile("analysis", "tflite", "fp32", (512, 768), LAYERS)


def test_speed_is_that_of_the_fastest_runs() -> None:
    assert speed(LAYERS[:1]) == pytest.approx(50.0)
    assert speed([LAYERS[0], LAYERS[2]]) == pytest.approx(50.0)
    assert speed(LAYERS[1:2]) is None
    assert speed(LAYERS) is None
    assert of_peak(LAYERS[:1], PEAKS) == pytest.approx(0.5)
    assert of_peak(LAYERS[3:], PEAKS) is None
    assert of_peak([LAYERS[0], LAYERS[3]], PEAKS) is None


def test_tables() -> None:
    lines = [line.split() for line in PROFILE.text(PEAKS).splitlines()]
    assert lines[0][-8:] == ["6.00", "ms", "in", "layers,", "medians", "of", "3", "runs"]
    assert lines[2] == ["Conv", "2", "4.000", "66.7", "%", "50.0", "50", "%"]
    assert lines[3] == ["Add", "1", "1.000", "16.7", "%", "-", "-"]
    assert lines[4] == ["QConv", "1", "1.000", "16.7", "%", "50.0", "-"]
    assert lines[6][:2] == ["a:", "Conv"]
    many = NetworkProfile("analysis", "x", "fp32", (8, 8), LAYERS * 5)
    assert len(many.text(PEAKS).splitlines()) == 6 + SLOWEST
    values = json.loads(json.dumps(PROFILE.to_dict(PEAKS)))
    assert values["total_s"] == pytest.approx(0.006)
    assert sum(layer["share"] for layer in values["layers"]) == pytest.approx(1.0)
    assert values["layers"][0]["of_peak"] == pytest.approx(0.5)
    assert values["layers"][1]["gmacs_per_s"] is None


SIZES: dict[StageName, tuple[int, int]] = {"analysis": (64, 64), "synthesis": (64, 64)}


def test_networks_are_profiled_once_and_the_rest_says_why(shipped: Bundle) -> None:
    def choice(backend: str, threads: int | None = 1) -> Choice:
        return Choice("synthesis", RunSettings(threads, backend, "fp32"), True, "")

    names = ("onnxruntime", "torch", "onnxruntime")
    profiles = profile_networks(shipped, [choice(n) for n in names], SIZES, runs=1)
    assert [p.backend for p in profiles] == ["onnxruntime", "torch"]
    assert profiles[0].layers
    assert profiles[0].kinds()[0][0] == "Conv"
    assert not profiles[1].layers
    assert profiles[1].text({}).endswith("not available (this backend has no profiler)")


def test_networks_are_profiled_with_the_threads_that_were_chosen(
    shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int | None] = []
    backend = get_backend("onnxruntime")

    def profile_layers(artefact: Artefact, options: SessionOptions, *rest: object) -> list[Layer]:
        given.append(options.threads)
        return list(LAYERS)

    monkeypatch.setattr(backend, "profile_layers", profile_layers)
    chosen = [
        Choice("analysis", RunSettings(n, "onnxruntime", "fp32"), True, "") for n in (1, 2, None, 2)
    ]
    profiles = profile_networks(shipped, chosen, SIZES)
    assert given == [1, 2, None] == [p.threads for p in profiles]
    titles = [p.text(PEAKS).partition(" pixels")[0] for p in profiles]
    assert titles == [
        "analysis, onnxruntime fp32, 1 thread, 64 x 64",
        "analysis, onnxruntime fp32, 2 threads, 64 x 64",
        "analysis, onnxruntime fp32, 64 x 64",
    ]
    assert profiles[1].to_dict(PEAKS)["threads"] == 2
