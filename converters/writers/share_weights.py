"""Store the numbers of all artefacts once: `weights.bin`, and a `.parts` file for each artefact.

Every writer has its own format, and the tensors stand in each as they are: whole, little-endian,
float16, float32, int8 or int32, in one of a few layouts. So they are found as strings of bytes,
without knowing the formats; what is not found stays literal, and the file that comes back is the
same to the byte.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgecodec.bundle.manifest import ArtefactEntry, Precision
from edgecodec.bundle.parts import SUFFIX, Parts, Slice, to_planes
from edgecodec.bundle.reading import PREDICTIONS, WEIGHTS
from edgecodec.converters.graph.convolutions import Convolution
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import DepthToSpace, SpaceToDepth
from edgecodec.converters.writers.predict_weights import predict_weights
from edgecodec.converters.writers.targets import check_precision
from edgecodec.runtimes.base import StageName

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""A shape that torch's order of a tensor can be given, and the order of these axes in a file."""

_WORTH = 256
"""Bytes of a tensor from which on a slice is smaller than what it replaces, also compressed."""
_STORED = {"f4": ("<f2", "<f4"), "i1": ("<i1",), "i4": ("<i4",)}
"""What writers store an array of a type as."""
_ORDERS = {
    1: ((0,),),
    # OIHW, OHWI, IHWO of depthwise ones, HWIO of matrix products, OWIH of rows of squares
    4: ((0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0), (2, 3, 1, 0), (0, 3, 1, 2)),
}


def share_weights(
    folder: Path,
    graphs: Mapping[tuple[StageName, Precision], Graph],
    artefacts: Sequence[ArtefactEntry],
) -> None:
    """Replace the files of artefacts by their parts, write `weights.bin` and `predictions.bin`.

    Files in which no tensor is found are left alone.

    Args:
        folder: the bundle, its artefacts written.
        graphs: by stage and precision, in torch's layout and channel order.
        artefacts: what to look at.
    """
    pool = _Pool()
    for entry in artefacts:
        stage: StageName = "analysis" if entry.stage == "analysis" else "synthesis"
        graph = graphs[stage, check_precision(entry.precision)]
        path = folder / entry.path
        for file in sorted(path.parent.glob(f"{path.stem}.*")):
            parts = find_parts(file.read_bytes(), graph, pool)
            if parts.slices:
                file.with_name(file.name + SUFFIX).write_bytes(parts.to_bytes())
                file.unlink()
    predictions = predict_weights(pool.data, pool.arrays)
    (folder / WEIGHTS).write_bytes(bytes(pool.data))
    if predictions:
        (folder / PREDICTIONS).write_bytes(predictions.to_bytes())


class _Pool:
    """The content of `weights.bin` as it grows; the same string is never added twice."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.arrays: dict[int, npt.NDArray[np.generic]] = {}
        self._known: dict[bytes, int] = {}

    def add(self, array: npt.NDArray[np.generic]) -> int:
        """Return where the planes of an array lie."""
        planes = to_planes(array.tobytes(), array.itemsize)
        if planes not in self._known:
            self._known[planes] = len(self.data)
            self.arrays[len(self.data)] = array
            self.data += planes
        return self._known[planes]


def find_parts(data: bytes, graph: Graph, pool: _Pool) -> Parts:
    """Find the tensors of a graph in a file, largest first; what is found is in the pool after."""
    blocks = sorted(
        {node.block for node in graph.nodes if isinstance(node, DepthToSpace | SpaceToDepth)}
    )
    nodes = [n for n in graph.nodes if isinstance(n, Convolution)]
    arrays = [a for n in nodes for a in (n.weight, n.bias)]
    taken: list[tuple[int, int, Slice]] = []
    for array in sorted(arrays, key=lambda a: -a.size):
        for form, (shape, axes), needle in _needles(array, blocks):
            begin = _find(data, needle, taken)
            if begin >= 0:
                piece = Slice(0, pool.add(form), form.itemsize, shape, axes)
                insort(taken, (begin, begin + len(needle), piece), key=lambda item: item[0])
                break
    slices, literals, end = [], [], 0
    for begin, after, piece in taken:
        literals.append(data[end:begin])
        slices.append(Slice(begin - end, piece.offset, piece.item, piece.shape, piece.axes))
        end = after
    return Parts(tuple(slices), b"".join([*literals, data[end:]]))


def _needles(
    array: npt.NDArray[np.generic], blocks: Sequence[int]
) -> Iterator[tuple[npt.NDArray[np.generic], Layout, bytes]]:
    """Yield the forms that writers store an array in, the likeliest first, each once.

    Yields:
        the array as a stored type, its layout, and the bytes that make.
    """
    seen = set()
    for layout in _layouts(array.shape, blocks):
        for stored in _STORED[array.dtype.str[1:]]:
            with np.errstate(over="ignore"):  # then its writer did not store it so
                form = array.astype(stored)
            needle = form.reshape(layout[0]).transpose(layout[1]).tobytes()
            if len(needle) >= _WORTH and needle not in seen:
                seen.add(needle)
                yield form, layout, needle


def _layouts(shape: tuple[int, ...], blocks: Sequence[int]) -> Iterator[Layout]:
    """Yield orders of axes; also with output or input channels in a shuffle's other order.

    See `channel_order.dcr_order`: of C * r * r channels, those of one position come together.
    """
    for order in _ORDERS.get(len(shape), ()):
        yield shape, order
    for block in blocks:
        for axis, size in enumerate(shape[:2]):
            if size % block**2 == 0:
                split = (*shape[:axis], size // block**2, block**2, *shape[axis + 1 :])
                for order in _ORDERS.get(len(shape), ()):
                    yield split, tuple(_split_axis(order, axis))


def _split_axis(order: Sequence[int], axis: int) -> Iterator[int]:
    """Yield an order in which an axis has become two, the second of them first."""
    for a in order:
        yield from (axis + 1, axis) if a == axis else (a + (a > axis),)


def _find(data: bytes, needle: bytes, taken: Sequence[tuple[int, int, Slice]]) -> int:
    """Return where bytes stand that no slice has taken yet, or -1."""
    begin = data.find(needle)
    while begin >= 0:
        over = [after for first, after, _ in taken if first < begin + len(needle) and begin < after]
        if not over:
            return begin
        begin = data.find(needle, max(over))
    return -1
