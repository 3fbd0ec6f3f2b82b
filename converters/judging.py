"""Loss and speed of the artefacts written: the gate run on each pair, the clock on each stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from edgecodec.converters.gate import Gate, UInt8Array, Verdict
from edgecodec.converters.report import ConversionRow
from edgecodec.converters.targets import TARGETS
from edgecodec.manifest import ArtefactEntry
from edgecodec.runtimes.base import Artefact, Float32Array, Session, SessionOptions, StageName
from edgecodec.runtimes.checked_session import LATENT_STRIDE
from edgecodec.runtimes.measure import repeated, time_side_by_side
from edgecodec.runtimes.registry import get_backend

SIZE = (512, 768)
"""Height and width of the picture that is timed."""
THREADS = 2
_BUDGET_S = 3.0

Done = tuple[ArtefactEntry, ConversionRow]


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
        done: artefacts, the two stages of a target and precision next to each other.
        max_loss: BD-rate in percent; the reference itself is never refused.
        progress: told one line per pair.
    """
    checked = {(e.target, e.precision) for e, r in done if r.status == "ok"}
    verdicts: dict[tuple[str, str], Verdict] = {}
    for pair in dict.fromkeys((e.target, e.precision) for e, _ in done):
        if pair in checked and pair[0] != "torch":
            progress(f"{pair[0]} {pair[1]}: making files")
            verdicts[pair] = _verdict(folder, gate, [e for e, _ in done], pair)
    speeds = _speeds(folder, gate, [e for e, _ in done if (e.target, e.precision) in checked])
    return [_judged(item, verdicts, speeds, max_loss) for item in done]


def _judged(
    item: Done,
    verdicts: dict[tuple[str, str], Verdict],
    speeds: dict[str, float],
    max_loss: float,
) -> Done:
    entry, row = item
    row = replace(row, ms=speeds.get(entry.path))
    plain = f"{entry.target}/{entry.stage}.fp32.{entry.path.rpartition('.')[2]}"
    if entry.path in speeds and plain in speeds and entry.precision != "fp32":
        row = replace(row, speed_up=speeds[plain] / speeds[entry.path])
    verdict = verdicts.get((entry.target, entry.precision))
    if verdict is None:
        return entry, row
    loss = verdict.synthesis_loss if entry.stage == "synthesis" else verdict.analysis_loss
    row = replace(row, bd_loss=loss, worst_image=verdict.worst_image)
    if not loss <= max_loss:
        reason = f"loses {loss:.2f} % against the reference, allowed {max_loss:g} %"
        row = replace(row, status="refused", reason=reason)
    return replace(entry, loss=verdict.to_dict()), row


def _verdict(
    folder: Path, gate: Gate, entries: Sequence[ArtefactEntry], pair: tuple[str, str]
) -> Verdict:
    chosen = {e.stage: e for e in entries if (e.target, e.precision) == pair}
    with (
        _session(folder, chosen["analysis"], None) as analysis,
        _session(folder, chosen["synthesis"], None) as synthesis,
    ):

        def analyse(photo: UInt8Array) -> tuple[Float32Array, Float32Array]:
            found = analysis.run({"x": photo[None].astype(np.float32)})
            return found["y"][0], found["z"][0]

        def synthesise(y_hat: np.ndarray) -> Float32Array:
            found = synthesis.run({"y_hat": y_hat[None].astype(np.float32)})
            x_hat: Float32Array = found["x_hat"][0]
            return x_hat

        return gate.judge(analyse, synthesise)


@contextlib.contextmanager
def _session(folder: Path, entry: ArtefactEntry, threads: int | None) -> Iterator[Session]:
    stage: StageName = "analysis" if entry.stage == "analysis" else "synthesis"
    artefact = Artefact(stage, entry.target, entry.precision, folder / entry.path)
    session = get_backend(TARGETS[entry.target].backend).load(artefact, SessionOptions(threads))
    try:
        yield session
    finally:
        session.close()


def _speeds(folder: Path, gate: Gate, entries: Sequence[ArtefactEntry]) -> dict[str, float]:
    """Return milliseconds per call by path, the precisions of a stage side by side."""
    found: dict[str, float] = {}
    photo, file = gate.photos[0], gate.points[0][len(gate.qualities) // 2]
    height, width = SIZE
    x, y_hat = (array[None].astype(np.float32) for array in (photo, file.y_hat))
    work = {
        "analysis": {"x": repeated(x, height, width)},
        "synthesis": {"y_hat": repeated(y_hat, height // LATENT_STRIDE, width // LATENT_STRIDE)},
    }
    for target, stage in dict.fromkeys((e.target, e.stage) for e in entries):
        group = [e for e in entries if (e.target, e.stage) == (target, stage)]
        with contextlib.ExitStack() as stack:
            runs = [
                partial(stack.enter_context(_session(folder, e, THREADS)).run, work[stage])
                for e in group
            ]
            for entry, timing in zip(group, time_side_by_side(runs, _BUDGET_S), strict=True):
                if timing.median_s is not None:
                    found[entry.path] = 1e3 * timing.median_s
    return found
