"""A codec, read for conversion: networks, their graphs and the integer tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgecodec.arrays import Float32Array
from edgecodec.bundle.reading import short_id
from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.graph import Graph
from edgecodec.converters.graph.receptive_field import halo
from edgecodec.converters.graph.tensors import channels_first, channels_last
from edgecodec.converters.sources.own_codec import load_own_codec, names_function
from edgecodec.converters.sources.own_stages import own_stages
from edgecodec.errors import ConversionError
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE, LATENTS_PER_HYPER, padded_side
from edgecodec.format.tables import Y_FRAC, Tables
from edgecodec.lazy import lazy_property
from edgecodec.model.checkpoint import load_codec
from edgecodec.model.export_tables import export_tables
from edgecodec.model.network import NeuralCodec
from edgecodec.model.stages import build_stages
from edgecodec.runtimes.base import STAGES, StageName

_LARGEST = (1 << 15 - Y_FRAC) - 1
_FEW = 1e-3


@dataclass(frozen=True, eq=False)
class Source:
    """A codec, read: networks, their graphs and the integer tables."""

    modules: Mapping[StageName, nn.Module]
    graphs: Mapping[StageName, Graph]
    tables: bytes

    @torch.inference_mode()
    def analyse(self, photo: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        """Map (H, W, 3) to y and z, (h, w, C) each, by the reference.

        Raises:
            ConversionError: y is not finite, or leaves the range of y_hat more than now and then.
        """
        y, z = (channels_last(v)[0] for v in self.modules["analysis"](channels_first(photo[None])))
        if not (np.isfinite(y).all() and np.isfinite(z).all()):
            raise ConversionError("gives y or z that is not finite", "analysis")
        if np.mean(np.abs(y) > _LARGEST) > _FEW:
            raise ConversionError(
                f"y reaches {np.abs(y).max():.0f}, y_hat only {_LARGEST}; divide y and the steps "
                "by a power of two",
                "analysis",
            )
        return y, z

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

    @lazy_property
    def parsed_tables(self) -> Tables:
        """What is in `tables`."""
        return Tables.from_bytes(self.tables)

    @property
    def analysis_field(self) -> int:
        """Pixels that the analysis of a tile can see around it, a multiple of HYPER_STRIDE."""
        pixels = halo(self.graphs["analysis"], HYPER_STRIDE, {"y": LATENTS_PER_HYPER, "z": 1})
        return padded_side(pixels)

    @property
    def synthesis_halo(self) -> int:
        """Latents that the synthesis of a tile must see around it."""
        return halo(self.graphs["synthesis"], 1, {"x_hat": LATENT_STRIDE})


def read_source(checkpoint: Path | str) -> Source:
    """Read a checkpoint of ours, or a codec by the function that returns it.

    Args:
        checkpoint: a file that `edgecodec train` wrote, or `file.py:function` or
            `package.module:function` (see `edgecodec.converters.sources.own_codec`).

    Raises:
        ConversionError: it cannot be read, or a network cannot be converted.
    """
    if names_function(str(checkpoint)):
        stages = own_stages(load_own_codec(str(checkpoint)))
        return _source(stages.analysis, stages.synthesis, stages.tables)
    try:
        codec = load_codec(Path(checkpoint))
        _check_format(codec)
        _check_weights(codec)
        return _source(*build_stages(codec), export_tables(codec))
    except ValueError as exc:
        raise ConversionError(" ".join(str(exc).split())) from exc


def _check_format(codec: NeuralCodec) -> None:
    """Refuse an entropy model that version 1 of the file format has no place for."""
    if codec.cfg.z_hidden or codec.cfg.flat_cells:
        raise ConversionError(
            "this codec predicts hyper-latents or codes cells of one colour (--shape second); that "
            "needs version 2 of the file format; convert a codec of --shape first"
        )


def _source(analysis: nn.Module, synthesis: nn.Module, tables: bytes) -> Source:
    modules: dict[StageName, nn.Module] = {"analysis": analysis, "synthesis": synthesis}
    for stage, module in modules.items():
        _check_weights(module, stage)
    channels = Tables.from_bytes(tables).latent_channels
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
    return Source(modules, graphs, tables)


def _check_weights(module: nn.Module, stage: str = "") -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ConversionError(f"{name} is not finite", stage)


def _check_finite(graph: Graph) -> None:
    for node in graph.nodes:
        for what, array in node.arrays().items():
            if not np.isfinite(array).all():
                raise ConversionError(f"{node.name}.{what} is not finite", graph.stage)
