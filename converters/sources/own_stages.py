"""The two stages of a codec that was not trained here, tried out before anything is converted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from edgecodec.converters.sources.own_codec import TrainedCodec, told
from edgecodec.errors import BundleError, ConfigError, ConversionError
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE, LATENTS_PER_HYPER
from edgecodec.format.tables import STEP_FRAC, Y_FRAC, Tables
from edgecodec.runtimes.base import StageName

_TRIED = (2 * HYPER_STRIDE, 3 * HYPER_STRIDE)
"""Height and width of what the networks are tried on; not square, so that swapped sides show."""


class OwnAnalysis(nn.Module):
    """x to y and z; z is zero where the codec has none."""

    def __init__(self, network: nn.Module, latent_channels: int, *, makes_z: bool) -> None:
        super().__init__()
        self.network, self.makes_z = network, makes_z
        self.nothing = nn.Conv2d(latent_channels, 1, 1, stride=LATENTS_PER_HYPER)
        nn.init.zeros_(self.nothing.weight)
        nn.init.zeros_(cast("Tensor", self.nothing.bias))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the stage."""
        if self.makes_z:
            y, z = self.network(x)
            return y, z
        found = self.network(x)
        y = found if isinstance(found, Tensor) else found[0]
        return y, self.nothing(y)


class OwnSynthesis(nn.Module):
    """y_hat, whole numbers in units of 1/16, to x_hat."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, y_hat: Tensor) -> Tensor:
        """Run the stage."""
        return cast("Tensor", self.network(y_hat * 2.0**-Y_FRAC))


@dataclass(frozen=True, eq=False)
class OwnStages:
    """What was found to fit together.

    Attributes:
        analysis: x to y and z.
        synthesis: whole numbers in units of 1/16 to x_hat.
        tables: content of `tables.bin`.
    """

    analysis: nn.Module
    synthesis: nn.Module
    tables: bytes


def own_stages(codec: TrainedCodec) -> OwnStages:
    """Return the stages of a codec, in evaluation mode on the CPU.

    Raises:
        ConversionError: a part is not what `TrainedCodec` says; tells which and how.
    """
    data, tables = read_tables(codec.tables)
    analysis, synthesis = (
        _network(codec.analysis, "analysis"),
        _network(codec.synthesis, "synthesis"),
    )
    m, z = tables.latent_channels, tables.hyper_channels
    height, width = _TRIED
    found = _try(analysis, (1, 3, height, width), "analysis")
    if len(found) not in (1, 2):
        raise ConversionError(f"returns {len(found)} results, expected y, or y and z", "analysis")
    _check_map(found[0], "y", m, LATENT_STRIDE)
    if len(found) == 2:
        _check_map(found[1], "z", z, HYPER_STRIDE)
    elif z != 1:
        raise ConversionError(
            f"returns no z, and the tables are for {z} channels of it", "analysis"
        )
    shape = (1, m, height // LATENT_STRIDE, width // LATENT_STRIDE)
    pictures = _try(synthesis, shape, "synthesis")
    if len(pictures) != 1 or pictures[0].shape != (1, 3, height, width):
        made = ", ".join(str(tuple(picture.shape)) for picture in pictures)
        raise ConversionError(
            f"makes {made} of y_hat {shape}, expected x_hat (1, 3, {height}, {width})", "synthesis"
        )
    return OwnStages(
        OwnAnalysis(analysis, m, makes_z=len(found) == 2).eval(),
        OwnSynthesis(synthesis).eval(),
        data,
    )


def read_tables(given: object) -> tuple[bytes, Tables]:
    """Return the content of `tables.bin` and what is in it.

    Raises:
        ConversionError: no tables, or such as no codec can use.
    """
    try:
        if isinstance(given, Tables):
            given = given.to_bytes()
        if not isinstance(given, bytes):
            kind = type(given).__name__
            raise ConfigError(f"a {kind}, neither edgecodec.format.tables.Tables nor bytes")
        tables = Tables.from_bytes(given)
    except (BundleError, ConfigError) as exc:
        raise ConversionError(f"tables: {exc}") from exc
    least = int(tables.step_y.min())
    if least < 1 << STEP_FRAC:
        raise ConversionError(
            f"tables: a step of {least / 2 ** (Y_FRAC + STEP_FRAC):.3g} is finer than 1/16, the "
            "unit of y_hat; multiply y and the steps by a power of two"
        )
    if np.array_equal(tables.step_y[0], tables.step_y[-1]):
        raise ConversionError("tables: step_y is the same at qualities 1 and 100; it must fall")
    if not (np.isfinite(tables.gain_z).all() and (tables.gain_z > 0).all()):
        raise ConversionError("tables: gain_z is not finite and positive")
    return given, tables


def _network(value: object, stage: StageName) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise ConversionError(f"is a {type(value).__name__}, not a torch.nn.Module", stage)
    try:
        return value.cpu().float().eval()
    except Exception as exc:  # weights without data, as of the meta device; scripted modules
        raise ConversionError(f"cannot be moved to the CPU, {told(exc)}", stage) from exc


def _try(network: nn.Module, shape: Sequence[int], stage: StageName) -> list[Tensor]:
    """Return what a network makes of zeros."""
    try:
        with torch.inference_mode():
            found = network(torch.zeros(*shape))
    except Exception as exc:
        raise ConversionError(
            f"fails on float32 of shape {tuple(shape)}, {told(exc)}", stage
        ) from exc
    results = list(found) if isinstance(found, tuple | list) else [found]
    for result in results:
        if not isinstance(result, Tensor):
            raise ConversionError(f"returns a {type(result).__name__}, no tensor", stage)
        if result.dtype != torch.float32:
            raise ConversionError(f"returns {result.dtype}, not torch.float32", stage)
    return results


def _check_map(found: Tensor, name: str, channels: int, stride: int) -> None:
    height, width = (n // stride for n in _TRIED)
    shape = tuple(found.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[2:] != (height, width):
        raise ConversionError(
            f"{name} has shape {shape} for a picture of {_TRIED[0]} x {_TRIED[1]}; the format has "
            f"one per {stride} x {stride} pixels: (1, {channels}, {height}, {width}); "
            "pixel_shuffle and pixel_unshuffle change the stride",
            "analysis",
        )
    if shape[1] != channels:
        raise ConversionError(
            f"{name} has {shape[1]} channels, the tables are for {channels}", "analysis"
        )
