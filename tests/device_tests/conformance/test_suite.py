"""What the device test takes, and when it passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecodec.bundle.manifest import PRECISIONS
from edgecodec.device_tests.conformance import suite
from edgecodec.device_tests.conformance.kit import KitReport, kit_model, open_pictures
from edgecodec.device_tests.conformance.latency import Latency
from edgecodec.device_tests.conformance.matrix import ConformanceReport, Pair
from edgecodec.device_tests.conformance.robustness import RobustnessReport
from edgecodec.device_tests.conformance.suite import SuiteOptions, SuiteReport, run_suite
from edgecodec.errors import ConfigError

NOTHING = Latency(None, "not asked for")


def kit(*problems: str) -> KitReport:
    return KitReport(1, ["numpy"], {"onnxruntime fp32": 0}, {}, list(problems))


def conformance(mismatches: int = 0) -> ConformanceReport:
    name = "onnxruntime fp32"
    pair = Pair(name, name, 1, 16, mismatches, 0, 0.0)
    return ConformanceReport(["photo.png"], [40], pairs=[pair])


def robustness(*problems: str) -> RobustnessReport:
    return RobustnessReport({"cut short": 1}, list(problems))


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (SuiteReport(kit(), conformance(), robustness(), NOTHING), "device test passed"),
        (
            SuiteReport(kit("format break: x.ecx"), conformance(), robustness(), NOTHING),
            "format break: x.ecx\nkit FAILED",
        ),
        (SuiteReport(kit(), conformance(1), robustness(), NOTHING), "1/0!"),
        (SuiteReport(kit(), conformance(), robustness("file cut short: read"), NOTHING), "read"),
        (SuiteReport(kit(), ConformanceReport([], []), robustness(), NOTHING), "no backend works"),
    ],
    ids=["all well", "golden file", "latents", "damaged file read", "nothing compared"],
)
def test_suite_passes_where_every_part_does(report: SuiteReport, words: str) -> None:
    assert words in report.text()
    assert report.passed == report.text().endswith("device test passed")
    assert report.to_dict()["passed"] is report.passed
    assert report.to_dict()["kit"]["passed"] is report.kit.passed


def test_suite_takes_what_is_asked_for(
    small: npt.NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def check(images: Any, qualities: Any, **options: Any) -> ConformanceReport:
        seen.update(options, images=list(images))
        return conformance()

    monkeypatch.setattr(suite, "check_conformance", check)
    monkeypatch.setattr(suite, "check_kit", lambda **_: kit())
    monkeypatch.setattr(suite, "check_robustness", lambda _: robustness())
    photo = tmp_path / "photo.png"
    Image.fromarray(small).save(photo)
    run_suite((), SuiteOptions(matrix=True, runs=0))
    assert seen["bundle"] == kit_model()
    assert seen["images"] == list(open_pictures())
    assert seen["precisions"] == PRECISIONS
    run_suite([photo], SuiteOptions(matrix=True, bundle="default", runs=0))
    assert (seen["bundle"], seen["images"]) == ("default", ["photo.png"])
    assert seen["twin"] is True
    run_suite([photo], SuiteOptions(precisions=("int8",), extremes=True, twin=False, runs=0))
    assert (seen["precisions"], seen["twin"]) == (("int8",), False)
    assert seen["images"] == ["photo.png", "black", "white", "noise", "saturated"]
    run_suite([photo], SuiteOptions(runs=0))
    assert (seen["precisions"], seen["bundle"]) == (("fp32",), None)


def test_unknown_precision_ends_before_any_work() -> None:
    with pytest.raises(ConfigError, match="precision int4: fp32, fp16, bf16, int8 exist"):
        run_suite((), SuiteOptions(precisions=("int4",)))
