"""The targets there are: what each needs, which function writes it, which backend reads it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

from edgecodec.bundle.manifest import PRECISIONS, Precision
from edgecodec.converters.graph.graph import Graph
from edgecodec.errors import (
    ConfigError,
    ConversionError,
    MissingDependencyError,
    UnknownPluginError,
)
from edgecodec.runtimes.base import STAGES, StageName
from edgecodec.runtimes.registry import get_backend

WITHOUT_BF16: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""Of targets whose runtimes do not compute in bfloat16 when asked to."""
FLOAT: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
"""Those that are made of the same graph."""


class Writer(Protocol):
    """Writes a stage to a file and says how often each operator occurs in it."""

    def __call__(self, graph: Graph, path: Path, precision: Precision) -> dict[str, int]:
        """Write `path` and what belongs beside it."""
        ...


@dataclass(frozen=True)
class Target:
    """One kind of artefact.

    Attributes:
        name: folder of the bundle and what `--to` calls it.
        writer: function that writes it, `module:function`.
        suffix: of the file a runtime loads.
        backend: name of the backend that checks it.
        requires: packages the writer imports, each with the extra that brings it.
        precisions: those it has an honest form of.
        minimum: version of the runtime from which on it reads the artefacts.
        squares: whether a synthesis gives squares, see `converters.square_outputs`.
    """

    name: str
    writer: str
    suffix: str
    backend: str
    requires: tuple[tuple[str, str], ...]
    precisions: tuple[Precision, ...] = WITHOUT_BF16
    minimum: str = ""
    squares: bool = False

    def load_writer(self) -> Writer:
        """Import the writer.

        Raises:
            MissingDependencyError: a package it needs is not installed.
        """
        require(self.requires)
        module, _, function = self.writer.partition(":")
        writer: Writer = getattr(importlib.import_module(module), function)
        return writer


_HERE = "edgecodec.converters.writers"
TARGETS = {
    target.name: target
    for target in (
        Target(
            "onnx",
            f"{_HERE}.to_onnx:write_onnx",
            "onnx",
            "onnxruntime",
            (("onnx", "convert"),),
            minimum="1.17",
            squares=True,
        ),
        Target(
            "openvino",
            f"{_HERE}.to_openvino:write_openvino",
            "xml",
            "openvino",
            (("onnx", "convert"), ("openvino", "openvino")),
            PRECISIONS,
            minimum="2024.0",
        ),
        Target(
            "tflite",
            f"{_HERE}.to_tflite:write_tflite",
            "tflite",
            "tflite",
            (("ai_edge_litert", "tflite"), ("flatbuffers", "convert")),
            minimum="2.14",
            squares=True,
        ),
        Target(
            "torch",
            f"{_HERE}.to_torch:write_torch",
            "pt",
            "torch",
            (("torch", "convert"),),
            ("fp32",),
        ),
    )
}


def check_precision(
    precision: str, available: tuple[Precision, ...] = PRECISIONS, stage: str = ""
) -> Precision:
    """Return a precision, refuse what there is not.

    Raises:
        ConversionError: `precision` is not among `available`.
    """
    for known in available:
        if precision == known:
            return known
    raise ConversionError(
        f"precision {precision!r} is not available; there are: {', '.join(available)}", stage
    )


def check_graph_precision(
    graph: Graph, precision: Precision, available: tuple[Precision, ...] = WITHOUT_BF16
) -> None:
    """Refuse a precision that a target or a graph does not have.

    Raises:
        ConversionError: it is not among `available`; or it is int8 and the graph has no codes, or
            the other way round.
    """
    check_precision(precision, available, graph.stage)
    if graph.has_codes and precision != "int8":
        raise ConversionError(f"an int8 graph cannot be written as {precision}", graph.stage)
    if not graph.has_codes and precision == "int8":
        raise ConversionError("a graph without int8 codes cannot be written as int8", graph.stage)


def require(packages: Sequence[tuple[str, str]]) -> None:
    """Refuse to go on without the packages named.

    Args:
        packages: module and the extra of edgecodec that brings it.

    Raises:
        MissingDependencyError: the first one that is not installed.
    """
    for package, extra in packages:
        if find_spec(package) is None:
            raise MissingDependencyError(package, extra)


@runtime_checkable
class KnowsArithmetic(Protocol):
    """A backend that can say which precisions it does not compute as such on every machine."""

    def lacks(self, precision: str) -> str:
        """Return why artefacts of a precision cannot be computed here, empty where they can."""
        ...


def lacks(target: Target, precision: Precision) -> str:
    """Return why no artefact of a precision could be judged on this machine, empty if it can.

    A runtime that lacks the arithmetic would be judged by something else that it computes instead.
    """
    backend = get_backend(target.backend)
    return backend.lacks(precision) if isinstance(backend, KnowsArithmetic) else ""


@dataclass(frozen=True)
class Planned:
    """Artefacts to write.

    Attributes:
        target: of all of them.
        precision: likewise.
        stages: one artefact each.
    """

    target: Target
    precision: Precision
    stages: tuple[StageName, ...] = STAGES


def plan(targets: Sequence[str], precisions: Sequence[str]) -> list[Planned]:
    """Return what to write, the torch reference first; it is always part of a bundle.

    A precision that only some of the targets have is planned for these.

    Args:
        targets: names.
        precisions: each for both stages, or for one: `int8:analysis`.

    Raises:
        UnknownPluginError: no such target.
        ConversionError: no such precision or stage, or none of the targets has the precision.
        ConfigError: nothing asked for.
        MissingDependencyError: a package that a writer needs is not installed.
    """
    if not targets or not precisions:
        raise ConfigError("name at least one target and one precision")
    for name in targets:
        if name not in TARGETS:
            raise UnknownPluginError("target", name, tuple(TARGETS))
    wanted: dict[Precision, set[StageName]] = {}
    for text in precisions:
        precision, stages = _parsed(text)
        _check_offered(precision, targets)
        wanted.setdefault(precision, set()).update(stages)
    chosen = [Planned(TARGETS["torch"], "fp32")]
    for name in dict.fromkeys(targets):
        target = TARGETS[name]
        require(target.requires)
        if name != "torch":
            chosen += [
                Planned(target, p, tuple(stage for stage in STAGES if stage in wanted[p]))
                for p in PRECISIONS
                if p in wanted and p in target.precisions
            ]
    return chosen


def _parsed(text: str) -> tuple[Precision, tuple[StageName, ...]]:
    """Return precision and stages of `int8` or `int8:analysis`."""
    name, colon, stage = text.partition(":")
    stages = tuple(s for s in STAGES if not colon or s == stage)
    for precision in PRECISIONS:
        if precision == name and stages:
            return precision, stages
    if name not in PRECISIONS:
        raise ConversionError(
            f"precision {text!r} is not available; there are: {', '.join(PRECISIONS)}; for one "
            f"stage alone as {' or '.join(f'int8:{s}' for s in STAGES)}"
        )
    right = ", ".join(f"{name}:{s}" for s in STAGES)
    raise ConversionError(
        f"precision {text!r} names no stage that there is; write one of: {name}, {right}"
    )


def _check_offered(precision: Precision, targets: Sequence[str]) -> None:
    if not any(precision in TARGETS[name].precisions for name in targets):
        offer = [name for name, target in TARGETS.items() if precision in target.precisions]
        raise ConversionError(
            f"precision {precision!r} is not available for {', '.join(targets)}; "
            f"it is for: {', '.join(offer)}"
        )
