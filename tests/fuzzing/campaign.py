"""A fuzzing campaign: mutate, run, keep what ends where nothing ended before, count, go on later.

What guides it is where an input ends: the line of edgecodec that refuses it, or what came out.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

Case = TypeVar("Case")
Outcome = tuple[object, ...]

KEPT = 12
"""Inputs kept per outcome."""
REPLAYS = 8
"""Rounds of the same inputs at the end, in which memory must not grow."""
SLOW_S = 5.0
"""Seconds of processor time: an execution that takes more is a finding. The slowest sane one takes
some ten milliseconds. What the clock on the wall says would blame an input for a machine that was
stopped or busy; one that hangs without computing ends no campaign, and so is seen, too."""


@dataclass(frozen=True)
class Target(Generic[Case]):
    """What is fuzzed.

    Attributes:
        name: of the campaign.
        seeds: inputs that work.
        mutate: makes another input of one.
        run: gives an outcome; raises `refusals` or it found something.
        refusals: errors that are right.
        save: writes an input, for a report.
    """

    name: str
    seeds: Sequence[Case]
    mutate: Callable[[random.Random, Case], Case]
    run: Callable[[Case], Outcome]
    refusals: tuple[type[Exception], ...]
    save: Callable[[Path, Case], None]


def end_of(exc: BaseException) -> Outcome:
    """Return the kind of an error and the innermost line of edgecodec that it passed."""
    place: Outcome = ()
    step: TracebackType | None = exc.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if "edgecodec" in code.co_filename:
            place = (code.co_filename.rpartition("/")[2], step.tb_lineno)
        step = step.tb_next
    return (type(exc).__name__, *place)


@dataclass
class Campaign(Generic[Case]):
    """A run of a target, with what it has learned."""

    target: Target[Case]
    seed: int
    executions: int = 0
    corpus: dict[Outcome, list[Case]] = field(default_factory=dict)
    refused: int = 0
    slowest_s: float = 0.0

    def __post_init__(self) -> None:
        self.source = random.Random(self.seed)

    def run(self, executions: int, until: float = float("inf")) -> None:
        """Execute so many inputs, the seeds first, or stop at that time of `time.monotonic`.

        Raises:
            Finding: an input did what none may do.
        """
        end = self.executions + executions
        while self.executions < end and time.monotonic() < until:
            number = self.executions
            if number < len(self.target.seeds):
                case = self.target.seeds[number]
            else:
                kind = self.source.choice(list(self.corpus))
                case = self.source.choice(self.corpus[kind])
                for _ in range(self.source.choice([1, 1, 2, 4])):
                    case = self.target.mutate(self.source, case)
            self._execute(case)

    def replay(self, rounds: int) -> int:
        """Run the same inputs again and again; return by how many bytes memory grew.

        The first round settles it, and is not counted.

        Raises:
            Finding: an input did what none may do.
        """
        cases = [kept[0] for kept in self.corpus.values()][:300]
        begin = resident_bytes()
        for number in range(rounds):
            for case in cases:
                self._execute(case)
            if number == 0:
                begin = resident_bytes()
        return resident_bytes() - begin

    def _execute(self, case: Case) -> None:
        begin = time.process_time()
        try:
            outcome = self.target.run(case)
        except self.target.refusals as exc:
            outcome = end_of(exc)
            self.refused += 1
            if "\n" in str(exc) or not str(exc):
                raise Finding(case, f"message of {len(str(exc).splitlines())} lines") from exc
        except Exception as exc:
            raise Finding(case, traceback.format_exc()) from exc
        spent = time.process_time() - begin
        self.executions += 1
        self.slowest_s = max(self.slowest_s, spent)
        if spent > SLOW_S:
            raise Finding(case, f"took {spent:.1f} s")
        kept = self.corpus.setdefault(outcome, [])
        if len(kept) < KEPT:
            kept.append(case)
        elif self.source.random() < 0.02:
            kept[self.source.randrange(KEPT)] = case


class Finding(Exception):
    """An input that does what none may do."""

    def __init__(self, case: Any, what: str) -> None:
        super().__init__(what)
        self.case = case


def resident_bytes() -> int:
    """Return the resident memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def stretch(target: Target[Any], seed: int, executions: int, state: Path) -> dict[str, Any]:
    """Run one campaign and report on it; a finding is saved and ends the process."""
    campaign, begin = Campaign(target, seed), time.perf_counter()
    try:
        campaign.run(executions)
        counted = campaign.executions
        grown = campaign.replay(REPLAYS)
    except Finding as exc:
        path = state / f"finding-{target.name}-{seed}"
        target.save(path, exc.case)
        raise SystemExit(f"{exc}\nsaved as {path}") from exc
    return {
        "target": target.name,
        "seed": seed,
        "executions": counted,
        "refused": campaign.refused,
        "outcomes": len(campaign.corpus),
        "seconds": round(time.perf_counter() - begin, 1),
        "slowest_ms": round(1e3 * campaign.slowest_s, 1),
        "replays_grew_kb": grown >> 10,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,  # Linux: in kB
    }


def main(targets: Callable[[], list[Target[Any]]]) -> None:
    """Run from the command line: so many executions of each target, going on from the log."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--executions", type=int, default=20_000, help="of each target")
    parser.add_argument("--stretch", type=int, default=50_000, help="executions per campaign")
    parser.add_argument("--state", type=Path, required=True, help="folder to keep and go on from")
    args = parser.parse_args()
    warnings.simplefilter("error")
    args.state.mkdir(parents=True, exist_ok=True)
    log = args.state / "log.jsonl"
    for target in targets():
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        own = [line for line in lines if line["target"] == target.name]
        done = sum(line["executions"] for line in own)
        seed = len(own)
        while done < args.executions:
            found = stretch(target, seed, min(args.stretch, args.executions - done), args.state)
            done, seed = done + found["executions"], seed + 1
            with log.open("a") as out:
                out.write(json.dumps(found) + "\n")
            sys.stdout.write(f"{done} executions, {json.dumps(found)}\n")
            sys.stdout.flush()
