"""What a conversion tells, on the terminal and in JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from edgecodec.converters.checks.diagnosis import Diagnosis, GroupCost
from edgecodec.converters.checks.operators import OpReport
from edgecodec.converters.checks.report import (
    ADVICE,
    LACKING,
    NO_CURVE,
    WRONG,
    ConversionReport,
    ConversionRow,
)

GOOD = OpReport({"Conv": 3}, {"QLinearConv": 2, "Conv": 1}, ("in",), (), 2, 2, {"last": "why"})
SLOW = OpReport({"Conv": 3}, {"Conv": 3, "Transpose": 4}, tuple("abcd"), tuple("abcd"), 2, 0, {})


def row(**changes: Any) -> ConversionRow:
    given: dict[str, Any] = {
        "target": "onnx", "precision": "int8", "stage": "synthesis", "status": "ok",
        "bytes": 1_500_000, "exact": True, "max_abs_err": 1.5, "moved": 0.125,
        "max_level_err": 2.0, "seconds": 1.0, "bd_loss": 1.25, "ms": 12.34, "speed_up": 2.5,
        "ops": GOOD,
    }  # fmt: skip
    return ConversionRow(**{**given, **changes})


def report(*rows: ConversionRow, **changes: Any) -> ConversionReport:
    given: dict[str, Any] = {
        "bundle": Path("b"), "name": "n", "model_id": "m", "tables_id": "t",
        "calibration": {"photos": 3, "judged": 2}, "stored_bytes": 1, "plain_bytes": 2,
        "rows": rows, "seconds": 3.0, "max_loss": 4.0, "metric": "psnr",
    }  # fmt: skip
    return ConversionReport(**{**given, **changes})


def diagnosis() -> Diagnosis:
    costs = (GroupCost("a .. b", ("a", "b"), 6.0, 0.3), GroupCost("c", ("c",), math.inf, 0.1))
    return Diagnosis("onnx", "synthesis", 2, 6.5, costs, ("more photos", "fp16"))


def test_a_row_has_its_figures_under_their_heads() -> None:
    head, line = report(row()).table().splitlines()[:2]
    for name, cell in (("size", "1.50 MB"), ("moved", "12.500 %"), ("BD loss", "+1.25 %")):
        assert head.index(name) + len(name) == line.index(cell) + len(cell)
    for name, cell in (("ms", "12.3"), ("speed-up", "2.50x"), ("float", "1 of 3"), ("layout", "1")):
        assert head.index(name) + len(name) == line.rindex(cell) + len(cell)
    assert line.endswith("ok")


def test_what_is_not_known_is_a_dash() -> None:
    empty = row(moved=None, bd_loss=None, ms=None, speed_up=None, ops=None)
    assert report(empty).table().splitlines()[1].split()[5:11] == ["-"] * 6


def test_operators_that_cost_time_are_told() -> None:
    assert "SLOW" not in report(row()).table()
    lines = report(row(ops=SLOW)).table().splitlines()
    assert "SLOW: onnx int8 synthesis: 4 avoidable layout changes: a, b, c, ..." in lines
    assert any("computes only 0 of 2 int8 convolutions as integers" in line for line in lines)


@pytest.mark.parametrize(
    ("rows", "diagnoses", "expected"),
    [
        ([row()], (), ""),
        ([row(status="refused")], (), f"not written: onnx int8 synthesis; {ADVICE}"),
        (
            [row(status="refused", bd_loss=None)],
            (),
            f"not written: onnx int8 synthesis; {NO_CURVE}",
        ),
        (
            [row(), row(status="refused", bd_loss=None, precision="bf16", lacking=True)],
            (),
            f"not written: onnx bf16 synthesis; {LACKING}",
        ),
        (
            [
                row(status="refused", bd_loss=None, wrong=True),
                row(status="refused", bd_loss=None, precision="bf16", lacking=True),
                row(status="refused", bd_loss=None, target="tflite", wrong=True),
            ],
            (),
            f"not written: onnx int8 synthesis, tflite int8 synthesis; {WRONG}; "
            f"nor onnx bf16 synthesis; {LACKING}",
        ),
        (
            [
                row(status="refused", bd_loss=None, precision="bf16", lacking=True),
                row(status="refused", precision="fp16"),
                row(status="refused"),
            ],
            (diagnosis(),),
            f"not written: onnx bf16 synthesis; {LACKING}; nor onnx fp16 synthesis; {ADVICE}; "
            "nor onnx int8 synthesis; most of it by a .. b (+6.00 %): try more photos",
        ),
        (
            [row(), row(status="refused", stage="analysis"), row(status="refused")],
            (diagnosis(),),
            "not written: onnx int8 analysis, onnx int8 synthesis; "
            "most of it by a .. b (+6.00 %): try more photos",
        ),
    ],
)
def test_a_refusal_is_one_line_with_what_to_try(
    rows: list[ConversionRow], diagnoses: tuple[Diagnosis, ...], expected: str
) -> None:
    assert report(*rows, diagnoses=diagnoses).refusal() == expected


def test_everything_is_written_as_json() -> None:
    refused = row(status="refused", bd_loss=math.inf)
    found = report(row(), refused, diagnoses=(diagnosis(),), max_loss=math.inf).to_dict()
    values = json.loads(json.dumps(found, allow_nan=False))
    assert values["max_loss"] is None
    assert [r["bd_loss"] for r in values["rows"]] == [1.25, None]
    assert values["rows"][0]["ops"]["left_int8"] == {"last": "why"}
    assert values["rows"][0]["ops"]["executed"] == {"QLinearConv": 2, "Conv": 1}
    assert [c["group"] for c in values["diagnoses"][0]["costs"]] == ["a .. b", "c"]
    assert values["diagnoses"][0]["costs"][1]["loss"] is None
