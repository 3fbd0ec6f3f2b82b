"""The codec in torch: analysis, hyper-analysis, integer hyper-synthesis, synthesis, gains.

Mean-scale hyperprior (Minnen, Balle, Toderici 2018, arXiv:1809.02736) with one gain per channel
and quality (Cui et al. 2021, arXiv:2003.02012) and an integer hyper-synthesis (Balle, Johnston,
Minnen 2019). Data flow for an image x and a quality q:

    x -> g_a -> y -> h_a -> z * enc_z[q] -> round -> z_hat -> h_s(q) -> mu, scale index
    s = round((y - mu) * enc_y[q]);  y_hat = s * step_y[q] + mu;  x_hat = g_s(y_hat)

The hyper-synthesis sees one hyper-latent position at a time (1x1 convolutions and pixel shuffle),
so that mu and scales of a tile never depend on its neighbours: a tiled file holds exactly the
latents of the untiled one. The other networks hold only convolutions, ReLU, additions and pixel
(un)shuffles, each residual sum being one value range: the layer types of the exact int8 scheme.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecodec.format import tables as fixed
from edgecodec.model import config as fmt
from edgecodec.model.config import CodecConfig
from edgecodec.model.quantizers import round_clip, ste_round

_TAIL = 4.0


class ResidualBlock(nn.Module):
    """Depthwise 3x3 between two 1x1 convolutions, then a 1x1 expansion, both residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.leave = nn.Conv2d(channels, channels, 1)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.contract = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        x = x + self.leave(self.depthwise(torch.relu(self.enter(x))))
        out: Tensor = x + self.contract(torch.relu(self.expand(x)))
        return out


def build_analysis(cfg: CodecConfig) -> nn.Sequential:
    """Return g_a: (N, 3, H, W) in [-0.5, 0.5) -> (N, M, H/16, W/16), y in units of 16."""
    fine, coarse = cfg.fine_channels, cfg.coarse_channels
    return nn.Sequential(
        nn.Conv2d(3, fine, 8, stride=8),
        *[ResidualBlock(fine) for _ in range(cfg.fine_blocks)],
        nn.Conv2d(fine, coarse, 2, stride=2),
        *[ResidualBlock(coarse) for _ in range(cfg.coarse_blocks)],
        nn.Conv2d(coarse, cfg.latent_channels, 1),
    )


def build_synthesis(cfg: CodecConfig) -> nn.Sequential:
    """Return g_s: (N, M, h, w), y_hat in units of 16 -> (N, 3, 16h, 16w) around zero."""
    fine, coarse = cfg.fine_channels, cfg.coarse_channels
    return nn.Sequential(
        nn.Conv2d(cfg.latent_channels, coarse, 1),
        *[ResidualBlock(coarse) for _ in range(cfg.coarse_blocks)],
        nn.Conv2d(coarse, 4 * fine, 1),
        nn.PixelShuffle(2),
        *[ResidualBlock(fine) for _ in range(cfg.fine_blocks)],
        nn.Conv2d(fine, 192, 1),
        nn.PixelShuffle(8),
    )


