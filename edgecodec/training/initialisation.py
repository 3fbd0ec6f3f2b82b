"""A start for the networks: principal components of photos instead of random weights.

The residual blocks begin as the identity and the linear layers between them as a two-stage
Karhunen-Loeve transform of 16x16 blocks, so that step 0 is already a transform codec with the
right statistics; training then learns what no linear transform can do. A random start spends most
of a short training on finding the linear part (docs/experiments.md, 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecodec.arrays import UInt8Array
from edgecodec.format import tables as fixed
from edgecodec.format.strides import HYPER_STRIDE
from edgecodec.model import config as fmt
from edgecodec.model.network import NeuralCodec, ResidualBlock
from edgecodec.training.photos import CropStream

_FINE = 8
_CROPS = 4096
_CROP_SIZE = 64


def _blocks(photos: list[UInt8Array], seed: int) -> Tensor:
    """Return (N, 3, 64, 64) float32 crops in network units."""
    stream = CropStream(photos, batch=64, size=_CROP_SIZE, seed=seed, start=0)
    try:
        crops = [torch.from_numpy(stream.next()) for _ in range(_CROPS // 64)]
    finally:
        stream.close()
    x = torch.cat(crops).permute(0, 3, 1, 2).float()
    return (x - fmt.PIXEL_OFFSET) / fmt.PIXEL_UNIT


def _components(samples: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` strongest directions (count, D) of (N, D) and their deviations."""
    exact = samples.double()
    values, vectors = torch.linalg.eigh(exact.T @ exact / len(exact))
    order = torch.argsort(values, descending=True)[:count]
    return vectors.T[order].float(), values[order].clamp_min(1e-12).sqrt().float()


def _set(layer: nn.Module, weight: Tensor) -> None:
    assert isinstance(layer, nn.Conv2d)
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    assert layer.bias is not None
    layer.bias.zero_()


def _linear_layers(net: nn.Sequential) -> list[nn.Conv2d]:
    return [layer for layer in net if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def start_from_photos(codec: NeuralCodec, photos: list[UInt8Array], seed: int) -> None:
    """Give an untrained codec the principal components of `photos`.

    Between its layers a channel is divided by the square root of its deviation, half-way between
    pixels' own units and whitening, which keeps all channels within sight of one another for the
    blocks.

    Args:
        codec: not yet trained; changed in place.
        photos: (H, W, 3) uint8, what training crops from.
        seed: of the crops.
    """
    cfg = codec.cfg
    for net in (codec.g_a, codec.g_s):
        for block in net:
            if isinstance(block, ResidualBlock):
                for layer in (block.leave, block.contract):
                    _set(layer, torch.zeros_like(layer.weight))
    first, join, last = _linear_layers(codec.g_a)
    enter, split, leave = _linear_layers(codec.g_s)
    x = _blocks(photos, seed)
    patches = nn.functional.unfold(x, _FINE, stride=_FINE)  # (N, 3 * 64, L), channel, dy, dx
    samples = patches.transpose(1, 2).reshape(-1, 3 * _FINE**2)
    fine, fine_sigma = _components(samples, min(first.out_channels, samples.shape[1]))
    side = _CROP_SIZE // _FINE
    planes = (fine @ patches).reshape(len(x), -1, side, side)
    quads = nn.functional.unfold(planes, 2, stride=2).transpose(1, 2).reshape(-1, 4 * len(fine))
    widths = (join.out_channels, enter.out_channels, cfg.latent_channels)
    coarse, sigma = _components(quads, min(widths))
    fine_scale, coarse_scale = fine_sigma.sqrt(), sigma.sqrt()

    def padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
        out = torch.zeros(rows, columns)
        out[: matrix.shape[0], : matrix.shape[1]] = matrix[:rows, :columns]
        return out

    # The strongest come first, so that a narrower layer of the synthesis takes those.
    n1, n2, m = first.out_channels, join.out_channels, cfg.latent_channels
    s1, s2 = cfg.fine_channels, enter.out_channels
    quad_scale = fine_scale.repeat_interleave(4)
    kernels = padded(fine / fine_scale[:, None], n1, 3 * _FINE**2).reshape(n1, 3, _FINE, _FINE)
    _set(first, nn.functional.pad(kernels, [cfg.overlap] * 4))
    _set(join, padded(coarse * quad_scale / coarse_scale[:, None], n2, 4 * n1))
    _set(last, padded(torch.diag(coarse_scale), m, n2))
    _set(enter, padded(torch.diag(1.0 / coarse_scale), s2, m))
    _set(split, padded((coarse * coarse_scale[:, None] / quad_scale).T, 4 * s1, s2))
    _set(leave, padded((fine * fine_scale[:, None]).T, 3 * _FINE**2, s1))
    set_scales(codec, sigma * fmt.Y_UNIT)
    if cfg.flat_cells:
        set_flat_latents(codec)


def set_flat_latents(codec: NeuralCodec) -> None:
    """Give colours the latents that the analysis has for pictures of nothing else."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 255.0])] * 3)
    side = 4 * HYPER_STRIDE
    flat = corners[:, :, None, None].expand(-1, -1, side, side)
    y = codec.analyse(flat.to(codec.flat_bias.device))[0]
    middle = y[:, :, y.shape[2] // 2, y.shape[3] // 2].float().cpu() / fmt.Y_UNIT
    colours = (corners - fmt.PIXEL_OFFSET) / fmt.PIXEL_UNIT
    inputs = torch.cat([colours, torch.ones(len(colours), 1)], 1)
    solution = torch.linalg.lstsq(inputs, middle).solution
    codec.flat_weight.copy_(solution[:3].T)
    codec.flat_bias.copy_(solution[3])


def set_scales(codec: NeuralCodec, sigma: Tensor, mean: Tensor | None = None) -> None:
    """Make the scale index say each channel's deviation in steps, at every quality.

    Args:
        codec: changed in place.
        sigma: deviation of the channels of y, of as many as there are; the others are taken as 0.
        mean: (M,) of y; None leaves it at zero.
    """
    m = codec.cfg.latent_channels
    full = torch.full((m,), fixed.SCALE_MIN)
    full[: len(sigma)] = sigma
    gain = 2.0**fixed.HEAD_GAIN_LOG2
    unit = gain * fixed.log_scale_step()
    # Half a deviation: the hyper-latents will know which places are busy.
    codec.h_s.heads.bias[m:] = torch.log(0.5 * full / fixed.SCALE_MIN).clamp_min(0.0) / unit
    codec.index_bias.values.copy_(-codec.log_step_y.values / unit)
    if mean is not None:
        codec.h_s.heads.bias[:m] = mean / gain
