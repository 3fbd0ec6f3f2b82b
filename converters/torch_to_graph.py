"""Read a torch module into a `Graph`, through torch.export.

Only operations that every target has in the same form are taken; any other is refused by name,
because a silent approximation would show up as a wrong picture on somebody's phone.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgecodec.converters.graph import (
    Add,
    Conv2d,
    DepthToSpace,
    Float32Array,
    Graph,
    Node,
    Relu,
    Size,
    SpaceToDepth,
    Value,
)
from edgecodec.errors import ConversionError, UnsupportedOpError

SUPPORTED = ("conv2d", "relu", "add", "pixel_shuffle", "pixel_unshuffle")


def graph_from_module(
    module: nn.Module,
    *,
    stage: str,
    inputs: Mapping[str, int],
    outputs: Sequence[str],
    size: Size = (64, 64),
) -> Graph:
    """Trace a module in evaluation mode.

    Args:
        module: takes NCHW float32 tensors, returns one or a tuple of them.
        stage: name for errors and files.
        inputs: public name and channels of each argument, in order.
        outputs: public name of each result, in order.
        size: height and width to trace with; the graph does not depend on it, but the module
            must accept it.

    Raises:
        UnsupportedOpError: the module does something the targets have no counterpart for.
        ConversionError: it cannot be traced, or its results are not as named.
    """
    examples = tuple(torch.zeros(1, channels, *size) for channels in inputs.values())
    try:
        with warnings.catch_warnings():
            # torch.export deprecates parts of itself; nothing the caller could act upon.
            warnings.simplefilter("ignore")
            program = torch.export.export(module.eval(), examples)
            if any(_is_in_place(node) for node in program.graph.nodes):
                program = program.run_decompositions({})  # the same operations, out of place
    except Exception as exc:  # torch.export raises whatever the module or its tracer raises
        reason = " ".join(str(exc).split())[:200]
        raise ConversionError(f"cannot be traced by torch.export ({reason})", stage) from exc
    return _Reader(program, stage, inputs, outputs).read()


def _is_in_place(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and _op_name(node).endswith("_")


def _op_name(node: torch.fx.Node) -> str:
    """Return `relu` for `aten.relu.default`."""
    parts = str(node.target).split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else str(node.target)


class _Reader:
    """Walks an exported program once."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        stage: str,
        inputs: Mapping[str, int],
        outputs: Sequence[str],
    ) -> None:
        self.program, self.stage = program, stage
        self.inputs, self.outputs = inputs, tuple(outputs)
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.names: dict[torch.fx.Node, str] = {}
        signature = program.graph_signature
        self.owners = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        stored = {**program.state_dict, **program.constants}
        self.tensors: dict[str, Float32Array] = {
            name: np.ascontiguousarray(stored[owner].detach().cpu().float().numpy())
            for name, owner in self.owners.items()
        }

    def read(self) -> Graph:
        handlers: dict[str, Callable[[torch.fx.Node], None]] = {
            "conv2d": self._conv2d,
            "relu": self._relu,
            "add": self._add,
            "pixel_shuffle": self._shuffle,
            "pixel_unshuffle": self._shuffle,
        }
        public = iter(self.inputs.items())
        users = set(self.program.graph_signature.user_inputs)
        results = self._results()
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in users:
                name, channels = next(public)
                self.names[node] = name
                self.values[name] = Value(name, channels)
            elif node.op == "call_function":
                op = _op_name(node)
                if op not in handlers:
                    raise UnsupportedOpError(op, self.stage, SUPPORTED)
                self.names[node] = results.get(node, node.name)
                handlers[op](node)
        return Graph(self.stage, self.values, tuple(self.inputs), self.outputs, tuple(self.nodes))

    def _results(self) -> dict[torch.fx.Node, str]:
        (output,) = (node for node in self.program.graph.nodes if node.op == "output")
        found = list(output.args[0])
        if len({n for n in found if isinstance(n, torch.fx.Node)}) != len(self.outputs):
            raise ConversionError(
                f"returns {len(found)} results, expected {', '.join(self.outputs)}", self.stage
            )
        return dict(zip(found, self.outputs, strict=True))

    def _source(self, node: torch.fx.Node, argument: object) -> str:
        """Return the value an argument is; a constant there is another operation."""
        if not isinstance(argument, torch.fx.Node) or argument not in self.names:
            raise UnsupportedOpError(f"{_op_name(node)} with a constant", self.stage, SUPPORTED)
        return self.names[argument]

    def _emit(self, node: torch.fx.Node, made: Node) -> None:
        self.values[made.output] = Value(made.output, int(node.meta["val"].shape[1]))
        self.nodes.append(made)

    def _conv2d(self, node: torch.fx.Node) -> None:
        defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
        args = [*node.args, *defaults[len(node.args) :]]
        weight, bias = (self.tensors.get(getattr(a, "name", "")) for a in args[1:3])
        if weight is None:
            raise UnsupportedOpError("conv2d with a computed weight", self.stage, SUPPORTED)
        stride, dilation = _pair(args[3]), _pair(args[5])
        self._emit(
            node,
            Conv2d(
                self._layer(node, args[1].name),
                (self._source(node, args[0]),),
                self.names[node],
                weight,
                np.zeros(weight.shape[0], np.float32) if bias is None else bias,
                stride,
                _padding(args[4], weight.shape[2:], dilation),
                dilation,
                int(args[6]),
            ),
        )

    def _layer(self, node: torch.fx.Node, weight: str) -> str:
        """Return what the module calls a layer; of one that runs twice, the first time only."""
        path = self.owners[weight].removesuffix(".weight")
        return node.name if any(made.name == path for made in self.nodes) else path

    def _relu(self, node: torch.fx.Node) -> None:
        self._emit(node, Relu(node.name, (self._source(node, node.args[0]),), self.names[node]))

    def _add(self, node: torch.fx.Node) -> None:
        left, right = (self._source(node, argument) for argument in node.args[:2])
        if node.kwargs.get("alpha", 1) != 1:
            raise UnsupportedOpError("add with a factor", self.stage, SUPPORTED)
        shapes = {tuple(argument.meta["val"].shape) for argument in node.all_input_nodes}
        if len(shapes) != 1:
            raise UnsupportedOpError("add of different shapes", self.stage, SUPPORTED)
        self._emit(node, Add(node.name, (left, right), self.names[node]))

    def _shuffle(self, node: torch.fx.Node) -> None:
        kind = DepthToSpace if _op_name(node) == "pixel_shuffle" else SpaceToDepth
        source, block = self._source(node, node.args[0]), operator.index(node.args[1])  # type: ignore[arg-type]
        self._emit(node, kind(node.name, (source,), self.names[node], block))


def _pair(value: Any) -> Size:
    numbers = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return numbers[0], numbers[-1]


def _padding(value: Any, kernel: Sequence[int], dilation: Size) -> tuple[int, int, int, int]:
    """Return zeros above, left, below, right; torch's `same` puts an odd one below and right."""
    if isinstance(value, str):
        total = [
            d * (k - 1) if value == "same" else 0 for k, d in zip(kernel, dilation, strict=True)
        ]
        first = [t // 2 for t in total]
        return first[0], first[1], total[0] - first[0], total[1] - first[1]
    down, right = _pair(value)
    return down, right, down, right