def build_hyper_analysis(cfg: CodecConfig) -> nn.Sequential:
    """Return h_a: (N, M, h, w), y in units of 16 -> (N, Z, h/2, w/2)."""
    width = cfg.hyper_analysis_channels
    return nn.Sequential(
        nn.Conv2d(cfg.latent_channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(width, cfg.hyper_channels, 1),
    )


class IntegerLinear(nn.Module):
    """1x1 convolution with int8 weights and int32 biases, trained straight through.

    Weights are multiples of 2**-WEIGHT_FRAC in [-127, 127] units, biases multiples of the unit of
    the accumulator. Float32 holds partial sums exactly up to 2**24 units. Those of the third
    context layer could reach 2**25.6, with 768 residuals at their limit; so evaluation adds in
    float64, and agrees with the integer decoder to the bit whatever comes. Training takes the risk.
    """

    def __init__(self, inputs: int, outputs: int, input_frac: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.accumulator_frac = input_frac + fixed.WEIGHT_FRAC
        nn.init.normal_(self.weight, std=1.0 / math.sqrt(inputs))

    def forward(self, x: Tensor, extra_bias: Tensor | None = None) -> Tensor:
        """Map (N, I, h, w) to the exact accumulator (N, O, h, w); extra_bias is (N, O)."""
        weight = round_clip(self.weight, fixed.WEIGHT_FRAC, -127, 127)
        bias = self.bias if extra_bias is None else self.bias + extra_bias
        bias = round_clip(bias, self.accumulator_frac, -(1 << 22), 1 << 22)
        bias = (bias[None] if bias.dim() == 1 else bias)[:, :, None, None]
        weight = weight[:, :, None, None]
        if self.training:
            return F.conv2d(x, weight) + bias
        out = F.conv2d(x.double(), weight.double()) + bias
        # What float32 could not hold, every user clips.
        limit = 2.0 ** (24 - self.accumulator_frac)
        return out.clamp(-limit, limit).float()


class IntegerHyperSynthesis(nn.Module):
    """h_s: dequantized z_hat, quality biases and decoded neighbours -> mu and scale index.

    A hyper-latent and its 2x2 latents are a cell. Within a cell latents are coded one after
    another, in the order of CELL_ORDER; each sees the features that z_hat yields for it and, from
    the second on, how far the ones before it lay from their mu. Nothing crosses from one cell to
    another, so that tiles stay independent. Activations are uint8 with ACTIVATION_FRAC fractional
    bits.
    """

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        m, c = cfg.latent_channels, cfg.context_features
        self.latent_channels = m
        self.first = IntegerLinear(cfg.hyper_channels, cfg.hyper_hidden, fixed.Z_FRAC)
        self.second = IntegerLinear(cfg.hyper_hidden, 4 * cfg.hyper_features, fixed.ACTIVATION_FRAC)
        contexts = [IntegerLinear(k * m, c, fixed.RESIDUAL_FRAC) for k in (1, 2, 3)]
        self.context = nn.ModuleList(contexts)
        self.heads = IntegerLinear(cfg.hyper_features + c, 2 * m, fixed.ACTIVATION_FRAC)
        with torch.no_grad():
            self.heads.weight.mul_(0.1)
            for layer in self.contexts():
                layer.weight.mul_(0.5)
            # Start at a standard deviation near one step: neither skipped nor flat.
            start = math.log(1.0 / fixed.SCALE_MIN) / fixed.log_scale_step()
            self.heads.bias[m:] = start / 2.0**fixed.HEAD_GAIN_LOG2

    def contexts(self) -> list[IntegerLinear]:
        """Return the layers that see one, two and three earlier latents of a cell."""
        return [layer for layer in self.context if isinstance(layer, IntegerLinear)]

    def features(self, z_fix: Tensor, hidden_bias: Tensor) -> Tensor:
        """Return the features of every latent, (N, F, 2h, 2w).

        Args:
            z_fix: (N, Z, h, w), multiples of 2**-Z_FRAC.
            hidden_bias: (N, hidden), added to the first layer's bias.
        """
        h = round_clip(torch.relu(self.first(z_fix, hidden_bias)), fixed.ACTIVATION_FRAC, 0, 255)
        h = round_clip(torch.relu(self.second(h)), fixed.ACTIVATION_FRAC, 0, 255)
        return F.pixel_shuffle(h, 2)

    def parameters_of(
        self, features: Tensor, before: list[Tensor], index_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mu (N, M, h, w) and float-valued integer scale indexes of one cell position.

        Args:
            features: (N, F, h, w) of this position.
            before: y_hat - mu of the positions before it, (N, M, h, w) each.
            index_bias: (N, M), added to the scale head's bias.
        """
        context = features.new_zeros(
            features.shape[0], self.heads.weight.shape[1] - features.shape[1], *features.shape[2:]
        )
        if before:
            limit = fixed.RESIDUAL_LIMIT
            seen = round_clip(torch.cat(before, 1), fixed.RESIDUAL_FRAC, -limit, limit)
            context = torch.relu(self.contexts()[len(before) - 1](seen))
            context = round_clip(context, fixed.ACTIVATION_FRAC, 0, 255)
        extra = torch.cat([torch.zeros_like(index_bias), index_bias], 1)
        out = self.heads(torch.cat([features, context], 1), extra) * 2.0**fixed.HEAD_GAIN_LOG2
        mu, index = out.chunk(2, 1)
        mu = round_clip(mu, fixed.Y_FRAC, -(1 << 14), 1 << 14)
        return mu, round_clip(index, 0, 0, fixed.SCALE_LEVELS - 1)


def gaussian_bits(s: Tensor, sigma: Tensor) -> Tensor:
    """Return the information content in bits of s under N(0, sigma) integrated over a step.

    Far in the tail, where float32 knows the integral only as zero, the leading term of its
    asymptotic series stands in, so that the gradient can still widen sigma.
    """
    inverse = 1.0 / (sigma * math.sqrt(2.0))
    a = s.abs()
    p = 0.5 * (torch.erf((a + 0.5) * inverse) - torch.erf((a - 0.5) * inverse))
    t = ((a - 0.5) / sigma).clamp_min(_TAIL)
    tail = (0.5 * t * t + torch.log(t * math.sqrt(2.0 * math.pi))) * math.log2(math.e)
    return torch.where((a - 0.5) > _TAIL * sigma, tail, -torch.log2(p.clamp_min(2.0**-24)))


class QualityTable(nn.Module):
    """A vector per quality, interpolated linearly between a few learned anchors."""

    def __init__(self, low: float, high: float, anchors: int, channels: int) -> None:
        super().__init__()
        line = torch.linspace(low, high, anchors)[:, None]
        self.values = nn.Parameter(line.repeat(1, channels))

    def forward(self, quality: Tensor) -> Tensor:
        """Map qualities (N,) in 1..100 to vectors (N, channels)."""
        last = self.values.shape[0] - 1
        t = (quality - 1.0) * (last / 99.0)
        left = t.floor().clamp(0, last - 1).long()
        f = (t - left)[:, None]
        return self.values[left] * (1.0 - f) + self.values[left + 1] * f


class CodedLatents(NamedTuple):
    """What coding yields of y, each (N, M, 2h, 2w)."""

    s: Tensor
    """Symbols before rounding."""
    s_hat: Tensor
    """Symbols."""
    scale_index: Tensor
    """Scale indexes, whole numbers."""
    y_hat: Tensor
    """Dequantized latents, multiples of 2**-Y_FRAC."""


class NeuralCodec(nn.Module):
    """All networks and gains of one codec, with the rate-distortion forward pass of training."""

    def __init__(self, cfg: CodecConfig | None = None) -> None:
        super().__init__()
        self.cfg = cfg = cfg or CodecConfig()
        self.g_a = build_analysis(cfg)
        self.h_a = build_hyper_analysis(cfg)
        self.h_s = IntegerHyperSynthesis(cfg)
        self.g_s = build_synthesis(cfg)
        # Half the logarithm, because MSE goes with the step squared; the uniform quantizer that
        # spends bits at the slope lambda = 0.12 has a step of about one unit of y.
        coarsest, finest = (-0.5 * math.log(v / 0.12) for v in (cfg.lambda_min, cfg.lambda_max))
        n, m, z = cfg.anchors, cfg.latent_channels, cfg.hyper_channels
        self.log_step_y = QualityTable(coarsest, finest, n, m)
        self.log_enc_z = QualityTable(1.0, 2.0, n, z)
        self.log_step_z = QualityTable(-1.0, -2.0, n, z)
        self.log_sigma_z = QualityTable(0.0, 0.5, n, z)
        self.hidden_bias = QualityTable(0.0, 0.0, n, cfg.hyper_hidden)
        self.index_bias = QualityTable(0.0, 0.0, n, m)

    def analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map an image (N, 3, H, W), levels 0..255, to y and the unscaled hyper-latents."""
        y = self.g_a((x - fmt.PIXEL_OFFSET) * (1.0 / fmt.PIXEL_UNIT))
        return y * fmt.Y_UNIT, self.h_a(y)

    def synthesise(self, y_hat: Tensor) -> Tensor:
        """Map y_hat (N, M, h, w) to an image (N, 3, 16h, 16w), nominally levels 0..255."""
        out: Tensor = self.g_s(y_hat * (1.0 / fmt.Y_UNIT))
        return out.float() * fmt.PIXEL_UNIT + fmt.PIXEL_OFFSET

    def code(self, y: Tensor, z_hat: Tensor, quality: Tensor) -> CodedLatents:
        """Quantize y as the encoder does, with mu and scale indexes as the decoder sees them.

        Args:
            y: (N, M, 2h, 2w).
            z_hat: (N, Z, h, w), integers.
            quality: (N,).
        """
        step_z = round_clip(
            self.log_step_z(quality).exp(), fixed.Z_FRAC + fixed.Z_STEP_FRAC, 1, (1 << 15) - 1
        )
        z_fix = round_clip(z_hat * step_z[:, :, None, None], fixed.Z_FRAC, -2047, 2047)
        features = self.h_s.features(z_fix, self.hidden_bias(quality))
        index_bias = self.index_bias(quality)
        step = self.log_step_y(quality).exp()[:, :, None, None]
        before: list[Tensor] = []
        parts: dict[tuple[int, int], CodedLatents] = {}
        for dy, dx in fixed.CELL_ORDER:
            mu, index = self.h_s.parameters_of(features[:, :, dy::2, dx::2], before, index_bias)
            s = (y[:, :, dy::2, dx::2] - mu) / step
            # Symbols at scale index 0 are not coded at all: the decoder takes them as zero.
            s_hat = (ste_round(s) * (index > 0)).clamp(-fixed.SYMBOL_LIMIT, fixed.SYMBOL_LIMIT)
            residual = round_clip(s_hat * step, fixed.Y_FRAC, -(1 << 15), (1 << 15) - 1)
            before.append(residual)
            parts[dy, dx] = CodedLatents(s, s_hat, index, residual + mu)
        order = [(0, 0), (0, 1), (1, 0), (1, 1)]
        return CodedLatents(
            *(
                F.pixel_shuffle(torch.stack([parts[k][i] for k in order], 2).flatten(1, 2), 2)
                for i in range(4)
            )
        )

    def forward(self, x: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_hat and the bits of y and z per image.

        In training, the rate sees additive uniform noise (Balle et al. 2017) and the distortion
        straight-through rounding; in evaluation both see the rounded symbols.

        Args:
            x: (N, 3, H, W) float32, levels 0..255, H and W multiples of 32.
            quality: (N,) in 1..100.
        """
        y, z = self.analyse(x)
        with torch.autocast(x.device.type, enabled=False):
            y, z = y.float(), z.float()
            z = z * self.log_enc_z(quality).exp()[:, :, None, None]
            z_hat = round_clip(z, 0, -fixed.HYPER_LIMIT, fixed.HYPER_LIMIT)
            coded = self.code(y, z_hat, quality)
            sigma = fixed.SCALE_MIN * torch.exp(coded.scale_index * fixed.log_scale_step())
            sigma_z = self.log_sigma_z(quality).exp().clamp(fixed.SCALE_MIN, fixed.SCALE_MAX)
            if self.training:
                s_rate = coded.s + torch.rand_like(coded.s) - 0.5
                z_rate = z + torch.rand_like(z) - 0.5
            else:
                s_rate, z_rate = coded.s_hat, z_hat
            bits_y = gaussian_bits(s_rate, sigma).sum((1, 2, 3))
            bits_z = gaussian_bits(z_rate, sigma_z[:, :, None, None]).sum((1, 2, 3))
        return self.synthesise(coded.y_hat), bits_y, bits_z


def multiply_accumulates(module: nn.Sequential, stride: float) -> float:
    """Return multiply-accumulates per image pixel of a chain of layers.

    Args:
        module: the layers in order.
        stride: image pixels per input position, in each direction (1 for g_a, 16 for g_s).
    """
    total = 0.0
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            stride *= layer.stride[0]
            total += layer.weight.numel() / stride**2
        elif isinstance(layer, nn.PixelShuffle):
            stride /= layer.upscale_factor
    return total
