"""A checkpoint, read for conversion: networks, their graphs and the integer tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgecodec.bundle import short_id
from edgecodec.converters.graph import Graph
from edgecodec.converters.parity import channels_first, channels_last
from edgecodec.converters.torch_to_graph import graph_from_module
from edgecodec.errors import ConversionError
from edgecodec.model.checkpoint import load_codec
from edgecodec.model.network import NeuralCodec
from edgecodec.model.stages import build_stages
from edgecodec.model.tables import export_tables
from edgecodec.runtimes.base import STAGES, Float32Array, StageName


@dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint, read: networks, their graphs and the integer tables."""

    codec: NeuralCodec
    modules: Mapping[StageName, nn.Module]
    graphs: Mapping[StageName, Graph]
    tables: bytes

    @torch.inference_mode()
    def analyse(self, photo: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        """Map (H, W, 3) to y and z, (h, w, C) each, by the reference."""
        y, z = self.modules["analysis"](channels_first(photo[None]))
        return channels_last(y)[0], channels_last(z)[0]

    @torch.inference_mode()
    def synthesise(self, y_hat: npt.NDArray[np.int16]) -> Float32Array:
        """Map y_hat (h, w, M) to (H, W, 3), by the reference."""
        x_hat: Float32Array = channels_last(self.modules["synthesis"](channels_first(y_hat[None])))[
            0
        ]
        return x_hat

    @property
    def model_id(self) -> str:
        """Identify the weights."""
        return short_id(b"".join(self.graphs[stage].weights_digest() for stage in STAGES))


def read_source(checkpoint: Path) -> Source:
    """Read a checkpoint.

    Raises:
        ConversionError: it cannot be read, or a network cannot be converted.
    """
    try:
        codec = load_codec(checkpoint)
        analysis, synthesis = build_stages(codec)
        tables = export_tables(codec)
    except ValueError as exc:
        raise ConversionError(" ".join(str(exc).split())) from exc
    channels = codec.cfg.latent_channels
    graphs: dict[StageName, Graph] = {
        "analysis": graph_from_module(
            analysis, stage="analysis", inputs={"x": 3}, outputs=("y", "z")
        ),
        "synthesis": graph_from_module(
            synthesis, stage="synthesis", inputs={"y_hat": channels}, outputs=("x_hat",)
        ),
    }
    for graph in graphs.values():
        _check_finite(graph)
    return Source(codec, {"analysis": analysis, "synthesis": synthesis}, graphs, tables)


def _check_finite(graph: Graph) -> None:
    for node in graph.nodes:
        for what in ("weight", "bias"):
            array = getattr(node, what, None)
            if array is not None and not np.isfinite(array).all():
                raise ConversionError(f"{node.name}.{what} is not finite", graph.stage)
