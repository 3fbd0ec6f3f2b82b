"""A torch module's operations as torch.export gives them, and how to read their calls."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgecodec.converters.graph.nodes import Size
from edgecodec.errors import ConversionError

_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
"""A part of the network under `torch.no_grad` or `torch.autocast`."""


@dataclass(frozen=True, eq=False)
class ExportedModule:
    """The operations of a module in evaluation mode, none of them in place.

    Attributes:
        graph: of them, those under `torch.no_grad` and the like in their places.
        inputs: placeholders of the arguments, in order.
        owners: names of parameters, buffers and constants by their placeholders.
        stored: their values, on the CPU.
    """

    graph: torch.fx.Graph
    inputs: list[torch.fx.Node]
    owners: dict[torch.fx.Node, str]
    stored: dict[torch.fx.Node, Tensor]


def export(module: nn.Module, stage: str, channels: Iterable[int], size: Size) -> ExportedModule:
    """Trace a module.

    Args:
        module: takes NCHW float32 tensors.
        stage: name for errors.
        channels: of each argument, in order.
        size: height and width to trace with.

    Raises:
        ConversionError: it cannot be traced.
    """
    examples = tuple(torch.zeros(1, count, *size) for count in channels)
    try:
        # Gradients are of no use, and a forward under torch.inference_mode cannot give any.
        with warnings.catch_warnings(), torch.no_grad():
            # torch.export deprecates parts of itself; nothing the caller could act upon.
            warnings.simplefilter("ignore")
            program = torch.export.export(module.eval(), examples)
            graph = _unwrapped(program)
            if any(_is_in_place(node) for node in graph.nodes):
                program = program.run_decompositions({})  # the same operations, out of place
                graph = _unwrapped(program)
    except Exception as exc:  # torch.export raises whatever the module or its tracer raises
        reason = " ".join(str(exc).split())[:200]
        raise ConversionError(f"cannot be traced by torch.export ({reason})", stage) from exc
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    pairs = zip(_placeholders(graph), _placeholders(program.graph), strict=True)
    named = {node: original.name for node, original in pairs}
    owners = {node: names[name] for node, name in named.items() if name in names}
    values = {**program.state_dict, **program.constants}
    return ExportedModule(
        graph,
        [node for node, name in named.items() if name in set(signature.user_inputs)],
        owners,
        {node: values[owner].detach().cpu() for node, owner in owners.items()},
    )


def _unwrapped(program: torch.export.ExportedProgram) -> torch.fx.Graph:
    """Return the operations with those under `torch.no_grad` and the like in their places."""
    graph = torch.fx.Graph()
    graph.output(_copy(graph, program.graph_module, {}))
    return graph


def _copy(graph: torch.fx.Graph, module: torch.fx.GraphModule, made: dict[Any, Any]) -> Any:
    """Copy the operations of a module; return its results.

    Args:
        graph: to copy to.
        module: to copy from.
        made: what stands for its arguments, if they are not to be copied too.
    """
    for node in module.graph.nodes:
        if node.op == "output":
            return torch.fx.node.map_arg(node.args[0], made.__getitem__)
        if node in made:
            continue
        source = node.args[0] if node.args else None
        if str(node.target) in _WRAPPERS and not _is_autocast(node):
            at = next(i for i, a in enumerate(node.args) if _is_module(a))
            part = getattr(module, str(node.args[at].target))
            given = [made[argument] for argument in node.args[at + 1 :]]
            inner = zip(_placeholders(part.graph), given, strict=True)
            made[node] = _copy(graph, part, dict(inner))
        elif node.target is operator.getitem and isinstance(made.get(source), tuple | list):
            made[node] = made[source][node.args[1]]
        else:
            made[node] = graph.node_copy(node, lambda n: made.get(n, n))
    return ()


def _placeholders(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _is_module(argument: Any) -> bool:
    return isinstance(argument, torch.fx.Node) and argument.op == "get_attr"


def _is_autocast(node: torch.fx.Node) -> bool:
    """Return whether a part is computed in another precision."""
    return str(node.target) == "wrap_with_autocast" and node.args[2] is not False


def _is_in_place(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and op_name(node).endswith("_")


def op_name(node: torch.fx.Node) -> str:
    """Return `relu` for `aten.relu.default`."""
    if node.target is operator.getitem:
        return "getitem"
    parts = str(node.target).split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else str(node.target)


def place(node: torch.fx.Node) -> str:
    """Return where in the module an operation stands, as `g_a.1 (GDN)`."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack or not stack[-1][0]:
        return ""
    path, kind = stack[-1]
    return f"{path} ({getattr(kind, '__name__', str(kind)).rpartition('.')[2]})"


def filled(node: torch.fx.Node, defaults: list[Any]) -> list[Any]:
    """Return the arguments of a call, defaults for those that are left out."""
    return [*node.args, *defaults[len(node.args) :]]


def alpha_of(node: torch.fx.Node) -> float:
    """Return what the second operand of a sum is multiplied with."""
    given: Any = node.kwargs.get("alpha", 1.0)
    return float(filled(node, [None, None, given])[2])


def dtype(node: torch.fx.Node) -> torch.dtype | None:
    """Return the type of what a call gives, None where it is no tensor."""
    return getattr(node.meta.get("val"), "dtype", None)


def pair(value: Any) -> Size:
    """Return what is meant for down and right, given as one number or as two."""
    numbers = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return numbers[0], numbers[-1]


def padding_of(value: Any, kernel: Sequence[int], dilation: Size) -> tuple[int, int, int, int]:
    """Return zeros above, left, below, right; torch's `same` puts an odd one below and right."""
    if isinstance(value, str):
        total = [
            d * (k - 1) if value == "same" else 0 for k, d in zip(kernel, dilation, strict=True)
        ]
        first = [t // 2 for t in total]
        return first[0], first[1], total[0] - first[0], total[1] - first[1]
    down, right = pair(value)
    return down, right, down, right
