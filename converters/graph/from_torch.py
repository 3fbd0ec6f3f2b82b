"""Read a torch module into a `Graph`, through torch.export.

Only operations that every target has in the same form are taken, those that equal a few of them
exactly, and those that compute nothing; any other is refused by name and place, because a silent
approximation would show up as a wrong picture on somebody's phone.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.graph import Graph, Value
from edgecodec.converters.graph.moved_elements import (
    MOVES,
    as_shuffle,
    depends_on_size,
    positions,
    stays,
)
from edgecodec.converters.graph.nodes import (
    Add,
    Conv2d,
    DepthToSpace,
    Node,
    Padding,
    Relu,
    ReplicatePad,
    Size,
    SpaceToDepth,
)
from edgecodec.converters.graph.simplify import scale, simplify
from edgecodec.converters.graph.transposed_convolution import as_convolution
from edgecodec.errors import ConversionError, UnsupportedOpError

SUPPORTED = (
    "conv2d",
    "conv_transpose2d",
    "relu",
    "leaky_relu",
    "prelu",
    "batch_norm",
    "add and sub",
    "pad by zeros before a convolution",
    "pad by replication",
    "pixel_shuffle",
    "pixel_unshuffle",
    "add, sub, mul and div by a constant",
    "what only moves elements, if that is a shuffle or a choice of channels",
)
_FROZEN_NORM = "_native_batch_norm_legit_no_training"
_SAME = ("getitem", "clone", "contiguous", "detach", "positive", "lift_fresh_copy")
"""What gives its first argument. Of tuples, those not of MOVES come from a batch norm, which is
their first item."""
_AS_OTHER = ("expand_as", "reshape_as", "type_as", "view_as")
_CONVERSIONS = ("to", "_to_copy", "type_as", "float", "cpu")
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_CLAMPS = ("clamp", "clamp_min", "clamp_max", "clip", "hardtanh", "relu6")
_CHECKS = ("_assert_tensor_metadata",)
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
"""A part of the network under `torch.no_grad` or `torch.autocast`."""
_LEVELS = (0.0, 255.0)


def graph_from_module(
    module: nn.Module,
    *,
    stage: str,
    inputs: Mapping[str, int],
    outputs: Sequence[str],
    size: Size = (64, 96),
) -> Graph:
    """Trace a module in evaluation mode.

    Args:
        module: takes NCHW float32 tensors, returns one or a tuple of them.
        stage: name for errors and files.
        inputs: public name and channels of each argument, in order.
        outputs: public name of each result, in order.
        size: height and width to trace with, not square, so that swapped sides show; the graph
            does not depend on it, but the module must accept it.

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
            nodes = _unwrapped(program).nodes
            if any(_is_in_place(node) for node in nodes):
                program = program.run_decompositions({})  # the same operations, out of place
    except Exception as exc:  # torch.export raises whatever the module or its tracer raises
        reason = " ".join(str(exc).split())[:200]
        raise ConversionError(f"cannot be traced by torch.export ({reason})", stage) from exc
    return simplify(_ProgramReader(program, stage, inputs, outputs).read())


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
        self.graph = _unwrapped(program)
        self.inputs, self.outputs = inputs, tuple(outputs)
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.names: dict[torch.fx.Node, str] = {}
        self.same: dict[torch.fx.Node, torch.fx.Node] = {}
        self.moved: dict[torch.fx.Node, tuple[torch.fx.Node, Any]] = {}
        self.padded: dict[torch.fx.Node, Padding] = {}
        signature = program.graph_signature
        owners = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        arguments = zip(_placeholders(self.graph), _placeholders(program.graph), strict=True)
        named = {node: original.name for node, original in arguments}
        users = set(signature.user_inputs)
        self.given = [node for node, name in named.items() if name in users]
        self.owners = {node: owners[name] for node, name in named.items() if name in owners}
        self.constants = self._stored()

    def _stored(self) -> dict[torch.fx.Node, Tensor]:
        stored = {**self.program.state_dict, **self.program.constants}
        return {node: stored[owner].detach().cpu() for node, owner in self.owners.items()}

    def read(self) -> Graph:
        handlers: dict[str, Callable[[torch.fx.Node], None]] = {
            "conv2d": self._conv2d,
            "conv_transpose2d": self._conv_transpose2d,
            "relu": self._relu,
            "leaky_relu": self._leaky_relu,
            "prelu": self._leaky_relu,
            "threshold": self._threshold,
            "maximum": self._maximum,
            **dict.fromkeys(_CLAMPS, self._clamp),
            "pad": self._pad,
            "constant_pad_nd": self._pad,
            "replication_pad2d": self._pad,
            "neg": self._negative,
            "batch_norm": self._batch_norm,
            _FROZEN_NORM: self._batch_norm,
            "add": self._add,
            "sub": self._add,
            "rsub": self._add,
            "mul": self._by_constant,
            "div": self._by_constant,
            "pixel_shuffle": self._shuffle,
            "pixel_unshuffle": self._shuffle,
        }
        computed = [n for n in self.graph.nodes if n.op == "call_function"]
        for node in [n for n in computed if not self._is_constant(n)]:
            self._look_through(node)
        results = self._results()
        for node, (name, channels) in zip(self.given, self.inputs.items(), strict=True):
            self.names[node] = name
            self.values[name] = Value(name, channels)
        for node in computed:
            if node not in self.constants:
                op = _op_name(node)
                if node in self.same or op in _CHECKS:
                    continue
                self.names[node] = results.get(node, node.name)
                if node in self.moved:
                    if any(reader not in self.moved for reader in self._readers(node)):
                        self._move(node)
                elif op in handlers:
                    handlers[op](node)
                elif op in _CONVERSIONS:
                    raise self._unsupported(node, f"{op} ({_dtype(node)})")
                else:
                    raise self._unsupported(node, op.removeprefix("wrap_with_"))
        return Graph(self.stage, self.values, tuple(self.inputs), self.outputs, tuple(self.nodes))

    def _look_through(self, node: torch.fx.Node) -> None:
        """Note what a node is the same as, or whose elements it moves."""
        op, source = _op_name(node), node.args[0] if node.args else None
        if not isinstance(source, torch.fx.Node | list | tuple):
            return
        if op in MOVES and self._look_where(node, op):
            return
        if not isinstance(source, torch.fx.Node):
            return
        dropped = op in _DROPOUTS and node.args[2] is False
        converted = op in _CONVERSIONS and _dtype(node) == _dtype(source) == torch.float32
        shaped = op in _AS_OTHER and node.meta["val"].shape == source.meta["val"].shape
        shaped = shaped and _dtype(node) == torch.float32
        last = op in _CLAMPS and self._is_clipped_anyway(node)
        shaped = shaped or (op == "pad" and not any(node.args[1]))  # type: ignore[arg-type]
        if op in _SAME or dropped or converted or shaped or last:
            self.same[node] = source

    def _look_where(self, node: torch.fx.Node, op: str) -> bool:
        """Return whether a node moves elements of one value; note where they go."""
        given = [n for n in map(self._origin, node.all_input_nodes) if n not in self.constants]
        starts = {n: self.moved.get(n, (n, None)) for n in given}
        origins = {origin for origin, _ in starts.values()}
        tuples = any(isinstance(n.meta["val"], tuple | list) for n in origins)
        if len(origins) != 1 or tuples or depends_on_size(op, node.args):
            return False
        (origin,) = origins
        shape = origin.meta["val"].shape
        indexes = {n: positions(shape) if at is None else at for n, (_, at) in starts.items()}
        args, kwargs = torch.fx.node.map_arg(
            (node.args, node.kwargs),
            lambda n: self.constants[n] if n in self.constants else indexes[self._origin(n)],
        )
        moved = node.target(*args, **kwargs)  # type: ignore[operator]
        moved = moved.contiguous() if isinstance(moved, Tensor) else moved
        if isinstance(moved, Tensor) and stays(moved, shape):
            self.same[node] = origin
        else:
            self.moved[node] = origin, moved
        return True

    def _is_clipped_anyway(self, node: torch.fx.Node) -> bool:
        """Return whether all that a clamp takes away is no level of a picture."""
        bounds = _bounds(node)
        if self.stage != "synthesis" or bounds is None:
            return False
        while True:
            users = [user for user in node.users if _op_name(user) not in _CHECKS]
            if len(users) != 1:
                return False
            (user,) = users
            if user.op == "output":
                return bounds[0] <= _LEVELS[0] and bounds[1] >= _LEVELS[1]
            op = _op_name(user)
            if op in ("mul", "div", "add", "sub", "rsub"):
                others = [self._constant(a) for a in user.args[:2] if a is not node]
                if len(others) != 1 or others[0] is None or others[0].numel() != 1 or user.kwargs:
                    return False
                numbers = [float(others[0]) if a is not node else None for a in user.args[:2]]
                ends = [_computed(op, [b if n is None else n for n in numbers]) for b in bounds]
                bounds = min(ends), max(ends)
            elif op not in (*_SAME, *_CLAMPS, *_CONVERSIONS, *MOVES, "pixel_shuffle"):
                return False
            node = user

    def _origin(self, value: Any) -> Any:
        """Return the node that computes a value."""
        while value in self.same:
            value = self.same[value]
        return value

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
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        found = [self._origin(value) for value in output.args[0]]
        if len({n for n in found if isinstance(n, torch.fx.Node)}) != len(self.outputs):
            raise ConversionError(
                f"returns {len(found)} results, expected {', '.join(self.outputs)}", self.stage
            )
        return dict(zip(found, self.outputs, strict=True))

    def _source(self, node: torch.fx.Node, argument: object) -> str:
        """Return the value an argument is; a constant there is another operation."""
        origin = self._origin(argument)
        if origin not in self.names:
            raise self._unsupported(node, f"{_op_name(node)} of a constant")
        if origin in self.padded:
            raise self._unsupported(origin, "pad by zeros of what is no convolution alone")
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
        padding = _padding(args[4], weight.shape[2:], dilation)
        pad = self._origin(args[0])
        if pad in self.padded:
            zeros = self.padded[pad]
            padding = tuple(a + b for a, b in zip(padding, zeros, strict=True))  # type: ignore[assignment]
            source = self._source(node, pad.args[0])
        else:
            source = self._source(node, args[0])
        made = Conv2d(
            self._layer(node, args[1]),
            (source,),
            self.names[node],
            weight,
            np.zeros(weight.shape[0], np.float32) if bias is None else bias,
            _pair(args[3]),
            padding,
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
        path = self.owners.get(weight, node.name).removesuffix(".weight")
        return node.name if any(made.name == path for made in self.nodes) else path

    def _relu(self, node: torch.fx.Node) -> None:
        made = Relu(node.name, (self._source(node, node.args[0]),), self.names[node])
        self._emit(made, self._channels(node))

    def _leaky_relu(self, node: torch.fx.Node) -> None:
        """Read it as `slope * x + (1 - slope) * relu(x)`, slopes in all or per channel."""
        source, channels = self._source(node, node.args[0]), self._channels(node)
        slopes = self._constant(_filled(node, [None, 0.01])[1])
        if slopes is None:
            raise self._unsupported(node, f"{_op_name(node)} with a computed slope")
        slope = np.broadcast_to(slopes.double().numpy().reshape(-1), channels)
        positive, steep, flat = (f"{node.name}.{part}" for part in ("positive", "steep", "flat"))
        self._emit(Relu(positive, (source,), positive), channels)
        zeros = np.zeros(channels, np.float32)
        for name, read, factor in ((steep, positive, 1 - slope), (flat, source, slope)):
            self._emit(scale(name, read, name, factor.astype(np.float32), zeros), channels)
        self._emit(Add(node.name, (flat, steep), self.names[node]), channels)

    def _threshold(self, node: torch.fx.Node) -> None:
        if tuple(node.args[1:]) != (0, 0):
            raise self._unsupported(node, "threshold other than 0")
        self._relu(node)

    def _maximum(self, node: torch.fx.Node) -> None:
        value, other = sorted(node.args[:2], key=lambda argument: argument in self.constants)
        constant = self._constant(other)
        if constant is None or constant.any():
            raise self._unsupported(node, "maximum of other than a value and 0")
        made = Relu(node.name, (self._source(node, value),), self.names[node])
        self._emit(made, self._channels(node))

    def _clamp(self, node: torch.fx.Node) -> None:
        if _bounds(node) == (0.0, np.inf):
            self._relu(node)
            return
        raise self._unsupported(
            node,
            f"{_op_name(node)} other than to 0 and above, or to all of 0..255 at the very end of a "
            "synthesis",
        )

    def _pad(self, node: torch.fx.Node) -> None:
        """Note zeros, which the convolution that reads them adds; make a node of replication."""
        amounts: Any = node.args[1]
        mode, value = _filled(node, [None, None, "constant", 0.0])[2:4]
        mode = "replicate" if _op_name(node) == "replication_pad2d" else mode
        if _op_name(node) == "constant_pad_nd":
            mode, value = "constant", _filled(node, [None, None, 0.0])[2]
        left, right, top, bottom = (*amounts, 0, 0, 0, 0)[:4]
        if len(amounts) > 4 or min(amounts, default=0) < 0:
            raise self._unsupported(node, f"pad by {amounts}")
        padding = (top, left, bottom, right)
        if mode == "replicate":
            source = self._source(node, node.args[0])
            made = ReplicatePad(node.name, (source,), self.names[node], padding)
            self._emit(made, self._channels(node))
        elif mode == "constant" and not value:
            self.padded[node] = padding
            if any(_op_name(reader) != "conv2d" for reader in self._readers(node)):
                raise self._unsupported(node, "pad by zeros of what no convolution alone reads")
        else:
            raise self._unsupported(
                node, f"pad ({mode})" if mode != "constant" else "pad by a number"
            )

    def _negative(self, node: torch.fx.Node) -> None:
        ones = np.ones(self._channels(node))
        self._scale(node, node.args[0], -ones, 0 * ones)

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
        op, operands = _op_name(node), list(node.args[:2])
        operands = operands[::-1] if op == "rsub" else operands
        shapes = {tuple(argument.meta["val"].shape) for argument in node.all_input_nodes}
        if len(shapes) != 1:
            raise self._unsupported(node, f"{op} of different shapes")
        sources = [self._source(node, argument) for argument in operands]
        factor = _alpha(node) if op == "add" else -_alpha(node)
        channels = self._channels(node)
        if factor != 1.0:
            name, numbers = f"{node.name}.second", np.full(channels, factor, np.float32)
            self._emit(scale(name, sources[1], name, numbers, np.zeros_like(numbers)), channels)
            sources[1] = name
        self._emit(Add(node.name, (sources[0], sources[1]), self.names[node]), channels)

    def _by_constant(self, node: torch.fx.Node) -> None:
        """Read a sum, difference, product or quotient with a number, or a number per channel."""
        op, (left, right) = _op_name(node), node.args[:2]
        if op == "rsub":
            op, left, right = "sub", right, left
        first, second = self._constant(left), self._constant(right)
        if (first is None) == (second is None) or (op == "div" and second is None):
            raise self._unsupported(node, f"{op} of two values")
        others = [name for name in node.kwargs if name != "alpha"]
        if others:
            raise self._unsupported(node, f"{op} with {', '.join(others)}")
        alpha = _alpha(node)
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
        else:  # alpha belongs to the second operand
            sign = alpha if op == "add" else -alpha
            if second is not None:
                offset = sign * numbers
            else:
                factor, offset = sign * factor, numbers
        self._scale(node, value, factor, offset)

    def _constant(self, argument: object) -> Tensor | None:
        if isinstance(argument, int | float):
            return torch.tensor(float(argument))
        return self.constants.get(argument) if isinstance(argument, torch.fx.Node) else None

    def _channels(self, node: torch.fx.Node) -> int:
        return int(node.meta["val"].shape[1])

    def _move(self, node: torch.fx.Node) -> None:
        """Make a choice of channels, a shuffle, or both of what moves elements."""
        origin, moved = self.moved[node]
        shape = origin.meta["val"].shape
        found = as_shuffle(moved, shape) if isinstance(moved, Tensor) else None
        if found is None:
            raise self._unsupported(
                node, f"{_op_name(node)} that is neither a shuffle nor a choice of channels"
            )
        block, channels = found
        source, output, deep = self._source(node, origin), self.names[node], shape[1]
        if block < 0:
            deep *= block**2
            made = output if channels == [*range(deep)] else f"{node.name}.deep"
            self._emit(SpaceToDepth(node.name, (source,), made, -block), deep)
            source = made
        if channels != [*range(deep)]:
            weight = np.eye(deep, dtype=np.float32)[channels][:, :, None, None]
            made = output if block <= 1 else f"{node.name}.deep"
            bias = np.zeros(len(channels), np.float32)
            self._emit(Conv2d(f"{node.name}.chosen", (source,), made, weight, bias), len(bias))
            source = made
        if block > 1:
            self._emit(DepthToSpace(node.name, (source,), output, block), self._channels(node))

    def _readers(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """Return what reads a node or what is the same."""
        found = []
        for user in node.users:
            if user in self.same:
                found += self._readers(user) if self._origin(user) is node else []
            elif _op_name(user) not in _CHECKS:
                found.append(user)
        return found

    def _shuffle(self, node: torch.fx.Node) -> None:
        kind = DepthToSpace if _op_name(node) == "pixel_shuffle" else SpaceToDepth
        source, block = self._source(node, node.args[0]), operator.index(node.args[1])  # type: ignore[arg-type]
        self._emit(kind(node.name, (source,), self.names[node], block), self._channels(node))


def _alpha(node: torch.fx.Node) -> float:
    """Return what the second operand of a sum is multiplied with."""
    given: Any = node.kwargs.get("alpha", 1.0)
    return float(_filled(node, [None, None, given])[2])


def _dtype(node: torch.fx.Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)


def _bounds(node: torch.fx.Node) -> tuple[float, float] | None:
    """Return between what a clamp keeps values, None where it is no number."""
    op = _op_name(node)
    least, most = {
        "relu6": (0, 6),
        "hardtanh": (*_filled(node, [None, -1, 1])[1:3],),
        "clamp_max": (None, _filled(node, [None, None])[1]),
    }.get(op, (*_filled(node, [None, None, None])[1:3],))
    least, most = node.kwargs.get("min", least), node.kwargs.get("max", most)
    if not all(isinstance(bound, int | float | None) for bound in (least, most)):
        return None
    return (-np.inf if least is None else least), (np.inf if most is None else most)


def _computed(op: str, numbers: list[float]) -> float:
    left, right = numbers if op != "rsub" else reversed(numbers)
    if op == "div":
        return left / right if right else np.nan
    return {"mul": left * right, "add": left + right}.get(op, left - right)


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
