"""What a refused int8 artefact loses by, and what is advised."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecodec.converters.checks.diagnosis import Diagnosis, GroupCost, advise, diagnose
from edgecodec.converters.checks.gate import Gate, make_files
from edgecodec.converters.int8.quantize import int8_drafts
from edgecodec.converters.sources.source import read_source
from edgecodec.converters.writers.targets import TARGETS
from edgecodec.model.network import NeuralCodec
from edgecodec.runtimes.base import StageName
from tests.support.painting import painting_codec, picture, save_painting_codec, spoil

PHOTOS = [np.asarray(picture(i)) for i in range(4)]


def diagnosed(
    stage: StageName, target: str, folder: Path, change: Callable[[NeuralCodec], None]
) -> Diagnosis:
    codec = painting_codec()
    change(codec)
    source = read_source(save_painting_codec(folder / "codec.pt", codec))
    gate = Gate(source.tables, PHOTOS[1::2], source.analyse, source.synthesise)
    files = [f for photo in PHOTOS[::2] for f in make_files(gate.coder, photo, source.analyse)]
    drafts = int8_drafts(source.graphs, PHOTOS[::2], [y_hat for _, y_hat in files], told.append)
    return diagnose(stage, TARGETS[target], drafts[stage], gate, 9.0, 4, told.append)


told: list[str] = []


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite"])
def test_a_bad_block_of_the_synthesis_is_named_first(target: str, tmp_path: Path) -> None:
    found = diagnosed("synthesis", target, tmp_path, lambda codec: spoil(codec.g_s[4]))
    worst, second = found.costs[:2]
    assert worst.group == "g_s.4.enter .. g_s.4.leave"
    assert worst.layers == ("g_s.4.enter", "g_s.4.depthwise", "g_s.4.leave")
    assert worst.loss > 10 * abs(second.loss)
    assert worst.quality_loss > 0.1
    # What is wrong with the whole is wrong with this block.
    assert found.loss == pytest.approx(worst.loss, rel=0.2)
    assert (found.target, found.stage, found.photos) == (target, "synthesis", 2)
    assert [cost.group for cost in found.costs if cost.group == "trunk"] == ["trunk"]
    assert "g_s.4.enter .. g_s.4.leave" in found.lines()[1]
    assert found.summary().startswith("g_s.4.enter .. g_s.4.leave (+")
    assert "g_s.4.enter .. g_s.4.leave above all" in found.advice[1]
    assert f"{target} int8 synthesis: measuring what each of 5 groups costs" in told


def test_a_bad_block_of_the_analysis_is_named_first(tmp_path: Path) -> None:
    found = diagnosed("analysis", "onnx", tmp_path, lambda codec: spoil(codec.g_a[1]))
    assert found.costs[0].group == "g_a.1.enter .. g_a.1.leave"
    assert found.costs[0].loss > 10 * abs(found.costs[1].loss)
    assert "trunk" not in {cost.group for cost in found.costs}  # it stays as it is
    assert {cost.group for cost in found.costs} >= {"h_a.0 .. h_a.2"}


def test_two_bad_blocks_come_first_and_each_has_its_own_cost(tmp_path: Path) -> None:
    def both(codec: NeuralCodec) -> None:
        spoil(codec.g_s[4])
        spoil(codec.g_s[1], 80.0)

    found = diagnosed("synthesis", "onnx", tmp_path, both)
    names = {cost.group for cost in found.costs[:2]}
    assert names == {"g_s.4.enter .. g_s.4.leave", "g_s.1.enter .. g_s.1.leave"}
    assert all(cost.loss > 1 for cost in found.costs[:2])
    assert all(cost.loss < 1 for cost in found.costs[2:])


def cost(group: str, loss: float) -> GroupCost:
    return GroupCost(group, (f"{group}.layer",), loss, 0.1)


def advice(**changes: Any) -> str:
    given: dict[str, Any] = {
        "target": TARGETS["tflite"],
        "stage": "synthesis",
        "costs": [cost("a", 6.0), cost("b", 1.0)],
        "whole": 7.0,
        "refused": 7.5,
        "photos": 32,
    }
    return "; ".join(advise(**{**given, **changes}))


def test_advice_follows_from_what_was_found() -> None:
    assert advice().startswith("tuning with `edgecodec train --qat CHECKPOINT`, a above all")
    assert advice(photos=3).startswith("20 to 40 typical photos (--calibration), not 3; tuning")
    assert "the trunk, which all layers share" in advice(costs=[cost("trunk", 5.0), cost("b", 4.0)])
    assert "spread over 3 groups" in advice(costs=[cost(name, 2.0) for name in "abc"])
    assert "another version of tflite: on these photos rounding costs +2.00 %" in advice(whole=2.0)
    for found in (advice(), advice(whole=2.0)):
        assert found.endswith("fp16 instead of int8 for the synthesis")


def test_a_destroyed_picture_can_be_told_and_written() -> None:
    costs = (cost("a", math.inf), cost("b", 0.5))
    found = Diagnosis("onnx", "synthesis", 2, math.inf, costs, advise(
        TARGETS["onnx"], "synthesis", costs, math.inf, math.inf, 32
    ))  # fmt: skip
    assert "a above all" in found.advice[0]
    assert "destroyed  a" in found.lines()[1]
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["loss"] is None
    assert [c["loss"] for c in values["costs"]] == [None, 0.5]
    many = replace(found, costs=tuple(cost(f"g{i}", 1.0) for i in range(9)))
    assert "and 4 that cost less" in many.lines()[6]
