"""Stages of a codec as int8, their ranges measured on photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.int8.draft import Draft
from edgecodec.converters.int8.quantize import quantize_traced
from edgecodec.converters.int8.ranges import collect
from edgecodec.errors import ConversionError
from edgecodec.runtimes.base import StageName


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
            made[stage] = quantize_traced(graph, seen, exact=stage == "synthesis")
        except ConversionError as exc:
            advice = "leave out int8, or give more typical photos (--calibration)"
            raise ConversionError(f"{exc}; {advice}") from exc
    return made
