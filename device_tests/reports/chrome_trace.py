"""Stages of one picture in the trace event format, which Perfetto and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgecodec.coding.profiling import Span

PROCESS = 1


def chrome_trace(spans: Sequence[Span], title: str, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return a trace as JSON-compatible values.

    Args:
        spans: of one process; those of a thread nest or follow each other.
        title: name of the process in the viewer.
        facts: what else the trace should say, such as the device.

    Returns:
        complete events (`ph` X) with `ts` and `dur` in microseconds from the first one, and the
        metadata events that name process and threads.
    """
    begin = min((span.start_s for span in spans), default=0.0)
    threads = {ident: n for n, ident in enumerate(dict.fromkeys(s.thread for s in spans), 1)}
    events: list[dict[str, Any]] = [_name("process_name", title, 0)]
    events += [_name("thread_name", f"thread {n}", n) for n in threads.values()]
    for span in sorted(spans, key=lambda s: (s.start_s, -s.end_s)):
        event: dict[str, Any] = {
            "name": span.name,
            "cat": "stage",
            "ph": "X",
            "ts": round(1e6 * (span.start_s - begin), 3),
            "dur": round(1e6 * (span.end_s - span.start_s), 3),
            "pid": PROCESS,
            "tid": threads[span.thread],
        }
        if span.tile is not None:
            event["args"] = {"tile": span.tile}
        events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(facts)}


def _name(kind: str, name: str, thread: int) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": PROCESS, "tid": thread, "args": {"name": name}}
