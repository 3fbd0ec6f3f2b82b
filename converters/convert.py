"""Checkpoint -> bundle: each graph in each form asked for, checked, with tables and golden vector.

Heavy packages are imported when a conversion starts, so that a missing one is reported by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecodec.bundle import GOLDEN, MANIFEST, TABLES, Bundle, short_id
from edgecodec.bundle_writing import hash_files, size_of, writing_bundle
from edgecodec.converters.calibration import (
    Calibration,
    demo_photo,
    load_calibration,
    read_photo,
)
from edgecodec.converters.graph import Graph
from edgecodec.converters.precision import Precision
from edgecodec.converters.report import ConversionReport, ConversionRow, make_row
from edgecodec.converters.share_weights import share_weights
from edgecodec.converters.targets import TARGETS, Target, plan, require
from edgecodec.errors import ConversionError
from edgecodec.manifest import ArtefactEntry, Manifest
from edgecodec.runtimes.base import STAGES, Artefact, StageName

if TYPE_CHECKING:
    from torch import nn

    from edgecodec.converters.parity import Sample
    from edgecodec.model.network import NeuralCodec

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class _Source:
    """A checkpoint, read: networks, their graphs and the integer tables."""

    codec: NeuralCodec
    modules: dict[StageName, nn.Module]
    graphs: dict[StageName, Graph]
    tables: bytes

    @property
    def model_id(self) -> str:
        return short_id(b"".join(self.graphs[stage].weights_digest() for stage in STAGES))


def convert_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    targets: Sequence[str],
    precisions: Sequence[str],
    calibration: Path | None,
    name: str,
    progress: Callable[[str], None],
    force: bool = False,
) -> ConversionReport:
    """Write a bundle; it appears whole or not at all.

    Args:
        checkpoint: file that `edgecodec train` wrote.
        out: folder, or a .zip file; refused, before anything is read, where it cannot be written.
        targets: among `onnx`, `openvino`, `tflite`, `torch`; torch in fp32 is always written.
        precisions: among `fp32` and `fp16`.
        calibration: photos to check parity on; None takes the demo photo.
        name: what people call the model.
        progress: told one line per step.
        force: replace a bundle that is there already.

    Raises:
        ConversionError: the checkpoint or the photos cannot be read, or a network cannot be
            converted; ParityError when an artefact differs from torch by more than it may.
        MissingDependencyError: a package that a target needs is not installed.
        UnknownPluginError: no such target.
        ConfigError, BundleError, BackendError: nothing asked for; `out` cannot be written or
            exists and may not be replaced; a runtime refuses an artefact.
    """
    started = time.perf_counter()
    require(TARGETS["torch"].requires)
    work = plan(targets, precisions)
    with writing_bundle(out, force=force) as folder:
        progress(f"reading {checkpoint}")
        source = _read(checkpoint)
        photos = load_calibration(calibration)
        (folder / TABLES).write_bytes(source.tables)
        progress("making the golden vector")
        _write_golden(source, photos, folder)
        done = list(_write_artefacts(source, photos, work, folder, progress))
        entries = [entry for entry, _ in done]
        plain, hashes = size_of(folder), hash_files(folder)
        share_weights(folder, source.graphs, entries)
        hashes |= hash_files(folder)
        manifest = _manifest(source, photos, name, entries, hashes)
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
    )


def _read(checkpoint: Path) -> _Source:
    from edgecodec.converters.torch_to_graph import graph_from_module
    from edgecodec.model.checkpoint import load_codec
    from edgecodec.model.stages import build_stages
    from edgecodec.model.tables import export_tables

    try:
        codec = load_codec(checkpoint)
        analysis, synthesis = build_stages(codec)
        tables = export_tables(codec)
    except ValueError as exc:
        raise ConversionError(" ".join(str(exc).split())) from exc
    channels = codec.cfg.latent_channels
    graphs: dict[StageName, Graph] = {
        "analysis": graph_from_module(
            analysis, stage="analysis", inputs={"x": 3}, outputs=("y", "z")
        ),
        "synthesis": graph_from_module(
            synthesis, stage="synthesis", inputs={"y_hat": channels}, outputs=("x_hat",)
        ),
    }
    for graph in graphs.values():
        _check_finite(graph)
    return _Source(codec, {"analysis": analysis, "synthesis": synthesis}, graphs, tables)


def _check_finite(graph: Graph) -> None:
    for node in graph.nodes:
        for what in ("weight", "bias"):
            array = getattr(node, what, None)
            if array is not None and not np.isfinite(array).all():
                raise ConversionError(f"{node.name}.{what} is not finite", graph.stage)


def _write_golden(source: _Source, photos: Calibration, folder: Path) -> None:
    from edgecodec.converters.golden import make_golden, save_golden

    try:
        photo = read_photo(demo_photo())
    except ConversionError:
        photo = photos.photos[0]
    modules = [source.modules[stage] for stage in STAGES]
    save_golden(folder / GOLDEN, make_golden(modules, source.tables, photo))


def _write_artefacts(
    source: _Source,
    photos: Calibration,
    work: Sequence[tuple[Target, Precision]],
    folder: Path,
    progress: Progress,
) -> list[tuple[ArtefactEntry, ConversionRow]]:
    from edgecodec.converters.parity import make_samples

    count = len(photos.photos)
    progress(f"running the reference on {count} photo{'s' * (count != 1)}")
    samples = make_samples(source.modules["analysis"], source.modules["synthesis"], photos.photos)
    done = []
    for target, precision in work:
        for stage in STAGES:
            entry, row = _write_one(
                source.graphs[stage], target, precision, stage, samples, folder, progress
            )
            progress(_line(row))
            done.append((entry, row))
    return done


def _write_one(
    graph: Graph,
    target: Target,
    precision: Precision,
    stage: StageName,
    samples: Sequence[Sample],
    folder: Path,
    progress: Progress,
) -> tuple[ArtefactEntry, ConversionRow]:
    from edgecodec.converters.parity import check_artefact

    started = time.perf_counter()
    path = folder / target.name / f"{stage}.{precision}.{target.suffix}"
    path.parent.mkdir(exist_ok=True)
    operators = target.load_writer()(graph, path, precision)
    artefact = Artefact(stage, target.name, precision, path)
    parity = check_artefact(artefact, target.backend, samples, progress)
    size = sum(p.stat().st_size for p in path.parent.glob(f"{path.stem}.*"))
    entry = ArtefactEntry(
        stage,
        target.name,
        precision,
        path.relative_to(folder).as_posix(),
        size,
        parity=parity,
        operators=operators,
    )
    seconds = time.perf_counter() - started
    return entry, make_row(target.name, precision, stage, size, parity, seconds)


def _line(row: ConversionRow) -> str:
    error = "" if row.max_abs_err is None else f", max error {row.max_abs_err:.2g}"
    return (
        f"{row.target} {row.precision} {row.stage}: {row.bytes / 1e6:.2f} MB{error}, {row.status}"
    )


def _manifest(
    source: _Source,
    photos: Calibration,
    name: str,
    entries: Sequence[ArtefactEntry],
    hashes: dict[str, str],
) -> Manifest:
    from edgecodec.model import config
    from edgecodec.model.stages import receptive_halos

    halos = receptive_halos(source.codec)
    description: dict[str, Any] = photos.describe()
    return Manifest(
        name=name,
        model_id=source.model_id,
        tables_id=short_id(source.tables),
        latent_channels=source.codec.cfg.latent_channels,
        hyper_channels=source.codec.cfg.hyper_channels,
        latent_stride=config.LATENT_STRIDE,
        hyper_stride=config.HYPER_STRIDE,
        analysis_halo=halos[0],
        synthesis_halo=halos[1],
        artefacts=tuple(entries),
        calibration=description,
        files=hashes,
    )


def _read_back(folder: Path) -> None:
    """Read every file as a device does; the hashes are those of what was checked."""
    with Bundle(folder) as bundle:
        for entry in bundle.manifest.artefacts:
            bundle.artefact_file(entry)
