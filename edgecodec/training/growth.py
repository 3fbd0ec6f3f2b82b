"""A start for a larger shape: the weights of a trained codec of a smaller one.

Whatever is wider begins as a codec that does what the smaller one did (Net2Net, Chen, Goodfellow,
Shlens 2015, arXiv:1511.05641): channels that are new compute something from the start, but nothing
old reads them yet; zeros on one side let gradients into the other at the first step. Where the
synthesis is narrower inside its blocks, or has fewer of them, what is missed least goes, and the
rest makes up for it as well as it can.
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn

from edgecodec.format import tables as fixed
from edgecodec.model import config as fmt
from edgecodec.model.config import CodecConfig
from edgecodec.model.network import NeuralCodec, QualityTable, ResidualBlock
from edgecodec.training.initialisation import set_flat_latents

_QUALITIES = (30.0, 60.0, 90.0)
"""Of the smaller codec, at which latents are taken to judge what its synthesis misses least."""

_NEW_DEVIATION = 0.3
"""Deviation of new latents in steps at the highest quality: coded there, and skipped where steps
are coarser."""

_RIDGE = 1e-6

_ANY = (
    "lambda_min", "lambda_max", "fine_expansion", "coarse_expansion", "replicate", "z_hidden",
    "flat_cells",
)  # fmt: skip
"""Fields that may change in either direction."""


@torch.no_grad()
def grow(codec: NeuralCodec, cfg: CodecConfig, images: Tensor) -> NeuralCodec:
    """Return a codec of the shape `cfg` that begins with what `codec` knows.

    Args:
        codec: trained; stays as it is.
        cfg: at least as wide everywhere but within the blocks of the synthesis, whose fine ones
            may also be fewer.
        images: (N, 3, H, W) float32, levels 0..255, sides multiples of 32: crops of photos.

    Raises:
        ValueError: `codec` cannot be grown to that shape.
    """
    check_growth(codec.cfg, cfg)
    small = copy.deepcopy(codec).eval()
    latents = torch.cat([_latents(small, images, q) for q in _QUALITIES])
    pixels = (images - fmt.PIXEL_OFFSET) / fmt.PIXEL_UNIT
    small.g_s = _smaller_synthesis(
        small.g_s, cfg, latents / fmt.Y_UNIT, pixels.repeat(len(_QUALITIES), 1, 1, 1)
    )
    grown = NeuralCodec(cfg).eval()
    for name in ("g_a", "h_a", "g_s"):
        _widen_chain(getattr(small, name), getattr(grown, name))
    _widen_hyper_synthesis(small, grown)
    _resample_tables(small, grown)
    _settle_new_latents(small, grown, images)
    if cfg.flat_cells:
        set_flat_latents(grown)
    return grown


def check_growth(old: CodecConfig, new: CodecConfig) -> None:
    """Refuse shapes that have no place for all that is kept.

    Raises:
        ValueError: a number of the new shape is too small, or must be that of the old one.
    """
    if old.z_hidden or old.flat_cells:
        raise ValueError("cannot be grown: it predicts hyper-latents or codes flat cells already")
    a, b = _counts(old), _counts(new)
    growing = ("latent", "fine_channels", "coarse_channels", "depthwise", "overlap", "analysis")
    for name in a:
        if name == "fine_blocks":
            fits, words = b[name] <= a[name], "more than"
        elif name.startswith(growing) and not name.endswith("blocks"):
            fits, words = b[name] >= a[name], "less than"
        else:
            fits, words = b[name] == a[name], "not"
        if not fits:
            raise ValueError(f"cannot be grown to that shape: {name} {b[name]}, {words} {a[name]}")


def _counts(cfg: CodecConfig) -> dict[str, int]:
    """Return the numbers that growth depends on; those of the analysis in full."""
    counts: dict[str, int] = cfg.to_dict()
    for name in ("fine_channels", "fine_blocks", "coarse_channels", "coarse_blocks"):
        counts[f"analysis_{name}"] = counts[f"analysis_{name}"] or counts[name]
    for name in _ANY:
        del counts[name]
    return counts


def _latents(codec: NeuralCodec, images: Tensor, quality: float) -> Tensor:
    """Return y_hat of images."""
    q = torch.full((len(images),), quality, device=images.device)
    y, z = codec.analyse(images)
    z_fix = codec.code_hyper(z * codec.log_enc_z(q).exp()[:, :, None, None], None, q).z_fix
    return codec.code_given(y, z_fix, q).y_hat


def _smaller_synthesis(
    net: nn.Sequential, cfg: CodecConfig, latents: Tensor, images: Tensor
) -> nn.Sequential:
    """Return a synthesis with as few fine blocks, as narrow inside, as `cfg` has them.

    Args:
        net: the whole one; stays as it is.
        cfg: of the codec to be.
        latents: (N, M, h, w), y_hat in units of 16.
        images: (N, 3, 16h, 16w) around zero, what they stand for.
    """
    layers = list(net)
    fine = layers.index(next(m for m in layers if isinstance(m, nn.PixelShuffle)))
    blocks = [i for i, m in enumerate(layers) if isinstance(m, ResidualBlock)]
    widths = {
        i: (cfg.fine_expansion or 2 * cfg.fine_channels)
        if i > fine
        else (cfg.coarse_expansion or 2 * cfg.coarse_channels)
        for i in blocks
    }
    spare = [i for i in blocks if i > fine]
    excess = len(spare) - cfg.fine_blocks
    narrower = any(widths[i] < layers[i].expand.out_channels for i in blocks)  # type: ignore[union-attr, operator]
    if not excess and not narrower:
        return net
    best, least = net, math.inf
    for dropped in itertools.combinations(spare, excess):
        kept = [i for i in range(len(layers)) if i not in dropped]
        smaller = _fitted_chain(net, kept, widths, latents)
        error = float((smaller(latents) - images).square().mean())
        if error < least:
            best, least = smaller, error
    return best


def _fitted_chain(
    net: nn.Sequential, kept: list[int], widths: dict[int, int], x: Tensor
) -> nn.Sequential:
    """Return some layers of a chain, fitted to do what all of them did.

    In the order of the data the last layer of each block, and of the chain, is fitted by least
    squares to what came out of `net` there, or after the blocks that are missing behind it.

    Args:
        net: the whole chain.
        kept: places of its layers; only blocks are missing.
        widths: units per block, by place.
        x: what goes in.
    """
    outputs, out = [], x
    for layer in net:
        outputs.append(out := layer(out))
    result = []
    last = max(i for i in kept if isinstance(net[i], nn.Conv2d))
    for place, after in itertools.pairwise([*kept, len(net)]):
        layer, target = copy.deepcopy(net[place]), outputs[after - 1]
        if isinstance(layer, ResidualBlock):
            x = x + layer.leave(layer.depthwise(torch.relu(layer.enter(x))))
            units = torch.relu(layer.expand(x))
            chosen, layer.contract = _fit(units, target - x, widths[place])
            layer.expand = _rows(layer.expand, chosen)
            x = x + layer.contract(units[:, chosen])
        else:
            if place == last:
                _, layer = _fit(x, target, x.shape[1])
            x = layer(x)
        result.append(layer)
    return nn.Sequential(*result)


def _fit(inputs: Tensor, target: Tensor, count: int) -> tuple[list[int], nn.Conv2d]:
    """Return `count` of the inputs and the 1x1 convolution of these that comes nearest a target.

    One input after another goes, each time the one whose part the others make up for best
    (optimal brain surgeon, Hassibi, Stork 1993, on the outputs of one layer).

    Args:
        inputs: (N, U, h, w).
        target: (N, C, h, w).
        count: at most, of the inputs to keep.
    """
    x, y = (t.movedim(1, -1).flatten(0, -2).double() for t in (inputs, target))
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    covariance, cross = x.T @ x / len(x), y.T @ x / len(x)
    covariance += torch.eye(len(x_mean)) * _RIDGE * covariance.diagonal().mean()
    kept = list(range(len(x_mean)))
    while True:
        inverse = torch.linalg.inv(covariance[kept][:, kept])
        weight = cross[:, kept] @ inverse
        if len(kept) <= count:
            break
        kept.pop(int((weight.square().sum(0) / inverse.diagonal()).argmin()))
    layer = nn.Conv2d(len(kept), len(y_mean), 1)
    layer.weight.copy_(weight[:, :, None, None])
    _bias(layer).copy_(y_mean - weight @ x_mean[kept])
    return kept, layer


def _rows(layer: nn.Conv2d, chosen: list[int]) -> nn.Conv2d:
    """Return a 1x1 convolution with some of the outputs of another."""
    result = nn.Conv2d(layer.in_channels, len(chosen), 1)
    result.weight.copy_(layer.weight[chosen])
    _bias(result).copy_(_bias(layer)[chosen])
    return result


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _widen_chain(old: nn.Sequential, new: nn.Sequential) -> None:
    """Copy the layers of a chain into a wider one of the same layers.

    What is new in a layer keeps its random weights; old outputs have zeros for new inputs, and
    longer filters zeros around.
    """
    convolutions = ([m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (old, new))
    for mine, theirs in zip(*convolutions, strict=True):
        outputs, inputs = mine.weight.shape[:2]
        border = (theirs.weight.shape[2] - mine.weight.shape[2]) // 2
        theirs.weight[:outputs] = 0.0
        theirs.weight[:outputs, :inputs] = nn.functional.pad(mine.weight, [border] * 4)
        _bias(theirs)[:outputs] = _bias(mine)
        _bias(theirs)[outputs:] = 0.0


def _widen_hyper_synthesis(old: NeuralCodec, new: NeuralCodec) -> None:
    """Copy the hyper-synthesis; new latents are unknown to it, their means zero."""
    new.h_s.first.load_state_dict(old.h_s.first.state_dict())
    new.h_s.second.load_state_dict(old.h_s.second.state_dict())
    m, n = old.cfg.latent_channels, new.cfg.latent_channels
    for mine, theirs in zip(old.h_s.contexts(), new.h_s.contexts(), strict=True):
        # Inputs are ordered by latent of the cell, then by channel.
        theirs.weight.zero_()
        theirs.weight.view(len(theirs.weight), -1, n)[:, :, :m] = mine.weight.view(
            len(mine.weight), -1, m
        )
        theirs.bias.copy_(mine.bias)
    mine, theirs = old.h_s.heads, new.h_s.heads
    for source, target in ((mine.weight, theirs.weight), (mine.bias, theirs.bias)):
        target.zero_()
        target[:m], target[n : n + m] = source[:m], source[m:]


def _resample_tables(old: NeuralCodec, new: NeuralCodec) -> None:
    """Give every quality what that of the same lambda had, beyond the old range by its slope."""
    a, b = old.cfg, new.cfg
    lam = torch.linspace(math.log(b.lambda_min), math.log(b.lambda_max), b.anchors)
    place = (lam - math.log(a.lambda_min)) / math.log(a.lambda_max / a.lambda_min)
    place = place * (a.anchors - 1)
    left = place.floor().clamp(0, a.anchors - 2).long()
    f = (place - left)[:, None]
    for name, table in old.named_children():
        if isinstance(table, QualityTable):
            values = table.values[left] * (1.0 - f) + table.values[left + 1] * f
            target = getattr(new, name).values
            target[:, : values.shape[1]] = values
            target[:, values.shape[1] :] = values.mean(1, keepdim=True)


def _settle_new_latents(old: NeuralCodec, new: NeuralCodec, images: Tensor) -> None:
    """Give new latents directions of their own, a deviation, and the scales that say it."""
    m = old.cfg.latent_channels
    if new.cfg.latent_channels == m:
        return
    layer, steps = new.g_a[-1], new.log_step_y.values
    assert isinstance(layer, nn.Conv2d)
    # Where the trunk grew too, both layers beside the latents stay invertible, to be folded.
    _turn_apart(old.g_a[-1], layer)
    _turn_apart(old.g_s[0], new.g_s[0])
    if layer.in_channels > (known := _matrix(old.g_a[-1]).shape[1]):
        layer.weight[m:, :known] = 0.0
    wanted = _NEW_DEVIATION * steps[-1, m:].exp()
    deviation = new.analyse(images)[0][:, m:].std((0, 2, 3)).clamp_min(1e-6)
    layer.weight[m:] *= (wanted / deviation)[:, None, None, None]
    _bias(layer)[m:] = -new.analyse(images)[0][:, m:].mean((0, 2, 3)) / fmt.Y_UNIT
    unit = 2.0**fixed.HEAD_GAIN_LOG2 * fixed.log_scale_step()
    new.h_s.heads.bias[new.cfg.latent_channels + m :] = (wanted / fixed.SCALE_MIN).log() / unit
    new.index_bias.values[:, m:] = -steps[:, m:] / unit


def _turn_apart(old: nn.Module, new: nn.Module) -> None:
    """Make what new outputs of a 1x1 convolution read of new inputs orthogonal."""
    rows, columns = _matrix(old).shape
    corner = _matrix(new)[rows:, columns:]
    if corner.numel():
        corner.copy_(nn.init.orthogonal_(torch.empty(corner.shape)))


def _matrix(layer: nn.Module) -> Tensor:
    """Return the weights of a 1x1 convolution, (O, I)."""
    assert isinstance(layer, nn.Conv2d)
    return layer.weight[:, :, 0, 0]
