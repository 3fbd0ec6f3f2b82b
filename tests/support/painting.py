"""A tiny codec that works without training: colours of 8x8 squares, as sums and differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from edgecodec.model.checkpoint import save_checkpoint
from edgecodec.model.config import CodecConfig
from edgecodec.model.network import NeuralCodec, ResidualBlock

CONFIG = CodecConfig(
    latent_channels=12,
    hyper_channels=4,
    fine_channels=8,
    fine_blocks=1,
    coarse_channels=16,
    coarse_blocks=1,
    hyper_analysis_channels=8,
    hyper_hidden=8,
    hyper_features=4,
)
GAIN = 1.5
"""So small that the steps of low qualities show."""
HAAR = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2.0
"""Of the four squares that a latent covers: rows are sum and differences."""
COLOURS = 3


def _bias(layer: nn.Conv2d) -> torch.Tensor:
    assert layer.bias is not None
    return layer.bias


def _part(layer: nn.Module, weight: torch.Tensor) -> None:
    """Put a weight into the corner of a layer's, zeros elsewhere."""
    assert isinstance(layer, nn.Conv2d)
    layer.weight.zero_()
    _bias(layer).zero_()
    layer.weight[tuple(slice(n) for n in weight.shape)] = weight


@torch.no_grad()
def painting_codec(seed: int = 0) -> NeuralCodec:
    """Return a codec whose quality grows with its rate; its blocks change little, at random."""
    torch.manual_seed(seed)
    codec = NeuralCodec(CONFIG)
    for block in codec.modules():
        if isinstance(block, ResidualBlock):
            for layer in (block.leave, block.contract):
                layer.weight.mul_(0.05)
                _bias(layer).zero_()
    first, down, last = codec.g_a[0], codec.g_a[2], codec.g_a[4]
    eye = torch.eye(COLOURS)
    _part(first, GAIN / 64 * eye[:, :, None, None].expand(-1, -1, 8, 8))
    # Latents: for each of HAAR, for each colour.
    _part(down, torch.einsum("hs,oc->hocs", HAAR, eye).reshape(12, COLOURS, 2, 2))
    _part(last, torch.eye(12)[:, :, None, None])
    enter, up, paint = codec.g_s[0], codec.g_s[2], codec.g_s[5]
    _part(enter, torch.eye(12)[:, :, None, None])
    # torch's pixel shuffle takes channel c * 4 + s for colour c of square s.
    _part(up, torch.einsum("hs,oc->oshc", HAAR, eye).reshape(12, 12)[:, :, None, None])
    _part(paint, eye.repeat_interleave(64, 0)[:, :, None, None] / GAIN)
    return codec


@torch.no_grad()
def spoil(block: nn.Module, height: float = 20.0) -> None:
    """Let two channels of a block carry a height that only their difference is free of.

    In float32 little changes; in int8 a code stands for a large step of both.
    """
    assert isinstance(block, ResidualBlock)
    _bias(block.enter)[:2] = height
    block.enter.weight[1] = 0.0
    block.depthwise.weight[:2] = 0.0
    block.depthwise.weight[:2, :, 1, 1] = 1.0
    _bias(block.depthwise)[:2] = 0.0
    block.leave.weight[:, 0] = 0.5
    block.leave.weight[:, 1] = -0.5


@torch.no_grad()
def lean_on(codec: NeuralCodec, height: float = 1.5) -> None:
    """Let the first block of the synthesis do half of the work: it adds what it reads."""
    block, after = codec.g_s[1], codec.g_s[2]
    assert isinstance(block, ResidualBlock)
    assert isinstance(after, nn.Conv2d)
    eye = torch.eye(CONFIG.coarse_channels)[:, :, None, None]
    for layer in (block.enter, block.leave):
        _part(layer, eye)
    _bias(block.enter)[:] = height
    _bias(block.leave)[:] = -height
    block.depthwise.weight.zero_()
    block.depthwise.weight[:, :, 1, 1] = 1.0
    _bias(block.depthwise).zero_()
    after.weight.mul_(0.5)


def save_painting_codec(path: Path, codec: NeuralCodec | None = None) -> Path:
    """Write a checkpoint."""
    weights = (painting_codec() if codec is None else codec).state_dict()
    save_checkpoint(path, {"config": CONFIG.to_dict(), "weights": weights, "step": 0})
    return path


def picture(seed: int, height: int = 64, width: int = 96) -> Image.Image:
    """Return squares of 8 pixels whose colours change smoothly."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    squares = coarse.resize((width // 8, height // 8), Image.Resampling.BICUBIC)
    return squares.resize((width, height), Image.Resampling.NEAREST)
