"""Look through operations that compute nothing, to those whose results they hand on.

What depends on no input is computed at once. A copy, or a conversion to the type that is there, is
what it copies. Reshapes, permutations, slices and the like are run on the positions of the elements
instead of on the elements. A chain of them that leaves all where they were is nothing at all; one
that does what a pixel shuffle does, or chooses channels, is that, whatever it was written as.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgecodec.arrays import Float32Array
from edgecodec.converters.graph.exported import ExportedModule, dtype, filled, op_name
from edgecodec.converters.graph.nodes import Size

_MOVES = {
    "cat", "channel_shuffle", "chunk", "expand", "flatten", "flip", "getitem", "index",
    "index_select", "movedim", "narrow", "permute", "reshape", "select", "slice", "split",
    "split_with_sizes", "squeeze", "stack", "swapaxes", "swapdims", "transpose", "unbind",
    "unflatten", "unsafe_split", "unsqueeze", "view", "_unsafe_view",
}  # fmt: skip
_SAME = ("getitem", "clone", "contiguous", "detach", "positive", "lift_fresh_copy")
"""What gives its first argument. Of tuples, those not of _MOVES come from a batch norm, which is
their first item."""
_AS_OTHER = ("expand_as", "reshape_as", "type_as", "view_as")
CONVERSIONS = ("to", "_to_copy", "type_as", "float", "cpu")
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
CLAMPS = ("clamp", "clamp_min", "clamp_max", "clip", "hardtanh", "relu6")
_CHECKS = ("_assert_tensor_metadata",)
_LEVELS = (0.0, 255.0)


class SeenThrough:
    """An exported module, and which of its operations are others or only move elements.

    Args:
        exported: the module.
        stage: `synthesis` if its results are levels of a picture.

    Attributes:
        constants: what depends on no input, by the node that holds or computes it.
        same: the node whose result a node gives, or one that is the same as that in turn.
        moved: whose elements a node gives, and where each of them was.
        operations: nodes that are neither constants, nor checks, nor the same as others.
    """

    def __init__(self, exported: ExportedModule, stage: str) -> None:
        self.stage = stage
        self.constants: dict[torch.fx.Node, Tensor] = dict(exported.stored)
        self.same: dict[torch.fx.Node, torch.fx.Node] = {}
        self.moved: dict[torch.fx.Node, tuple[torch.fx.Node, Any]] = {}
        calls = [n for n in exported.graph.nodes if n.op == "call_function"]
        computed = [n for n in calls if not self._is_constant(n)]
        for node in computed:
            self._look_through(node)
        self.operations = [n for n in computed if n not in self.same and op_name(n) not in _CHECKS]

    def origin(self, value: Any) -> Any:
        """Return the node that computes a value."""
        while value in self.same:
            value = self.same[value]
        return value

    def readers(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """Return what reads a node or what is the same."""
        found = []
        for user in node.users:
            if user in self.same:
                found += self.readers(user) if self.origin(user) is node else []
            elif op_name(user) not in _CHECKS:
                found.append(user)
        return found

    def constant(self, argument: object) -> Tensor | None:
        """Return an argument that depends on no input, a number as float32; None for others."""
        if isinstance(argument, int | float):
            return torch.tensor(float(argument))
        return self.constants.get(argument) if isinstance(argument, torch.fx.Node) else None

    def numbers(self, argument: object) -> Float32Array | None:
        """Return a tensor that depends on no input; None for others."""
        if not isinstance(argument, torch.fx.Node) or argument not in self.constants:
            return None
        return np.ascontiguousarray(self.constants[argument].float().numpy())

    def _look_through(self, node: torch.fx.Node) -> None:
        """Note what a node is the same as, or whose elements it moves."""
        op, source = op_name(node), node.args[0] if node.args else None
        if not isinstance(source, torch.fx.Node | list | tuple):
            return
        if op in _MOVES and self._look_where(node, op):
            return
        if not isinstance(source, torch.fx.Node):
            return
        dropped = op in _DROPOUTS and node.args[2] is False
        converted = op in CONVERSIONS and dtype(node) == dtype(source) == torch.float32
        shaped = op in _AS_OTHER and node.meta["val"].shape == source.meta["val"].shape
        shaped = shaped and dtype(node) == torch.float32
        last = op in CLAMPS and self._is_clipped_anyway(node)
        shaped = shaped or (op == "pad" and not any(node.args[1]))  # type: ignore[arg-type]
        if op in _SAME or dropped or converted or shaped or last:
            self.same[node] = source

    def _look_where(self, node: torch.fx.Node, op: str) -> bool:
        """Return whether a node moves elements of one value; note where they go."""
        given = [n for n in map(self.origin, node.all_input_nodes) if n not in self.constants]
        starts = {n: self.moved.get(n, (n, None)) for n in given}
        origins = {origin for origin, _ in starts.values()}
        tuples = any(isinstance(n.meta["val"], tuple | list) for n in origins)
        if len(origins) != 1 or tuples or _depends_on_size(op, node.args):
            return False
        (origin,) = origins
        shape = origin.meta["val"].shape
        indexes = {n: _positions(shape) if at is None else at for n, (_, at) in starts.items()}
        args, kwargs = torch.fx.node.map_arg(
            (node.args, node.kwargs),
            lambda n: self.constants[n] if n in self.constants else indexes[self.origin(n)],
        )
        moved = node.target(*args, **kwargs)  # type: ignore[operator]
        moved = moved.contiguous() if isinstance(moved, Tensor) else moved
        if isinstance(moved, Tensor) and _stays(moved, shape):
            self.same[node] = origin
        else:
            self.moved[node] = origin, moved
        return True

    def _is_clipped_anyway(self, node: torch.fx.Node) -> bool:
        """Return whether all that a clamp takes away is no level of a picture."""
        bounds = clamp_bounds(node)
        if self.stage != "synthesis" or bounds is None:
            return False
        while True:
            users = [user for user in node.users if op_name(user) not in _CHECKS]
            if len(users) != 1:
                return False
            (user,) = users
            if user.op == "output":
                return bounds[0] <= _LEVELS[0] and bounds[1] >= _LEVELS[1]
            op = op_name(user)
            if op in ("mul", "div", "add", "sub", "rsub"):
                others = [self.constant(a) for a in user.args[:2] if a is not node]
                if len(others) != 1 or others[0] is None or others[0].numel() != 1 or user.kwargs:
                    return False
                numbers = [float(others[0]) if a is not node else None for a in user.args[:2]]
                ends = [_computed(op, [b if n is None else n for n in numbers]) for b in bounds]
                bounds = min(ends), max(ends)
            elif op not in (*_SAME, *CLAMPS, *CONVERSIONS, *_MOVES, "pixel_shuffle"):
                return False
            node = user

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


def clamp_bounds(node: torch.fx.Node) -> tuple[float, float] | None:
    """Return between what a clamp keeps values, None where it is no number."""
    op = op_name(node)
    least, most = {
        "relu6": (0, 6),
        "hardtanh": (*filled(node, [None, -1, 1])[1:3],),
        "clamp_max": (None, filled(node, [None, None])[1]),
    }.get(op, (*filled(node, [None, None, None])[1:3],))
    least, most = node.kwargs.get("min", least), node.kwargs.get("max", most)
    if not all(isinstance(bound, int | float | None) for bound in (least, most)):
        return None
    return (-np.inf if least is None else least), (np.inf if most is None else most)


def _computed(op: str, numbers: list[float]) -> float:
    left, right = numbers if op != "rsub" else reversed(numbers)
    if op == "div":
        return left / right if right else np.nan
    return {"mul": left * right, "add": left + right}.get(op, left - right)


def _positions(shape: torch.Size) -> Tensor:
    """Return a tensor of a shape that holds where each of its elements is, int64."""
    return torch.arange(shape.numel()).reshape(shape)


def _depends_on_size(op: str, args: tuple[object, ...]) -> bool:
    """Return whether a move does something else, without an error, to a picture of another size.

    Args:
        op: one of _MOVES.
        args: the tensor, then what torch takes.
    """
    if op == "slice":
        _, dim, start, end = (*args, 0, None, None)[:4] if len(args) < 4 else args[:4]
        whole = start in (None, 0) and end in (None, sys.maxsize)
        return dim != 1 and not whole
    if op in ("split", "unsafe_split"):
        return args[2:] != (1,)
    if op == "index":
        indexes = args[1]
        return not (isinstance(indexes, list | tuple) and indexes[0] is None and len(indexes) == 2)
    return op in ("index_select", "narrow") and args[1] != 1


def _stays(moved: Tensor, shape: torch.Size) -> bool:
    """Return whether the elements of a tensor of a shape are where they were."""
    return moved.shape == shape and torch.equal(moved, _positions(shape))


def as_shuffle(moved: Tensor, shape: torch.Size) -> tuple[int, list[int]] | None:
    """Return what a move of feature maps is.

    Args:
        moved: which element of the input each element of the output is.
        shape: (1, C, H, W) of the input.

    Returns:
        A block and channels; None where it is nothing of this kind. A block of 1: the channels
        chosen. Above 1: they are chosen, then a pixel shuffle follows. Below -1: a pixel unshuffle
        by its magnitude, then channels are chosen.
    """
    if moved.ndim != 4 or len(moved) != 1 or len(shape) != 4:
        return None
    given, (height, width) = _positions(shape), moved.shape[2:]
    block = _block((shape[2], shape[3]), (height, width))
    if block == 0:
        return None
    if block > 1:
        moved = torch.pixel_unshuffle(moved, block)
    elif block < -1:
        given = torch.pixel_unshuffle(given, -block)
    known = {int(at): channel for channel, at in enumerate(given[0, :, 0, 0])}
    channels = [known.get(int(at), -1) for at in moved[0, :, 0, 0]]
    if -1 in channels or not torch.equal(given[:, channels], moved):
        return None
    return block, channels


def _block(before: Size, after: Size) -> int:
    """Return by how much a size becomes larger, negative where smaller; 0 where not evenly."""
    if before == after:
        return 1
    for sign, small, large in ((1, before, after), (-1, after, before)):
        block = large[0] // small[0]
        if large == (small[0] * block, small[1] * block):
            return sign * block
    return 0
