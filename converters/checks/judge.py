"""Loss and speed of the artefacts written: the gate run on each pair, the clock on each stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from edgecodec.bundle.manifest import ArtefactEntry
from edgecodec.converters.checks.gate import Gate, GateVerdict
from edgecodec.converters.checks.report import ConversionRow
from edgecodec.converters.checks.run_artefact import analyser, running, synthesiser
from edgecodec.converters.writers.targets import TARGETS
from edgecodec.format.strides import LATENT_STRIDE
from edgecodec.runtimes.base import Artefact, Session, StageName
from edgecodec.runtimes.selection.timing import repeated, time_side_by_side

SIZE = (512, 768)
"""Height and width of the picture that is timed."""
THREADS = 2
SINGLE_PHOTO = 2.5
"""How many times the allowed loss a single photo may lose."""
_BUDGET_S = 3.0
_NOT_JUDGED = (
    "not judged: the checkpoint's own quality does not rise with its rate on any photo, as if it "
    "were not trained"
)

Done = tuple[ArtefactEntry, ConversionRow]
Pair = tuple[str, str]
"""Target and precision."""


def judge_pairs(
    folder: Path,
    gate: Gate,
    done: Sequence[Done],
    max_loss: float,
    progress: Callable[[str], None],
) -> list[Done]:
    """Return entries and rows with what was measured; rows that lose too much are refused.

    Artefacts whose runtime is not installed stay as they are.

    Args:
        folder: the bundle, its artefacts written.
        gate: the reference's files.
        done: artefacts.
        max_loss: BD-rate in percent; the reference itself is never refused.
        progress: told one line per pair.
    """
    checked = {(e.target, e.precision) for e, r in done if r.status == "ok"}
    entries = [e for e, _ in done if (e.target, e.precision) in checked]
    verdicts: dict[Pair, GateVerdict] = {}
    for pair in dict.fromkeys((e.target, e.precision) for e in entries if e.target != "torch"):
        if gate.photos:
            progress(f"{pair[0]} {pair[1]}: making files")
            verdicts[pair] = _verdict(folder, gate, entries, pair)
    speeds = _speeds(folder, gate, entries)
    timed = [(entry, _timed(entry, row, speeds)) for entry, row in done]
    if not gate.photos:
        return [(e, row if row.status != "ok" else _unjudged(row, max_loss)) for e, row in timed]
    stages = {
        pair: {e.stage for e in entries if (e.target, e.precision) == pair} for pair in verdicts
    }
    return [
        (
            replace(entry, loss=verdict.to_dict(stages[entry.target, entry.precision])),
            _judged(row, verdict, max_loss),
        )
        if (verdict := verdicts.get((entry.target, entry.precision)))
        else (entry, row)
        for entry, row in timed
    ]


def _timed(entry: ArtefactEntry, row: ConversionRow, speeds: Mapping[str, float]) -> ConversionRow:
    row = replace(row, ms=speeds.get(entry.path))
    plain = f"{entry.target}/{entry.stage}.fp32.{entry.path.rpartition('.')[2]}"
    if entry.path in speeds and plain in speeds and entry.precision != "fp32":
        row = replace(row, speed_up=speeds[plain] / speeds[entry.path])
    return row


def _judged(row: ConversionRow, verdict: GateVerdict, max_loss: float) -> ConversionRow:
    loss, worst = verdict.analysis_loss, verdict.analysis_worst
    if row.stage == "synthesis":
        loss, worst = verdict.synthesis_loss, verdict.synthesis_worst
    if row.refused:
        return row
    row = replace(row, bd_loss=loss, worst_image=worst)
    if not loss <= max_loss:
        reason = f"loses {loss:.2f} % against the reference, allowed {max_loss:g} %"
    elif not worst <= SINGLE_PHOTO * max_loss:
        allowed = SINGLE_PHOTO * max_loss
        reason = f"loses {worst:.2f} % on one of the photos, allowed {allowed:g} %"
    else:
        return row
    return replace(row, status="refused", reason=reason)


def _unjudged(row: ConversionRow, max_loss: float) -> ConversionRow:
    """Refuse what may lose anything; fp32 was compared with torch, number by number."""
    if row.precision == "fp32" or max_loss == float("inf"):
        return replace(row, reason=_NOT_JUDGED)
    return replace(row, status="refused", reason=_NOT_JUDGED)


def _verdict(folder: Path, gate: Gate, entries: Sequence[ArtefactEntry], pair: Pair) -> GateVerdict:
    with contextlib.ExitStack() as stack:
        opened = {
            entry.stage: stack.enter_context(_session(folder, entry))
            for entry in entries
            if (entry.target, entry.precision) == pair
        }
        analysis, synthesis = opened.get("analysis"), opened.get("synthesis")
        return gate.judge(
            None if analysis is None else analyser(analysis),
            None if synthesis is None else synthesiser(synthesis),
        )


def _session(
    folder: Path, entry: ArtefactEntry, threads: int | None = None
) -> contextlib.AbstractContextManager[Session]:
    stage: StageName = "analysis" if entry.stage == "analysis" else "synthesis"
    artefact = Artefact(stage, entry.target, entry.precision, folder / entry.path)
    return running(artefact, TARGETS[entry.target].backend, threads)


def _speeds(folder: Path, gate: Gate, entries: Sequence[ArtefactEntry]) -> dict[str, float]:
    """Return milliseconds per call by path, the precisions of a stage side by side."""
    found: dict[str, float] = {}
    x, y_hat = (array[None].astype(np.float32) for array in gate.sample)
    height, width = SIZE
    work = {
        "analysis": {"x": repeated(x, height, width)},
        "synthesis": {"y_hat": repeated(y_hat, height // LATENT_STRIDE, width // LATENT_STRIDE)},
    }
    for target, stage in dict.fromkeys((e.target, e.stage) for e in entries):
        group = [e for e in entries if (e.target, e.stage) == (target, stage)]
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(_session(folder, e, THREADS)) for e in group]
            runs = [partial(session.run, work[stage]) for session in sessions]
            for entry, timing in zip(group, time_side_by_side(runs, _BUDGET_S), strict=True):
                if timing.median_s is not None:
                    found[entry.path] = 1e3 * timing.median_s
    return found
