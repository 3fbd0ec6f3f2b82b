"""Comparing reports: one build is no difference, a real change is named, the rest is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecodec.arrays import Float64Array
from edgecodec.device_tests.reports.compare import (
    FASTER,
    INCOMPARABLE,
    MARGIN,
    SAME,
    SLOWER,
    Comparison,
    compare,
    load_report,
    ratio_of,
)
from edgecodec.errors import ConfigError
from tests.support.bench_fakes import report_of, series

COUNT = 100
FIXED = np.full(COUNT, 0.01)


def busy(seed: int, typical_s: float = 0.04, load: float = 1.0) -> Float64Array:
    """Times on a machine whose load drifts, with preemptions."""
    rng = np.random.default_rng(seed)
    drift = np.exp(0.1 * np.sin(np.linspace(0, 9, COUNT) + rng.uniform(0, 6)))
    spikes = 1 + rng.exponential(0.6, COUNT) * (rng.random(COUNT) < 0.2)
    return np.asarray(typical_s * load * drift * spikes * rng.normal(1, 0.02, COUNT))


def report(ours: Float64Array, fixed: Float64Array = FIXED, **stages: Float64Array) -> Any:
    values = report_of(series(ours, **stages), series(ours / 7), fixed).to_dict()
    return json.loads(json.dumps(values))


def verdicts(comparison: Comparison) -> dict[tuple[str, str], str]:
    return {(row.codec, row.stage): row.verdict for row in comparison.rows}


def test_samples_of_one_distribution_are_no_difference() -> None:
    for seed in range(10):
        found = compare(report(busy(seed)), report(busy(1000 + seed)))
        assert set(verdicts(found).values()) == {SAME}, seed


def test_shift_by_a_fifth_is_named() -> None:
    a = report(busy(1), encode_analysis=busy(2), encode_hyper=busy(3, 0.002))
    b = report(busy(4), encode_analysis=1.2 * busy(5), encode_hyper=busy(6, 0.002) / 1.25)
    found = verdicts(compare(a, b))
    assert found.pop(("auto", "encode/analysis")) == SLOWER
    assert found.pop(("auto", "encode/hyper")) == FASTER
    assert set(found.values()) == {SAME}
    back = verdicts(compare(b, a))
    assert back["auto", "encode/analysis"] == FASTER
    assert back["auto", "encode/hyper"] == SLOWER


def test_ratio_and_its_interval() -> None:
    found = compare(report(busy(1)), report(1.2 * busy(2)))
    row = next(r for r in found.rows if (r.codec, r.stage) == ("auto", "encode"))
    assert row.ratio is not None
    assert row.ratio.low < row.ratio.value < row.ratio.high
    assert row.ratio.value == pytest.approx(1.2, rel=0.15)
    assert row.b_s is not None
    assert row.a_s is not None
    assert row.ratio.value == pytest.approx(row.b_s / row.a_s)


def test_machine_that_slowed_down_is_not_blamed_on_the_build() -> None:
    slowed = busy(2, load=1.4)
    blamed = compare(report(busy(1)), report(slowed))
    assert SLOWER in verdicts(blamed).values()
    known = compare(report(busy(1), busy(3, 0.01)), report(slowed, busy(4, 0.01, load=1.4)))
    assert set(verdicts(known).values()) == {SAME}
    assert known.yardsticks["serial"].value == pytest.approx(1.4, rel=0.15)
    assert known.band[1] > 1.3
    assert known.band[0] == pytest.approx(1 - MARGIN)


def test_differences_too_small_to_matter_are_none() -> None:
    tiny = np.full(COUNT, 20e-6)
    a = report(busy(1), encode_read=tiny, encode_write=100 * tiny)
    b = report(busy(1), encode_read=1.5 * tiny, encode_write=104 * tiny)
    assert set(verdicts(compare(a, b)).values()) == {SAME}


def test_pictures_count_alike() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(1, 0.01, (2, COUNT)) * [[0.001], [1.0]]
    times = np.arange(COUNT, dtype=float)
    a = {"s": list(zip(times, small, strict=True)), "l": list(zip(times + 0.5, large, strict=True))}
    b = {name: [(t, 1.3 * s) for t, s in timed] for name, timed in a.items()}
    assert ratio_of(a, b).value == pytest.approx(1.3, rel=1e-3)
    b["s"] = a["s"]
    assert ratio_of(a, b).value == pytest.approx(1.15, abs=0.06)


@pytest.mark.parametrize(
    ("reason", "path", "value"),
    [
        ("other device", ("identity", "cpu"), "another"),
        ("other images", ("images", 0, "sha256"), "cd"),
        ("other bundle", ("conditions", "bundle", "files"), "4"),
        ("other threads or cores", ("conditions", "threads"), 1),
        ("other threads or cores", ("conditions", "cores"), [0, 2]),
        ("other quality", ("contenders", 0, "settings", "quality"), 61),
    ],
)
def test_what_does_not_compare_says_why(reason: str, path: tuple[Any, ...], value: Any) -> None:
    a, b = report(busy(1)), report(busy(2))
    place = b
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found = compare(a, b)
    for row in found.rows:
        ours_only = reason in ("other bundle", "other quality")
        if row.codec == "jpeg" and ours_only:
            assert row.verdict == SAME
        else:
            assert (row.verdict, row.reason, row.ratio) == (INCOMPARABLE, reason, None)
    assert reason in found.text()


def test_stage_or_codec_of_one_report_only() -> None:
    a = json.loads(json.dumps(report_of(series(busy(1), encode_hyper=busy(2))).to_dict()))
    b = report(busy(3))
    found = {(r.codec, r.stage): r for r in compare(a, b).rows}
    assert found["auto", "encode/hyper"].verdict == INCOMPARABLE
    assert found["auto", "encode/hyper"].b_s is None
    assert found["jpeg", "encode"].reason == "in one report only"
    assert found["jpeg", "encode"].a_s is None
    assert found["auto", "encode"].verdict == SAME


def test_differences_are_listed() -> None:
    a, b = report(busy(1)), report(busy(1))
    b["device"]["packages"]["numpy"] = "9.9"
    del b["device"]["packages"]["pillow"]
    b["device"]["governor"] = "powersave"
    b["contenders"][0]["settings"]["analysis"]["precision"] = "int8"
    b["yardsticks"][0]["settings"] = "other work"
    text = compare(a, b).text()
    for line in ("-> 9.9", "pillow:", "-> absent", "-> powersave", "no common fixed work",
                 "auto: tflite fp32 / tflite fp32 -> tflite int8 / tflite fp32"):  # fmt: skip
        assert line in text
    assert not compare(a, a).differences


def test_fixed_work_that_does_not_compare_is_named() -> None:
    a, b = report(busy(1)), report(busy(1))
    (serial,) = a["yardsticks"]
    a["yardsticks"] = [
        {**serial, "settings": "deflate 5 bytes, Python 3.11"},
        {**serial, "name": "parallel", "settings": "deflate 5 bytes, Python 3.11, 2 threads"},
        {**serial, "name": "third", "settings": "all the same"},
    ]
    b["yardsticks"] = [
        {**serial, "settings": "deflate 5 bytes, Python 3.12"},
        {**serial, "name": "parallel", "settings": "deflate 5 bytes, Python 3.12"},
        {**serial, "name": "third", "settings": "all the same"},
        {**serial, "name": "fourth"},
    ]
    (line,) = compare(a, b).differences
    assert line == (
        "fixed work left out, measured otherwise: serial (Python 3.11 -> Python 3.12), "
        "parallel (Python 3.11, 2 threads -> Python 3.12), fourth (in one report only)"
    )
    assert f"   {line}\n" in compare(a, b).text()
    assert list(compare(a, b).yardsticks) == ["third"]


def test_comparison_is_json_and_text() -> None:
    found = compare(report(busy(1)), report(busy(2)), ("one.json", "two.json"))
    values = json.loads(json.dumps(found.to_dict()))
    assert values["names"] == ["one.json", "two.json"]
    assert values["rules"]["level"] == 0.99
    assert {row["verdict"] for row in values["rows"]} == {SAME}
    assert found.text().splitlines()[-1] == "0 faster, 0 slower, 4 no difference"


def test_load_report_takes_a_bench_or_what_holds_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = report(busy(1))
    for whole in (values, {"passed": True, "bench": values}):
        path.write_text(json.dumps(whole))
        assert load_report(str(path))["images"] == values["images"]
    for text, message in (
        ("{", "can be read"),
        ("[]", "not a report of"),
        ('{"kind": "x"}', "not a report of"),
        (json.dumps({**values, "format": 99}), "another version"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_report(str(path))
    with pytest.raises(ConfigError, match="absent"):
        load_report(str(tmp_path / "absent.json"))


def _cut(values: Any, *path: Any) -> Any:
    place = values
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return values


def _put(values: Any, *path: Any) -> Any:
    *keys, last, value = path
    place = values
    for key in keys:
        place = place[key]
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: _cut(v, "measurements"), "has no 'measurements'"),
        (lambda v: _cut(v, "yardsticks"), "has no 'yardsticks'"),
        (lambda v: _cut(v, "identity"), "has no 'identity'"),
        (lambda v: _cut(v, "conditions", "cores"), "has no 'cores'"),
        (lambda v: _cut(v, "contenders", 0, "settings", "quality"), "has no 'quality'"),
        (lambda v: _put(v, "device", None), "of another kind"),
        (lambda v: _put(v, "images", []), "auto on p.png: of nothing that is listed"),
        (lambda v: _put(v, "contenders", 0, "settings", "analysis", 7), "of another kind"),
        (lambda v: _put(v, "summaries", ["encode"]), "of another kind"),
        (lambda v: _cut(v, "measurements", 0, "starts_s", 0), "encode: 100 samples of 99 runs"),
        (lambda v: _put(v, "measurements", 0, "stages_s", "encode", []), "encode: no samples"),
        (lambda v: _put(v, "measurements", 0, "stages_s", "decode", 3, "1"), "'1' is no number"),
        (lambda v: _put(v, "measurements", 0, "stages_s", "decode", 3, math.nan), "nan is no"),
        (lambda v: _put(v, "measurements", 0, "starts_s", 3, math.inf), "inf is no number"),
        (lambda v: _put(v, "yardsticks", 0, "seconds", []), "serial (fixed): no samples"),
        (lambda v: _put(v, "yardsticks", 0, "seconds", 0, -1.0), "-1.0 is no number of seconds"),
    ],
)
def test_damaged_report_is_refused_in_a_line(
    damage: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(damage(report(busy(1)))))
    with pytest.raises(ConfigError, match="a damaged report") as caught:
        load_report(str(path))
    assert message in str(caught.value)


def test_report_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="not a report that can be read"):
        load_report(str(tmp_path / "a.json"))


def test_stage_that_takes_nothing_still_has_a_ratio() -> None:
    nothing, something = np.zeros(COUNT), np.full(COUNT, 0.001)
    a = report(busy(1), encode_other=nothing, encode_hyper=nothing)
    b = report(busy(2), encode_other=nothing, encode_hyper=something)
    found = compare(a, b)
    rows = {row.stage: row for row in found.rows if row.codec == "auto"}
    assert rows["encode/other"].ratio is not None
    assert rows["encode/other"].ratio.value == 1.0
    assert verdicts(found)["auto", "encode/hyper"] == SLOWER
    assert verdicts(compare(b, a))["auto", "encode/hyper"] == FASTER
    json.dumps(found.to_dict(), allow_nan=False)


def test_other_thread_count_that_was_chosen_is_listed() -> None:
    a, b = report(busy(1)), report(busy(1))
    b["contenders"][0]["settings"]["synthesis"]["threads"] = 1
    assert compare(a, b).differences == (
        "auto: tflite fp32 / tflite fp32 -> tflite fp32 / tflite fp32, 1 thread",
    )


def test_fewer_cores_to_run_on_do_not_compare_unless_both_are_pinned() -> None:
    a, b = report(busy(1)), report(busy(2))
    b["device"]["usable_cores"] = a["device"]["usable_cores"] + 1
    assert set(verdicts(compare(a, b)).values()) == {SAME}  # on cores 0 and 1, both
    for values in (a, b):
        values["conditions"]["cores"] = None
    found = compare(a, b)
    assert {row.reason for row in found.rows} == {"other threads or cores"}
    last = found.text().splitlines()[-1]
    assert last == "0 faster, 0 slower, 0 no difference, 4 not comparable"
