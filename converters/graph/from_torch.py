"""Read a torch module into a `Graph`, through torch.export.

Only operations that every target has in the same form are taken, and those that equal a few of
them exactly; any other is refused by name and place, because a silent approximation would show up
as a wrong picture on somebody's phone.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecodec.converters.graph.nodes import (
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
from edgecodec.converters.graph.simplify import scale, simplify
from edgecodec.converters.graph.transposed_convolution import as_convolution
from edgecodec.errors import ConversionError, UnsupportedOpError

SUPPORTED = (
    "conv2d",
    "conv_transpose2d",
    "relu",
    "leaky_relu",
    "batch_norm",
    "add",
    "pixel_shuffle",
    "pixel_unshuffle",
    "add, sub, mul and div by a constant",
)
_FROZEN_NORM = "_native_batch_norm_legit_no_training"
_SAME = ("getitem", "clone", "contiguous", "detach")
"""What gives its first argument; a tuple comes from a batch norm alone, which is its first item."""


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
    return simplify(_ProgramReader(program, stage, inputs, outputs).read())


def _is_in_place(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and _op_name(node).endswith("_")


def _op_name(node: torch.fx.Node) -> str:
    """Return `relu` for `aten.relu.default`."""
    if node.target is operator.getitem:
        return "getitem"
    parts = str(node.target).split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else str(node.target)


def _place(node: torch.fx.Node) -> str:
    """Return where in the module an operation stands, as `g_a.1 (GDN)`."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack or not stack[-1][0]:
        return ""
    path, kind = stack[-1]
    return f"{path} ({getattr(kind, '__name__', str(kind)).rpartition('.')[2]})"


