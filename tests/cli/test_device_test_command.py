"""`edgecodec device-test` on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecodec.device_tests.conformance import suite
from edgecodec.device_tests.conformance.kit import KitReport
from edgecodec.device_tests.conformance.latency import Latency
from edgecodec.device_tests.conformance.matrix import ConformanceReport
from edgecodec.device_tests.conformance.robustness import RobustnessReport
from edgecodec.device_tests.conformance.suite import SuiteOptions, SuiteReport
from tests.support.commands import Call


def test_device_test_checks_and_writes_json(folder: Path, call: Call) -> None:
    args = ("device-test", "photo.png", "--qualities", "40", "--threads", "1", "--runs", "1")
    assert call(*args, "--json", "report.json") == 0
    assert call.out.endswith("passed\n")
    report = json.loads((folder / "report.json").read_text())
    assert report["passed"] is True
    assert report["golden_mismatches"] == 0
    assert report["kit"]["passed"] is True


def test_options_reach_the_suite_and_failure_is_exit_code_1(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def run_suite(images: list[Path], options: SuiteOptions) -> SuiteReport:
        seen.update(vars(options), images=[path.name for path in images])
        nothing = ConformanceReport([], [])
        return SuiteReport(KitReport(), nothing, RobustnessReport(), Latency(None, "no"))

    monkeypatch.setattr(suite, "run_suite", run_suite)
    options = ("--matrix", "--precision", "int8", "--extremes", "--fast", "--runs", "0")
    assert call("device-test", *options, "--bundle", "x", "photo.png") == 1
    assert call.out.endswith("device test FAILED\n")
    assert seen == {
        "images": ["photo.png"], "qualities": (10, 50, 90), "matrix": True,
        "precisions": ("int8",), "extremes": True, "twin": False, "bundle": "x",
        "threads": None, "runs": 0,
    }  # fmt: skip
    assert call("device-test", "--qualities", "40") == 1
    defaults = vars(SuiteOptions(qualities=(40,)))
    assert seen == {**defaults, "images": []}
