"""`edgecodec bench`: its reports in every form."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.commands import Call

BENCH = ("--backends", "onnxruntime", "--runs", "3", "--seconds", "0", "--cold-starts", "0")


def test_bench_measures_and_writes_its_reports(folder: Path, call: Call) -> None:
    args = ("bench", "photo.png", *BENCH, "--against", "jpeg", "--threads", "1")
    assert call(*args, "--json", "a.json", "--html", "a.html", "--trace", "a.trace") == 0
    assert "outside the networks" in call.out
    report = json.loads((folder / "a.json").read_text())
    stages = {(s["codec"], s["stage"]) for s in report["summaries"]}
    assert {("onnxruntime", "decode/synthesis"), ("jpeg", "encode")} <= stages
    assert {len(m["starts_s"]) for m in report["measurements"]} == {3}
    assert (folder / "a.html").read_text().startswith("<!doctype html>")
    names = {event["name"] for event in json.loads((folder / "a.trace").read_text())["traceEvents"]}
    assert {"encode", "analysis", "decode"} <= names
    assert call("bench", "--compare", "a.json", "a.json") == 0
    assert call.out.splitlines()[-1].startswith("0 faster, 0 slower")
    assert call("bench", "--compare", "a.json", "a.json", "--json", "-") == 0
    rows = json.loads(call.out)["rows"]
    assert {row["verdict"] for row in rows} == {"no difference"}
    assert call(*args, "--trace", "-") == 0
    assert json.loads(call.out)["traceEvents"]
