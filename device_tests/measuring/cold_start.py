"""The cold start: from the start of a process to its first picture, in processes of their own.

Each child runs one codec, once for encoding or once for decoding, and says when it got where:

    interpreter   the operating system starts Python
    import        the package and NumPy
    read          Pillow, and the input file: a picture, or a compressed one
    load          bundle and runtime; with `auto`, measuring what to use unless that is remembered
    first         the first call
    again         the best of a few more calls, for comparison; not part of the start

Files of the operating system's cache are warm: what a disk adds is not measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import edgecodec
from edgecodec.errors import BackendError
from edgecodec.runtimes.child_process import run_python

PHASES = ("interpreter", "import", "read", "load", "first")
TIMEOUT_S = 300.0
AGAIN = 3
_PROGRAM = (
    "import sys, time; entered = time.monotonic(); "
    "from edgecodec.device_tests.measuring.cold_start import child; child(entered, sys.argv[1])"
)


@dataclass(frozen=True)
class ColdStartJob:
    """What a child does.

    Attributes:
        codec: name in tables.
        action: `encode` or `decode`.
        input: path of a picture, or of a file of that codec.
        quality: for encoding.
        backend: of our codec; empty for a classical codec of that name.
        precision: of our codec.
        bundle: path of the bundle; None takes the shipped one.
        threads: None leaves it to the runtime.
        cores: to run on; None leaves it to the system.
        size: height and width of the picture, which `auto` chooses by; None is that of a small one.
    """

    codec: str
    action: str
    input: str
    quality: int
    backend: str = ""
    precision: str = "auto"
    bundle: str | None = None
    threads: int | None = None
    cores: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None


@dataclass
class ColdStart:
    """What the children of one job measured.

    Attributes:
        codec: name in tables.
        action: `encode` or `decode`.
        phases_s: seconds by phase, one sample per child.
        total_s: seconds from the start of the process to the first result, per child.
        again_s: best later call of each child.
        peak_bytes: highest resident memory of each child; 0 where unknown.
    """

    codec: str
    action: str
    phases_s: dict[str, list[float]] = field(default_factory=dict)
    total_s: list[float] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


def measure_cold_starts(
    jobs: Sequence[ColdStartJob], children: int, progress: Callable[[str], None] = lambda line: None
) -> list[ColdStart]:
    """Run each job in processes of their own, jobs taking turns.

    Raises:
        BackendError: a child failed; says why.
    """
    results = [ColdStart(job.codec, job.action) for job in jobs]
    for number in range(children):
        progress(f"cold start {number + 1} of {children}")
        for job, result in zip(jobs, results, strict=True):
            _add(result, run_child(job))
    return results


def _add(result: ColdStart, told: dict[str, Any]) -> None:
    for phase in PHASES:
        result.phases_s.setdefault(phase, []).append(told["phases"][phase])
    result.total_s.append(sum(told["phases"].values()))
    result.again_s.append(told["again"])
    result.peak_bytes.append(told["peak_bytes"])


def run_child(job: ColdStartJob, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Run one job in a process of its own; return what it printed, the interpreter added.

    Raises:
        BackendError: it failed or took too long.
    """
    spawned = time.monotonic()
    try:
        done = run_python("-c", _PROGRAM, json.dumps(asdict(job)), timeout_s=timeout_s)
    except subprocess.TimeoutExpired as exc:
        raise BackendError(job.codec, f"a cold start took over {timeout_s:g} s") from exc
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(job.codec, f"a cold start failed: {last}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    # time.monotonic counts for the whole system, so the child's moments are the parent's.
    told["phases"] = {"interpreter": told.pop("entered") - spawned, **told["phases"]}
    return told


def child(entered: float, text: str) -> None:
    """Do what a job says and print when what was done.

    Args:
        entered: time.monotonic() at the first line of the process.
        text: the job as JSON.
    """
    from edgecodec.device_tests.measuring.process import peak_bytes

    job = ColdStartJob(**json.loads(text))
    if job.cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job.cores)
    with ExitStack() as stack:
        imported = time.monotonic()
        source = _read(job)
        read = time.monotonic()
        call = _loaded(job, stack)
        loaded = time.monotonic()
        call(source)
        first = time.monotonic()
        phases = {
            "import": imported - entered,
            "read": read - imported,
            "load": loaded - read,
            "first": first - loaded,
        }
        again = min(_seconds(call, source) for _ in range(AGAIN))
    told = {"entered": entered, "phases": phases, "again": again, "peak_bytes": peak_bytes()}
    sys.stdout.write(json.dumps(told) + "\n")


def _read(job: ColdStartJob) -> Any:
    from edgecodec.coding.image_files import load_rgb

    return Path(job.input).read_bytes() if job.action == "decode" else load_rgb(Path(job.input))


def _loaded(job: ColdStartJob, stack: ExitStack) -> Callable[[Any], object]:
    """Make ready for the first call and return it."""
    if not job.backend:
        from edgecodec.evaluation.classical import classical_codec

        classical = classical_codec(job.codec)
        if job.action == "decode":
            return classical.decode
        return lambda pixels: classical.encode(pixels, job.quality)
    codec = stack.enter_context(
        edgecodec.Codec(job.bundle, job.backend, job.precision, job.threads)
    )
    if job.action == "decode":
        codec.choice("synthesis", job.size)
        return codec.decode
    codec.choice("analysis", job.size)
    return lambda pixels: codec.encode(pixels, job.quality)


def _seconds(call: Callable[[Any], object], source: Any) -> float:
    begin = time.monotonic()
    call(source)
    return time.monotonic() - begin
