"""The operators of an artefact: which left int8 and why, and which only change a layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecodec.converters.checks.executed import Operation
from edgecodec.converters.graph.convolutions import Conv2d, QuantizedConv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.int8.plan import reaches_output

MAKES_OUTPUT = "makes an output, which has more than 8 bits"
MAKES_TRUNK = "makes the trunk, along which errors would add up"


@dataclass(frozen=True)
class OpReport:
    """What an artefact consists of and what its runtime makes of that.

    Attributes:
        operators: how often each occurs in the file.
        executed: how often each occurs once the runtime has loaded it; empty where it cannot tell.
        layout: names of executed operations that only change the order in memory.
        avoidable: those of them that neither a shuffle nor an end of the graph asks for.
        int8: convolutions that are integers.
        executed_int8: as many as the runtime computes so; None where it cannot tell.
        left: float32 convolutions of an int8 artefact, and why each of them is.
    """

    operators: Mapping[str, int]
    executed: Mapping[str, int] = field(default_factory=dict)
    layout: tuple[str, ...] = ()
    avoidable: tuple[str, ...] = ()
    int8: int = 0
    executed_int8: int | None = None
    left: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "operators": dict(self.operators),
            "executed": dict(self.executed),
            "layout": list(self.layout),
            "avoidable": list(self.avoidable),
            "int8": self.int8,
            "executed_int8": self.executed_int8,
            "left_int8": dict(self.left),
        }

    def warnings(self) -> list[str]:
        """Return what should not be, in words."""
        found = []
        if self.avoidable:
            found.append(f"{len(self.avoidable)} avoidable layout changes: {_few(self.avoidable)}")
        if self.executed_int8 is not None and self.executed_int8 < self.int8:
            found.append(
                f"the runtime computes only {self.executed_int8} of {self.int8} int8 convolutions "
                "as integers"
            )
        return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def report_operators(
    graph: Graph, operators: Mapping[str, int], executed: Sequence[Operation] | None
) -> OpReport:
    """Look at an artefact.

    Args:
        graph: what was written.
        operators: how often each occurs in the file.
        executed: what the runtime runs, if it tells.
    """
    int8 = sum(isinstance(node, QuantizedConv2d) for node in graph.nodes)
    left = {}
    if graph.has_codes:
        left = {n.name: _why(graph, n) for n in graph.nodes if isinstance(n, Conv2d)}
    if executed is None:
        return OpReport(operators, int8=int8, left=left)
    layout = [op for op in executed if op.role == "layout"]
    return OpReport(
        operators,
        dict(sorted(Counter(op.kind for op in executed if op.role != "end").items())),
        tuple(op.name for op in layout),
        tuple(op.name for op in layout if not _has_reason(executed, op)),
        int8,
        sum(op.integer for op in executed),
        left,
    )


def _why(graph: Graph, node: Conv2d) -> str:
    return MAKES_OUTPUT if reaches_output(graph, node.output) else MAKES_TRUNK


def _has_reason(executed: Sequence[Operation], op: Operation) -> bool:
    """Return whether no values meet between a change of layout and a shuffle or an end."""
    return any(_leads(executed, op, forward=forward) for forward in (True, False))


def _leads(executed: Sequence[Operation], op: Operation, *, forward: bool) -> bool:
    names = op.outputs if forward else op.inputs
    for other in executed:
        if set(names).isdisjoint(other.inputs if forward else other.outputs):
            continue
        if other.role in ("shuffle", "end"):
            return True
        if other.role != "compute" and _leads(executed, other, forward=forward):
            return True
    return False
