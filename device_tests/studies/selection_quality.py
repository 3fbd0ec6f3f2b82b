"""How good the automatic choice is: against every fixed one, in several starts that know nothing.

    python -m edgecodec.device_tests.studies.selection_quality --threads 2

Each start has a process and an empty cache of its own. It lets `auto` choose for a picture, then
runs what was chosen and every backend in every precision in turns, and compares `auto` with the
fastest of them by the median over the turns of the ratio of their times. A second process with the
same cache tells how long a start takes that finds its choices there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.device_tests.measuring.contenders import BackendRequest, expand_requests, open_codecs
from edgecodec.runtimes.base import STAGES
from edgecodec.runtimes.selection.golden import Golden
from edgecodec.runtimes.selection.selector import DEFAULT_SIZE, choose

WORST_RATIO = 1.05
WARM_LIMIT_S = 0.02
TURNS = 15
WARM_UP = 3
HOPELESS = 2.0
"""What is this many times slower than the fastest in warm-up is not the best fixed choice."""


@dataclass(frozen=True)
class StageQuality:
    """What one start chose for a stage.

    Attributes:
        auto: what was chosen.
        best: the fastest fixed choice.
        ratio: time of `auto` over that of the best.
    """

    auto: str
    best: str
    ratio: float


def compare_in_turns(
    runs: Mapping[str, Callable[[], object]],
    auto: str,
    turns: int = TURNS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[str, float]:
    """Return the fastest beside `auto` by its median, and how many times its time `auto` takes.

    Args:
        runs: what to time, by name; at least `auto` and another.
        auto: name of what is compared with the others.
        turns: rounds, in each of which everybody runs once, a different one first.
        clock: source of seconds.
    """

    def timed(run: Callable[[], object]) -> float:
        begun = clock()
        run()
        return clock() - begun

    first = {name: min(timed(run) for _ in range(WARM_UP)) for name, run in runs.items()}
    limit = HOPELESS * min(first.values())
    racing = [name for name in runs if name == auto or first[name] <= limit]
    if racing == [auto]:
        racing.append(min((name for name in runs if name != auto), key=first.__getitem__))
    samples: dict[str, list[float]] = {name: [] for name in racing}
    for turn in range(turns):
        start = turn % len(racing)
        for name in [*racing[start:], *racing[:start]]:
            samples[name].append(timed(runs[name]))
    others = [name for name in racing if name != auto]
    best = min(others, key=lambda name: statistics.median(samples[name]))
    pairs = zip(samples[auto], samples[best], strict=True)
    return best, statistics.median(a / b for a, b in pairs)


def measure_start(bundle: Bundle, threads: int | None, size: tuple[int, int]) -> dict[str, Any]:
    """Choose, and compare with every fixed choice; JSON-compatible."""
    begun = time.perf_counter()
    choose(bundle, threads=threads, size=size)
    found: dict[str, Any] = {"selection_s": time.perf_counter() - begun}
    golden = Golden.of(bundle)
    with ExitStack() as sessions:
        requests = [r for r in expand_requests(("all",), bundle) if r.backend != "torch"]
        codecs, _ = open_codecs(requests, bundle, threads, sessions)
        auto = BackendRequest("auto")
        for stage in STAGES:
            work = golden.workload(stage, size)
            runs = {str(r): _run(codec, stage, work, size) for r, codec in codecs.items()}
            best, ratio = compare_in_turns(runs, str(auto))
            found[stage] = {
                "auto": codecs[auto].choice(stage).what,
                "best": best,
                "ratio": ratio,
            }
    return found


def _run(codec: Codec, stage: Any, work: Any, size: tuple[int, int]) -> Callable[[], object]:
    return lambda: codec.run_stage(stage, work, size)


def verdict(starts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with some starts, empty where nothing is."""
    wrong = []
    for number, start in enumerate(starts, 1):
        for stage in STAGES:
            found = StageQuality(**start[stage])
            if found.ratio > WORST_RATIO:
                wrong.append(
                    f"start {number}: {stage} on {found.auto} takes {found.ratio:.3f} times as "
                    f"long as on {found.best}"
                )
        if start["warm_s"] >= WARM_LIMIT_S:
            wrong.append(f"start {number}: a second start chose in {1e3 * start['warm_s']:.1f} ms")
    return wrong


def text(starts: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for a terminal."""
    lines = []
    for number, start in enumerate(starts, 1):
        lines.append(
            f"start {number}: chose in {start['selection_s']:.2f} s, "
            f"the second time in {1e3 * start['warm_s']:.1f} ms"
        )
        for stage in STAGES:
            found = StageQuality(**start[stage])
            lines.append(f"  {stage}: {found.auto}; {found.ratio:.3f} times {found.best}")
    wrong = verdict(starts)
    limits = f"within {100 * (WORST_RATIO - 1):.0f} % of the best and {1e3 * WARM_LIMIT_S:.0f} ms"
    return "\n".join([*lines, *wrong, f"{'not ' if wrong else ''}always {limits}"])


_WARM = """
import sys, time
from edgecodec.bundle.reading import Bundle
from edgecodec.runtimes.selection.selector import choose
threads, height, width, path = sys.argv[1:]
with Bundle(path or None) as bundle:
    begun = time.perf_counter()
    choose(bundle, threads=int(threads) or None, size=(int(height), int(width)))
    print(time.perf_counter() - begun)
"""


def measure(bundle: str | None, threads: int | None, starts: int) -> list[dict[str, Any]]:
    """Measure some starts, each in a process of its own with an empty cache."""
    found = []
    for _ in range(starts):
        with tempfile.TemporaryDirectory(prefix="edgecodec-selection-") as folder:
            more = {"EDGECODEC_CACHE": folder}
            options = ["--bundle", bundle] if bundle else []
            options += ["--threads", str(threads)] if threads else []
            start = json.loads(
                _python(
                    more,
                    "-m",
                    "edgecodec.device_tests.studies.selection_quality",
                    "--one",
                    *options,
                )
            )
            size = map(str, DEFAULT_SIZE)
            start["warm_s"] = float(
                _python(more, "-c", _WARM, str(threads or 0), *size, bundle or "")
            )
            found.append(start)
    return found


def _python(more: Mapping[str, str], *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code is 1 where a start was not good enough."""
    parser = argparse.ArgumentParser(description="How good the automatic choice is.")
    parser.add_argument("--bundle")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print all that was measured instead")
    args = parser.parse_args(argv)
    if args.one:
        with Bundle(args.bundle) as bundle:
            print(json.dumps(measure_start(bundle, args.threads, DEFAULT_SIZE)))
        return 0
    starts = measure(args.bundle, args.threads, args.starts)
    print(json.dumps(starts, indent=1) if args.json else text(starts))
    return 1 if verdict(starts) else 0


if __name__ == "__main__":
    sys.exit(main())
