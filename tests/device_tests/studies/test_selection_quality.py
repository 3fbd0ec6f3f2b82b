"""The automatic choice is compared with the best fixed one, turn by turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecodec.device_tests.studies.selection_quality import compare_in_turns, main, text, verdict
from tests.support.bench_fakes import Clock
from tests.support.tiny_codec import write_tiny_codec


def stage(ratio: float) -> dict[str, Any]:
    return {"auto": "tflite int8, 2 threads", "best": "openvino:int8", "ratio": ratio}


def start(analysis: float = 1.0, synthesis: float = 1.0, warm_s: float = 0.01) -> dict[str, Any]:
    both = {"analysis": stage(analysis), "synthesis": stage(synthesis)}
    return {**both, "selection_s": 3.0, "warm_s": warm_s}


def taking(clock: Clock, log: list[str], name: str, *seconds: float) -> Callable[[], None]:
    left = list(seconds)

    def run() -> None:
        log.append(name)
        clock.now += left.pop(0) if len(left) > 1 else left[0]

    return run


def test_best_is_the_fastest_beside_auto_and_hopeless_ones_run_no_more() -> None:
    clock = Clock()
    log: list[str] = []
    times = {"auto": 1.1, "a": 1.3, "b": 1.0, "c": 9.0}
    runs = {name: taking(clock, log, name, s) for name, s in times.items()}
    best, ratio = compare_in_turns(runs, "auto", turns=6, clock=clock)
    assert best == "b"
    assert ratio == pytest.approx(1.1)
    assert log.count("c") == 3
    assert log.count("a") == log.count("auto") == 3 + 6


def test_a_machine_that_slows_down_slows_both() -> None:
    clock = Clock()
    log: list[str] = []
    slower = [1.0] * 3 + [1.0, 2.0, 3.0, 4.0]
    runs = {
        "auto": taking(clock, log, "auto", *[1.02 * s for s in slower]),
        "a": taking(clock, log, "a", *slower),
    }
    assert compare_in_turns(runs, "auto", 4, clock)[1] == pytest.approx(1.02)


def test_auto_is_compared_with_somebody_even_where_all_others_are_hopeless() -> None:
    clock = Clock()
    log: list[str] = []
    runs = {n: taking(clock, log, n, s) for n, s in (("auto", 1.0), ("a", 5.0), ("b", 4.0))}
    best, ratio = compare_in_turns(runs, "auto", 3, clock)
    assert best == "b"
    assert ratio == pytest.approx(0.25)


def test_verdict_names_what_is_too_slow() -> None:
    assert verdict([start(), start(1.049, 1.05)]) == []
    wrong = verdict([start(), start(synthesis=1.06), start(warm_s=0.021)])
    assert wrong == [
        "start 2: synthesis on tflite int8, 2 threads takes 1.060 times as long as on "
        "openvino:int8",
        "start 3: a second start chose in 21.0 ms",
    ]
    assert text([start()]).endswith("always within 5 % of the best and 20 ms")
    assert "not always" in text([start(analysis=2.0)])


def test_it_measures_starts_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_codec(tmp_path, ("onnx", "tflite"))
    main(["--bundle", str(bundle), "--threads", "1", "--starts", "1", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["selection_s"] > 0 < found["warm_s"]
    for name in ("analysis", "synthesis"):
        assert found[name]["best"] in ("onnxruntime:fp32", "tflite:fp32")
        assert found[name]["ratio"] > 0
