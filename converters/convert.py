"""Checkpoint -> bundle: each graph in each form asked for, checked, with tables and golden vector.

Heavy packages are imported when a conversion starts, so that a missing one is reported by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecodec.bundle.manifest import MANIFEST, ArtefactEntry, Manifest, Precision
from edgecodec.bundle.reading import GOLDEN, TABLES, Bundle, short_id
from edgecodec.bundle.writing import hash_files, size_of, writing_bundle
from edgecodec.converters.checks.executed import executed_operations
from edgecodec.converters.checks.operators import report_operators
from edgecodec.converters.checks.report import ConversionReport, ConversionRow
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.square_outputs import with_square_output
from edgecodec.converters.sources.photos import Calibration, load_calibration
from edgecodec.converters.writers.share_weights import share_weights
from edgecodec.converters.writers.targets import (
    FLOAT,
    TARGETS,
    Planned,
    Target,
    lacks,
    plan,
    require,
)
from edgecodec.errors import GoldenVectorError, ParityError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.strides import HYPER_STRIDE
from edgecodec.runtimes.base import STAGES, Artefact, StageName
from edgecodec.runtimes.selection.golden import Golden

if TYPE_CHECKING:
    from edgecodec.converters.checks.diagnosis import Diagnosis
    from edgecodec.converters.checks.gate import Gate
    from edgecodec.converters.int8.draft import Draft
    from edgecodec.converters.sources.source import Source

DEFAULT_MAX_LOSS = 4.0
"""BD-rate in percent that an artefact may cost."""

Progress = Callable[[str], None]
Graphs = dict[tuple[StageName, Precision], Graph]


@dataclass(frozen=True, eq=False)
class _Job:
    """What every step of a conversion needs."""

    source: Source
    photos: Calibration
    folder: Path
    graphs: Graphs
    progress: Progress
    drafts: dict[StageName, Draft] = field(default_factory=dict)

    def path(self, target: Target, precision: Precision, stage: StageName) -> Path:
        """Return where the file of an artefact goes that a runtime loads."""
        return self.folder / target.name / f"{stage}.{precision}.{target.suffix}"


def convert_checkpoint(
    checkpoint: Path | str,
    out: Path,
    *,
    targets: Sequence[str],
    precisions: Sequence[str],
    calibration: Path | None,
    name: str,
    progress: Callable[[str], None],
    force: bool = False,
    max_loss: float = DEFAULT_MAX_LOSS,
    metric: str = "psnr",
) -> ConversionReport:
    """Write a bundle; it appears whole or not at all.

    Artefacts that cost more than `max_loss` are left out of it, and int8 and bf16 ones that a
    runtime computes otherwise than it must, or not here; the report says which.

    Args:
        checkpoint: file that `edgecodec train` wrote, or `file.py:function` of a codec of one's
            own (docs/own-codec.md).
        out: folder, or a .zip file; refused, before anything is read, where it cannot be written.
        targets: among `onnx`, `openvino`, `tflite`, `torch`; torch in fp32 is always written.
        precisions: among `fp32`, `fp16`, `bf16` (of openvino alone) and `int8`; `int8:analysis`
            is for that stage alone.
        calibration: photos to measure ranges and losses on; None takes the demo photo.
        name: what people call the model.
        progress: told one line per step.
        force: replace a bundle that is there already.
        max_loss: BD-rate in percent that an artefact may cost against the reference.
        metric: what losses are measured by, of `edgecodec.evaluation.metrics.METRICS`.

    Raises:
        ConversionError: the checkpoint or the photos cannot be read, a network cannot be
            converted, or no target has a precision; ParityError when one of fp32 or fp16 differs
            from torch by more than it may, GoldenVectorError when every device would refuse it.
        MissingDependencyError: a package that a target needs is not installed.
        UnknownPluginError: no such target.
        ConfigError, BundleError, BackendError: nothing asked for; `out` cannot be written or
            exists and may not be replaced; a runtime refuses an artefact.
    """
    started = time.perf_counter()
    require(TARGETS["torch"].requires)
    work = plan(targets, precisions)
    with writing_bundle(out, force=force) as folder:
        from edgecodec.converters.sources.source import read_source

        progress(f"reading {checkpoint}")
        source = read_source(checkpoint)
        photos = load_calibration(calibration, progress)
        (folder / TABLES).write_bytes(source.tables)
        job = _Job(source, photos, folder, _float_graphs(source), progress)
        gate = _reference_files(job, metric)
        if stages := {s for part in work if part.precision == "int8" for s in part.stages}:
            _add_int8(job, stages)
        progress("making the golden vector")
        golden = _write_golden(job)
        done = _write_artefacts(job, work, golden)
        done = _judge(job, gate, done, max_loss)
        diagnoses = _diagnose(job, gate, [row for _, row in done])
        entries = [entry for entry, row in done if not row.refused]
        plain, hashes = size_of(folder), hash_files(folder)
        share_weights(folder, job.graphs, entries)
        hashes |= hash_files(folder)
        calibration_used = {**photos.describe(), "judged": len(gate.photos)}
        halo = _analysis_halo(job)
        manifest = _manifest(source, calibration_used, name, entries, hashes, halo)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        _read_back(folder)
        stored = size_of(folder)
        progress(f"weights stored once: {stored / 1e6:.2f} MB instead of {plain / 1e6:.2f} MB")
    return ConversionReport(
        out,
        name,
        manifest.model_id,
        manifest.tables_id,
        manifest.calibration,
        stored,
        plain,
        tuple(row for _, row in done),
        time.perf_counter() - started,
        max_loss,
        metric,
        diagnoses,
    )


def _float_graphs(source: Source) -> Graphs:
    return {(stage, p): graph for stage, graph in source.graphs.items() for p in FLOAT}


def _reference_files(job: _Job, metric: str) -> Gate:
    """Return the files that the reference makes of the held-out photos."""
    from edgecodec.converters.checks.gate import Gate

    held_out = job.photos.held_out
    job.progress(f"running the reference on {_count(len(held_out), 'photo')}")
    source = job.source
    return Gate(source.tables, held_out, source.analyse, source.synthesise, metric=metric)


def _add_int8(job: _Job, stages: Container[StageName]) -> None:
    """Quantize stages by what the photos set aside for that need."""
    from edgecodec.converters.checks.gate import make_files
    from edgecodec.converters.int8.quantize import int8_drafts

    ranges, coder = job.photos.for_ranges, LatentCoder(job.source.tables)
    files = [file for photo in ranges for file in make_files(coder, photo, job.source.analyse)]
    latents = [y_hat for _, y_hat in files]
    graphs = {stage: graph for stage, graph in job.source.graphs.items() if stage in stages}
    job.drafts.update(int8_drafts(graphs, ranges, latents, job.progress))
    for stage, draft in job.drafts.items():
        job.graphs[stage, "int8"] = draft.finish()


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _write_golden(job: _Job) -> Golden:
    from edgecodec.converters.checks.golden import add_exact, make_golden, save_golden

    photo = job.photos.photos[0] if job.photos.demo is None else job.photos.demo
    modules = [job.source.modules[stage] for stage in STAGES]
    golden = make_golden(modules, job.source.tables, photo)
    if ("synthesis", "int8") in job.graphs:
        golden = add_exact(golden, job.graphs["synthesis", "int8"])
    save_golden(job.folder / GOLDEN, golden)
    return Golden(golden, str(job.folder / GOLDEN))


def _write_artefacts(
    job: _Job, work: Sequence[Planned], golden: Golden
) -> list[tuple[ArtefactEntry, ConversionRow]]:
    from edgecodec.converters.checks.parity import Reference

    reference = Reference(job.source.modules, job.photos.photos, job.graphs, golden)
    done = []
    for part in work:
        lacking = lacks(part.target, part.precision)
        for stage in part.stages:
            if lacking:
                entry, row = _not_written(job, part.target, part.precision, stage, lacking)
            else:
                entry, row = _write_one(job, part.target, part.precision, stage, reference.check)
            job.progress(row.line())
            done.append((entry, row))
    return done


def _not_written(
    job: _Job, target: Target, precision: Precision, stage: StageName, reason: str
) -> tuple[ArtefactEntry, ConversionRow]:
    """Return entry and row of what is not worth writing: nothing here could judge it."""
    path = job.path(target, precision, stage).relative_to(job.folder).as_posix()
    parity = {"checked": False, "reason": reason}
    entry = ArtefactEntry(stage, target.name, precision, path, 0, parity=parity)
    return entry, replace(ConversionRow.of(entry, None, 0.0), status="refused", lacking=True)


def _write_one(
    job: _Job,
    target: Target,
    precision: Precision,
    stage: StageName,
    check: Callable[[Artefact, str, Progress], dict[str, object]],
) -> tuple[ArtefactEntry, ConversionRow]:
    started = time.perf_counter()
    path = job.path(target, precision, stage)
    path.parent.mkdir(exist_ok=True)
    graph = job.graphs[stage, precision]
    if target.squares:
        graph = with_square_output(graph)
    operators = target.load_writer()(graph, path, precision)
    artefact = Artefact(stage, target.name, precision, path)
    failure = ""
    try:
        parity = check(artefact, target.backend, job.progress)
    except (ParityError, GoldenVectorError) as exc:
        if precision not in ("int8", "bf16"):
            raise
        failure = str(exc)
        parity = {"checked": False, "reason": failure}
    executed = executed_operations(artefact) if parity["checked"] else None
    ops = report_operators(graph, operators, executed)
    size = sum(p.stat().st_size for p in path.parent.glob(f"{path.stem}.*"))
    entry = ArtefactEntry(
        stage,
        target.name,
        precision,
        path.relative_to(job.folder).as_posix(),
        size,
        exact=precision == "int8" and stage == "synthesis",
        parity=parity,
        operators=operators,
        requires=f"{target.backend}>={target.minimum}" if target.minimum else target.backend,
    )
    row = ConversionRow.of(entry, ops, time.perf_counter() - started)
    return entry, replace(row, status="refused", wrong=True) if failure else row


def _judge(
    job: _Job,
    gate: Gate,
    done: Sequence[tuple[ArtefactEntry, ConversionRow]],
    max_loss: float,
) -> list[tuple[ArtefactEntry, ConversionRow]]:
    """Measure loss and speed of what could be run, and delete what loses too much."""
    from edgecodec.converters.checks.judge import judge_pairs

    judged = judge_pairs(job.folder, gate, done, max_loss, job.progress)
    for entry, row in judged:
        if row.refused:
            path = job.folder / entry.path
            for file in path.parent.glob(f"{path.stem}.*"):
                file.unlink()
    return judged


def _diagnose(job: _Job, gate: Gate, rows: Sequence[ConversionRow]) -> tuple[Diagnosis, ...]:
    """Look at the first int8 artefact of each stage that was refused for what it loses."""
    from edgecodec.converters.checks.diagnosis import diagnose

    found = []
    for stage in STAGES:
        refused = [r for r in rows if r.refused and (r.stage, r.precision) == (stage, "int8")]
        if refused and refused[0].bd_loss is not None:
            target, loss = TARGETS[refused[0].target], refused[0].bd_loss
            photos = len(job.photos.photos)
            found.append(
                diagnose(stage, target, job.drafts[stage], gate, loss, photos, job.progress)
            )
    return tuple(found)


def _analysis_halo(job: _Job) -> int:
    from edgecodec.converters.checks.halo import effective_halo

    source, photos = job.source, job.photos.photos
    tables, field = source.parsed_tables, source.analysis_field
    return effective_halo(source.analyse, photos, tables, field, job.progress)


def _manifest(
    source: Source,
    calibration: dict[str, Any],
    name: str,
    entries: Sequence[ArtefactEntry],
    hashes: Mapping[str, str],
    analysis_halo: int,
) -> Manifest:
    from edgecodec.format.strides import LATENT_STRIDE

    return Manifest(
        name=name,
        model_id=source.model_id,
        tables_id=short_id(source.tables),
        latent_channels=source.parsed_tables.latent_channels,
        hyper_channels=source.parsed_tables.hyper_channels,
        latent_stride=LATENT_STRIDE,
        hyper_stride=HYPER_STRIDE,
        analysis_halo=analysis_halo,
        synthesis_halo=source.synthesis_halo,
        artefacts=tuple(entries),
        calibration=calibration,
        files=dict(hashes),
    )


def _read_back(folder: Path) -> None:
    """Read every file as a device does; the hashes are those of what was checked."""
    with Bundle(folder) as bundle:
        for entry in bundle.manifest.artefacts:
            bundle.artefact_file(entry)
