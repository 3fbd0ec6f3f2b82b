"""The two graphs a device runs, in torch: what every converter starts from and is judged by.

Input and output units are folded into weights and biases, so that pixels go in as levels 0..255
and latents as the integers the entropy decoder yields; so are the 1x1 convolutions beside the
latents (folding.py), which saves 0.26 kMAC per pixel on either side in the default shape.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from edgecodec.format import tables as fixed
from edgecodec.model import config as fmt
from edgecodec.model.folding import fold_latent_layers
from edgecodec.model.network import NeuralCodec


class AnalysisStage(nn.Module):
    """x (1, 3, H, W) levels -> y (1, M, H/16, W/16) and z (1, Z, H/32, W/32)."""

    def __init__(self, g_a: nn.Sequential, h_a: nn.Sequential) -> None:
        super().__init__()
        self.g_a, self.h_a = g_a, h_a

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the stage."""
        y = self.g_a(x)
        return y, self.h_a(y)


class SynthesisStage(nn.Module):
    """y_hat (1, M, h, w), integers in units of 1/16 -> x_hat (1, 3, 16h, 16w) in levels."""

    def __init__(self, g_s: nn.Sequential) -> None:
        super().__init__()
        self.g_s = g_s

    def forward(self, y_hat: Tensor) -> Tensor:
        """Run the stage."""
        return cast("Tensor", self.g_s(y_hat))


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def _scale_input(layer: nn.Conv2d, scale: float, offset: float = 0.0) -> None:
    """Make `layer(x)` what `layer((x - offset) * scale)` was; `layer` must not pad."""
    layer.weight.mul_(scale)
    assert layer.bias is not None
    layer.bias.sub_(layer.weight.double().sum((1, 2, 3)).float() * offset)


def _scale_output(layer: nn.Conv2d, scale: float, offset: float = 0.0) -> None:
    assert layer.bias is not None
    layer.weight.mul_(scale)
    layer.bias.mul_(scale).add_(offset)


@torch.no_grad()
def build_stages(codec: NeuralCodec) -> tuple[AnalysisStage, SynthesisStage]:
    """Return copies of the networks with all units folded in.

    Weights are rounded to half precision: artefacts store them in 16 bits and compute in 32, and
    every target, torch included, starts from the same numbers.
    """
    codec = copy.deepcopy(codec).float()
    g_a, h_a, g_s = codec.g_a, codec.h_a, codec.g_s
    _scale_output(_convolutions(g_a)[-1], fmt.Y_UNIT)
    _scale_input(_convolutions(g_s)[0], 2.0**-fixed.Y_FRAC / fmt.Y_UNIT)
    folded = fold_latent_layers(codec)
    if folded[0]:
        g_a = nn.Sequential(*list(g_a)[:-1])
    if folded[1]:
        g_s = nn.Sequential(*list(g_s)[1:])
    layers = [layer for net in (g_a, h_a, g_s) for layer in _convolutions(net)]
    _round_to_half(layers)
    _scale_input(_convolutions(g_a)[0], 1.0 / fmt.PIXEL_UNIT, fmt.PIXEL_OFFSET)
    # h_a follows g_a; its first layer pads with zeros, which a pure scale leaves as they are.
    _scale_input(_convolutions(h_a)[0], 1.0 / fmt.Y_UNIT)
    _scale_output(_convolutions(g_s)[-1], fmt.PIXEL_UNIT, fmt.PIXEL_OFFSET)
    _round_to_half(layers)  # powers of two change nothing but the smallest numbers of all
    return AnalysisStage(g_a, h_a).eval(), SynthesisStage(g_s).eval()


def _round_to_half(layers: list[nn.Conv2d]) -> None:
    for layer in layers:
        layer.weight.copy_(layer.weight.half().float())
