"""A float network as int8: branches in int8 codes, the residual trunk in float32.

`exact` makes a graph that every runtime whose kernels round once answers with the same bits
(docs/exact-int8.md): in the trunk only half-integers that float32 holds exactly, in the branches
only sums that are never halfway between two codes. Otherwise scales are free, for an analysis,
which need not be exact.

Every channel counts in units of its own, chosen by what photos need. Between two layers these
units cost nothing: they go into the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgecodec.converters.graph.convolutions import Conv2d
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.nodes import Add, Node, Rearrangement, Relu
from edgecodec.converters.int8.branches import Branches
from edgecodec.converters.int8.draft import Draft
from edgecodec.converters.int8.plan import partner_of
from edgecodec.converters.int8.ranges import Statistics, collect
from edgecodec.converters.int8.trunk import Trunk
from edgecodec.errors import ConversionError
from edgecodec.runtimes.base import StageName


def quantize(graph: Graph, seen: Mapping[str, Statistics], *, exact: bool) -> Draft:
    """Return the int8 graph of a float graph, and which of its values stands for which.

    Args:
        graph: convolutions, ReLUs, sums and pixel shuffles.
        seen: statistics of every value, inputs too.
        exact: see above.

    Raises:
        ConversionError: an integer does not fit, or there is nothing to make int8 of.
    """
    draft = Draft(graph, seen, exact=exact)
    if not draft.plan.int8:
        raise ConversionError("has no convolution beside its trunk to make int8 of", graph.stage)
    trunk = Trunk(draft)
    branches = Branches(draft, trunk)
    left = [node for node in graph.nodes if node not in draft.plan.fused.values()]
    while left:
        # A branch counts in units of the trunk it is added to, which may be made after it.
        node = next(n for n in left if all(name in draft.made for name in _needs(draft, n)))
        left.remove(node)
        match node:
            case Conv2d() if node.name in draft.plan.int8:
                branches.convolution(node)
            case Conv2d() if branches.can_make_trunk(node):
                branches.trunk_of_codes(node)
            case Conv2d():
                trunk.whole(node)
            case Add():
                trunk.add(node)
            case Relu():
                trunk.relu(node)
            case Rearrangement():
                trunk.rearrange(node)
    return draft


def _needs(draft: Draft, node: Node) -> list[str]:
    """Return the values that have to be there before a node."""
    other = partner_of(draft.graph, node.output) if node.name in draft.plan.int8 else None
    return [*node.inputs, *([other] if other is not None else [])]


def int8_drafts(
    graphs: Mapping[StageName, Graph],
    photos: Sequence[npt.NDArray[np.uint8]],
    latents: Sequence[npt.NDArray[np.int16]],
    progress: Callable[[str], None],
) -> dict[StageName, Draft]:
    """Return the analysis with free scales and the exact synthesis.

    Args:
        graphs: float graphs by stage.
        photos: (H, W, 3), sides multiples of 32.
        latents: y_hat (h, w, M) of files of these photos at several qualities.
        progress: told a line per stage.

    Raises:
        ConversionError: a network cannot be quantized.
    """
    given = {
        "analysis": [{"x": photo[None].astype(np.float32)} for photo in photos],
        "synthesis": [{"y_hat": y_hat[None].astype(np.float32)} for y_hat in latents],
    }
    made: dict[StageName, Draft] = {}
    for stage, graph in graphs.items():
        runs = given[stage]
        progress(f"measuring the ranges of the {stage} on {len(runs)} inputs")
        seen = collect(graph, runs)
        try:
            made[stage] = quantize(graph, seen, exact=stage == "synthesis")
        except ConversionError as exc:
            advice = "leave out int8, or give more typical photos (--calibration)"
            raise ConversionError(f"{exc}; {advice}") from exc
    return made