class _ProgramReader:
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
        self.owners = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.constants = self._stored()

    def _stored(self) -> dict[torch.fx.Node, Tensor]:
        stored = {**self.program.state_dict, **self.program.constants}
        return {
            node: stored[self.owners[node.name]].detach().cpu()
            for node in self.program.graph.nodes
            if node.op == "placeholder" and node.name in self.owners
        }

    def read(self) -> Graph:
        handlers: dict[str, Callable[[torch.fx.Node], None]] = {
            "conv2d": self._conv2d,
            "conv_transpose2d": self._conv_transpose2d,
            "relu": self._relu,
            "leaky_relu": self._leaky_relu,
            "batch_norm": self._batch_norm,
            _FROZEN_NORM: self._batch_norm,
            "add": self._add,
            "sub": self._by_constant,
            "rsub": self._by_constant,
            "mul": self._by_constant,
            "div": self._by_constant,
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
            elif node.op == "call_function" and not self._is_constant(node):
                op = _op_name(node)
                if op in _SAME:
                    continue
                if op not in handlers:
                    raise self._unsupported(node, op)
                self.names[node] = results.get(node, node.name)
                handlers[op](node)
        return Graph(self.stage, self.values, tuple(self.inputs), self.outputs, tuple(self.nodes))

    def _is_constant(self, node: torch.fx.Node) -> bool:
        """Compute what depends on no input, such as weights that are made of others."""
        if not all(argument in self.constants for argument in node.all_input_nodes):
            return False
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.constants.__getitem__)
        with torch.no_grad():
            self.constants[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return True

    def _unsupported(self, node: torch.fx.Node, op: str) -> UnsupportedOpError:
        return UnsupportedOpError(op, self.stage, SUPPORTED, _place(node))

    def _results(self) -> dict[torch.fx.Node, str]:
        (output,) = (node for node in self.program.graph.nodes if node.op == "output")
        found = [_origin(value) for value in output.args[0]]
        if len({n for n in found if isinstance(n, torch.fx.Node)}) != len(self.outputs):
            raise ConversionError(
                f"returns {len(found)} results, expected {', '.join(self.outputs)}", self.stage
            )
        return dict(zip(found, self.outputs, strict=True))

    def _source(self, node: torch.fx.Node, argument: object) -> str:
        """Return the value an argument is; a constant there is another operation."""
        origin = _origin(argument)
        if origin not in self.names:
            raise self._unsupported(node, f"{_op_name(node)} of a constant")
        return self.names[origin]

    def _emit(self, made: Node, channels: int) -> None:
        self.values[made.output] = Value(made.output, channels)
        self.nodes.append(made)

    def _numbers(self, argument: object) -> Float32Array | None:
        """Return a stored tensor."""
        if not isinstance(argument, torch.fx.Node) or argument not in self.constants:
            return None
        return np.ascontiguousarray(self.constants[argument].float().numpy())

    def _weights(self, node: torch.fx.Node) -> tuple[Float32Array, Float32Array | None]:
        weight, bias = (self._numbers(a) for a in _filled(node, [None, None, None])[1:3])
        if weight is None:
            raise self._unsupported(node, f"{_op_name(node)} with a computed weight")
        return weight, bias

    def _conv2d(self, node: torch.fx.Node) -> None:
        args = _filled(node, [None, None, None, [1, 1], [0, 0], [1, 1], 1])
        weight, bias = self._weights(node)
        dilation = _pair(args[5])
        made = Conv2d(
            self._layer(node, args[1]),
            (self._source(node, args[0]),),
            self.names[node],
            weight,
            np.zeros(weight.shape[0], np.float32) if bias is None else bias,
            _pair(args[3]),
            _padding(args[4], weight.shape[2:], dilation),
            dilation,
            int(args[6]),
        )
        self._emit(made, weight.shape[0])

    def _conv_transpose2d(self, node: torch.fx.Node) -> None:
        """Read it as a convolution and a pixel shuffle."""
        args = _filled(node, [None, None, None, [1, 1], [0, 0], [0, 0], 1, [1, 1]])
        weight, bias = self._weights(node)
        stride, padding, extra = (_pair(args[i]) for i in (3, 4, 5))
        sizes = [k + e - 2 * p for k, e, p in zip(weight.shape[2:], extra, padding, strict=True)]
        block, groups = stride[0], int(args[6])
        if stride[0] != stride[1] or sizes != [*stride] or _pair(args[7]) != (1, 1):
            raise self._unsupported(node, "conv_transpose2d to another size than input * stride")
        weight, around = as_convolution(weight, block, padding, groups)
        if bias is None:
            bias = np.zeros(len(weight) // block**2, np.float32)
        deep, output = f"{node.name}.deep", self.names[node]
        plain = Conv2d(
            deep,
            (self._source(node, args[0]),),
            deep if block > 1 else output,
            weight,
            np.repeat(bias, block**2),
            padding=around,
            groups=groups,
        )
        self._emit(plain, len(weight))
        if block > 1:
            self._emit(DepthToSpace(node.name, (deep,), output, block), len(bias))

    def _layer(self, node: torch.fx.Node, weight: torch.fx.Node) -> str:
        """Return what the module calls a layer; of one that runs twice, the first time only."""
        path = self.owners.get(weight.name, node.name).removesuffix(".weight")
        return node.name if any(made.name == path for made in self.nodes) else path

    def _relu(self, node: torch.fx.Node) -> None:
        made = Relu(node.name, (self._source(node, node.args[0]),), self.names[node])
        self._emit(made, self._channels(node))

    def _leaky_relu(self, node: torch.fx.Node) -> None:
        """Read it as `slope * x + (1 - slope) * relu(x)`."""
        source, channels = self._source(node, node.args[0]), self._channels(node)
        slope = float(_filled(node, [None, 0.01])[1])
        positive, steep, flat = (f"{node.name}.{part}" for part in ("positive", "steep", "flat"))
        self._emit(Relu(positive, (source,), positive), channels)
        zeros = np.zeros(channels, np.float32)
        for name, read, factor in ((steep, positive, 1 - slope), (flat, source, slope)):
            factors = np.full(channels, factor, np.float32)
            self._emit(scale(name, read, name, factors, zeros), channels)
        self._emit(Add(node.name, (flat, steep), self.names[node]), channels)

    def _batch_norm(self, node: torch.fx.Node) -> None:
        frozen = _op_name(node) == _FROZEN_NORM
        weight, bias, mean, variance = (self._numbers(argument) for argument in node.args[1:5])
        if mean is None or variance is None or not (frozen or node.args[5] is False):
            raise self._unsupported(node, "batch_norm by the statistics of its input")
        epsilon: Any = node.args[6 if frozen else 7]
        factor = 1.0 / np.sqrt(variance.astype(np.float64) + float(epsilon))
        factor = factor if weight is None else factor * weight
        offset = -mean * factor if bias is None else bias - mean * factor
        self._scale(node, node.args[0], factor, offset)

    def _scale(
        self, node: torch.fx.Node, argument: object, factor: np.ndarray, offset: np.ndarray
    ) -> None:
        source = self._source(node, argument)
        numbers = (factor.astype(np.float32), offset.astype(np.float32))
        self._emit(scale(node.name, source, self.names[node], *numbers), len(factor))

    def _add(self, node: torch.fx.Node) -> None:
        if any(self._constant(argument) is not None for argument in node.args[:2]):
            self._by_constant(node)
            return
        left, right = (self._source(node, argument) for argument in node.args[:2])
        if node.kwargs.get("alpha", 1) != 1:
            raise self._unsupported(node, "add with a factor")
        shapes = {tuple(argument.meta["val"].shape) for argument in node.all_input_nodes}
        if len(shapes) != 1:
            raise self._unsupported(node, "add of different shapes")
        self._emit(Add(node.name, (left, right), self.names[node]), self._channels(node))

    def _by_constant(self, node: torch.fx.Node) -> None:
        """Read a sum, difference, product or quotient with a number, or a number per channel."""
        op, (left, right) = _op_name(node), node.args[:2]
        if op == "rsub":
            op, left, right = "sub", right, left
        first, second = self._constant(left), self._constant(right)
        if (first is None) == (second is None) or (op == "div" and second is None):
            raise self._unsupported(node, f"{op} of two values")
        if node.kwargs:
            raise self._unsupported(node, f"{op} with {', '.join(node.kwargs)}")
        constant, value = (first, right) if second is None else (second, left)
        assert constant is not None  # one of the two is none
        try:
            row = torch.broadcast_to(constant, (1, self._channels(node), 1, 1))
        except RuntimeError as exc:
            name = f"{op} with a constant that is no number per channel"
            raise self._unsupported(node, name) from exc
        numbers = row.reshape(-1).double().numpy()
        factor, offset = np.ones_like(numbers), np.zeros_like(numbers)
        if op in ("mul", "div"):
            with np.errstate(divide="ignore"):  # infinite weights are refused by their name
                factor = numbers if op == "mul" else 1.0 / numbers
        elif op == "add":
            offset = numbers
        else:
            factor, offset = (factor, -numbers) if second is not None else (-factor, numbers)
        self._scale(node, value, factor, offset)

    def _constant(self, argument: object) -> Tensor | None:
        if isinstance(argument, int | float):
            return torch.tensor(float(argument))
        return self.constants.get(argument) if isinstance(argument, torch.fx.Node) else None

    def _channels(self, node: torch.fx.Node) -> int:
        return int(node.meta["val"].shape[1])

    def _shuffle(self, node: torch.fx.Node) -> None:
        kind = DepthToSpace if _op_name(node) == "pixel_shuffle" else SpaceToDepth
        source, block = self._source(node, node.args[0]), operator.index(node.args[1])  # type: ignore[arg-type]
        self._emit(kind(node.name, (source,), self.names[node], block), self._channels(node))


def _origin(value: Any) -> Any:
    """Return the node that computes a value."""
    while (
        isinstance(value, torch.fx.Node)
        and value.op == "call_function"
        and _op_name(value) in _SAME
    ):
        value = value.args[0]
    return value


def _filled(node: torch.fx.Node, defaults: list[Any]) -> list[Any]:
    """Return the arguments of a call, defaults for those that are left out."""
    return [*node.args, *defaults[len(node.args) :]]


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
