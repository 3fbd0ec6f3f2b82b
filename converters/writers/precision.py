"""The precisions that targets have, and what asking for another one says."""

from __future__ import annotations

from edgecodec.bundle.manifest import PRECISIONS, Precision
from edgecodec.converters.graph.graph import Graph
from edgecodec.errors import ConversionError

WITHOUT_BF16: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""Of targets whose runtimes do not compute in bfloat16 when asked to."""
FLOAT: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
"""Those that are made of the same graph."""


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
