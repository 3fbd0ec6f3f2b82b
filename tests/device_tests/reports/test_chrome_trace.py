"""The trace is what the trace event format asks for: complete events that nest."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.codec import Codec
from edgecodec.coding.profiling import DECODE_STAGES, ENCODE_STAGES, Span
from edgecodec.device_tests.measuring.contenders import BackendRequest, our_contender
from edgecodec.device_tests.reports.chrome_trace import chrome_trace


def check_format(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Assert what viewers rely on; return the complete events."""
    trace = json.loads(json.dumps(trace, allow_nan=False))
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    for event in events:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
        else:
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert event["cat"]
    complete = [event for event in events if event["ph"] == "X"]
    named = {e["tid"] for e in events if e["name"] == "thread_name"}
    assert {e["tid"] for e in complete} <= named
    for thread in {e["tid"] for e in complete}:
        check_nesting([e for e in complete if e["tid"] == thread])
    return complete


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Assert that each event lies within the one that is open, or after it."""
    slack = 0.002  # microseconds: timestamps are rounded to thousandths
    open_until: list[float] = []
    for event in events:  # in the order of the file
        while open_until and event["ts"] >= open_until[-1] - slack:
            open_until.pop()
        end = event["ts"] + event["dur"]
        assert not open_until or end <= open_until[-1] + slack, event
        open_until.append(end)


def test_trace_of_a_picture(codec: Codec, small: npt.NDArray[np.uint8]) -> None:
    contender = our_contender(BackendRequest("onnxruntime"), codec, 50)
    contender.once(small)  # loads the networks, which is no stage
    coded = contender.once(small)
    trace = chrome_trace(coded.spans, "a picture", {"cpu": "some"})
    events = check_format(trace)
    assert trace["otherData"] == {"cpu": "some"}
    names = [event["name"] for event in events]
    assert names[0] == "encode"
    assert {"encode", "decode", *ENCODE_STAGES, *DECODE_STAGES} - {"optimisation"} == set(names)
    by_name = {event["name"]: event for event in events}
    assert by_name["analysis"]["args"] == {"tile": 0}
    for action in ("encode", "decode"):
        begin, end = by_name[action]["ts"], by_name[action]["ts"] + by_name[action]["dur"]
        inside = [e for e in events if begin <= e["ts"] < end and e["name"] != action]
        assert sum(e["dur"] for e in inside) <= by_name[action]["dur"]
        assert sum(e["dur"] for e in inside) > 0.5 * by_name[action]["dur"]


def test_threads_have_lanes_of_their_own() -> None:
    spans = [
        Span("entropy", 10.5, 12.5, 77, 0),
        Span("analysis", 10.0, 11.0, 5, 0),
        Span("analysis", 11.0, 13.0, 5, 1),
        Span("encode", 9.0, 14.0, 5),
    ]
    events = check_format(chrome_trace(spans, "x", {}))
    lanes = {(e["name"], e["tid"]) for e in events}
    assert len({tid for _, tid in lanes}) == 2
    assert events[0] == {
        "name": "encode", "cat": "stage", "ph": "X", "ts": 0.0, "dur": 5e6, "pid": 1,
        "tid": events[0]["tid"],
    }  # fmt: skip


def test_events_that_cross_are_found_by_the_check() -> None:
    spans = [Span("a", 0.0, 2.0, 1), Span("b", 1.0, 3.0, 1)]
    with pytest.raises(AssertionError):
        check_format(chrome_trace(spans, "x", {}))
    assert check_format(chrome_trace([], "nothing", {})) == []
