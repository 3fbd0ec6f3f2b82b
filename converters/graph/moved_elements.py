"""Operations that only move elements, recognised by where each element ends up.

Reshapes, permutations, slices and the like are run on the positions of the elements instead of on
the elements. A chain of them that leaves all where they were is nothing at all; one that does what
a pixel shuffle does, or chooses channels, is that, whatever it was written as.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from edgecodec.converters.graph.nodes import Size

MOVES = {
    "cat", "channel_shuffle", "chunk", "expand", "flatten", "flip", "getitem", "index",
    "index_select", "movedim", "narrow", "permute", "reshape", "select", "slice", "split",
    "split_with_sizes", "squeeze", "stack", "swapaxes", "swapdims", "transpose", "unbind",
    "unflatten", "unsafe_split", "unsqueeze", "view", "_unsafe_view",
}  # fmt: skip


def positions(shape: torch.Size) -> Tensor:
    """Return a tensor of a shape that holds where each of its elements is, int64."""
    return torch.arange(shape.numel()).reshape(shape)


def depends_on_size(op: str, args: tuple[object, ...]) -> bool:
    """Return whether a move does something else, without an error, to a picture of another size.

    Args:
        op: one of MOVES.
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


def stays(moved: Tensor, shape: torch.Size) -> bool:
    """Return whether the elements of a tensor of a shape are where they were."""
    return moved.shape == shape and torch.equal(moved, positions(shape))


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
    given, (height, width) = positions(shape), moved.shape[2:]
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
