"""The codec in torch: analysis, hyper-analysis, integer hyper-synthesis, synthesis, gains.

Mean-scale hyperprior (Minnen, Balle, Toderici 2018, arXiv:1809.02736) with one gain per channel
and quality (Cui et al. 2021, arXiv:2003.02012) and an integer hyper-synthesis (Balle, Johnston,
Minnen 2019). Data flow for an image x and a quality q:

    x -> g_a -> y -> h_a -> z * enc_z[q] -> round -> z_hat -> h_s(q) -> mu, scale index
    s = round((y - mu) * enc_y[q]);  y_hat = s * step_y[q] + mu;  x_hat = g_s(y_hat)

The hyper-synthesis sees one hyper-latent position at a time (1x1 convolutions and pixel shuffle),
so that mu and scales of a tile never depend on its neighbours: a tiled file holds exactly the
latents of the untiled one. In the second shape hyper-latents are coded relative to what the left
and the upper one predict, and cells of one colour as that colour. The other networks hold only
convolutions, ReLU, additions and pixel (un)shuffles, each residual sum being one value range: the
layer types of the exact int8 scheme.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecodec.format import tables as fixed
from edgecodec.format.strides import HYPER_STRIDE
from edgecodec.model import config as fmt
from edgecodec.model.config import CodecConfig
from edgecodec.model.quantizers import round_clip, ste_round

_TAIL = 4.0

Z_MEAN_LIMIT = 1 << 14
"""Largest predicted mean of a hyper-latent, in units of 2**-(Z_FRAC + Z_STEP_FRAC)."""


class PaddedConv2d(nn.Conv2d):
    """A convolution that pads with zeros or with the outermost values, by the names of torch.

    In training the latter are put together from slices: for the gradient of torch's own padding
    the compiler presumes a layout other than it has.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) as `nn.Conv2d` does."""
        if self.padding_mode == "zeros" or not self.training:
            return super().forward(x)
        assert not isinstance(self.padding, str)
        for axis, count in zip((2, 3), self.padding, strict=True):
            ends = [x.narrow(axis, place, 1) for place in (0, x.shape[axis] - 1)]
            shape = [count if i == axis else -1 for i in range(4)]
            x = torch.cat([ends[0].expand(shape), x, ends[1].expand(shape)], axis)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ResidualBlock(nn.Module):
    """Depthwise filter between two 1x1 convolutions, then a 1x1 expansion, both residual.

    Args:
        channels: of input and output.
        expansion: width of the second part; None takes twice the channels.
        kernel: side of the depthwise filter, odd.
        replicate: pad with the outermost values instead of zeros.
    """

    def __init__(
        self,
        channels: int,
        expansion: int | None = None,
        kernel: int = 3,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        wide = expansion or 2 * channels
        self.enter = nn.Conv2d(channels, channels, 1)
        self.depthwise = PaddedConv2d(
            channels,
            channels,
            kernel,
            padding=kernel // 2,
            groups=channels,
            padding_mode=_padding(replicate),
        )
        self.leave = nn.Conv2d(channels, channels, 1)
        self.expand = nn.Conv2d(channels, wide, 1)
        self.contract = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        x = x + self.leave(self.depthwise(torch.relu(self.enter(x))))
        out: Tensor = x + self.contract(torch.relu(self.expand(x)))
        return out


def _padding(replicate: bool | int) -> Literal["replicate", "zeros"]:
    return "replicate" if replicate else "zeros"


def _blocks(
    cfg: CodecConfig, count: int, channels: int, expansion: int | None = None
) -> list[ResidualBlock]:
    return [
        ResidualBlock(channels, expansion, cfg.depthwise, bool(cfg.replicate)) for _ in range(count)
    ]


def build_analysis(cfg: CodecConfig) -> nn.Sequential:
    """Return g_a: (N, 3, H, W) in [-0.5, 0.5) -> (N, M, H/16, W/16), y in units of 16."""
    fine = cfg.analysis_fine_channels or cfg.fine_channels
    coarse = cfg.analysis_coarse_channels or cfg.coarse_channels
    first = PaddedConv2d(
        3,
        fine,
        8 + 2 * cfg.overlap,
        stride=8,
        padding=cfg.overlap,
        padding_mode=_padding(cfg.replicate),
    )
    return nn.Sequential(
        first,
        *_blocks(cfg, cfg.analysis_fine_blocks or cfg.fine_blocks, fine),
        nn.Conv2d(fine, coarse, 2, stride=2),
        *_blocks(cfg, cfg.analysis_coarse_blocks or cfg.coarse_blocks, coarse),
        nn.Conv2d(coarse, cfg.latent_channels, 1),
    )


def build_synthesis(cfg: CodecConfig) -> nn.Sequential:
    """Return g_s: (N, M, h, w), y_hat in units of 16 -> (N, 3, 16h, 16w) around zero."""
    fine, coarse = cfg.fine_channels, cfg.coarse_channels
    return nn.Sequential(
        nn.Conv2d(cfg.latent_channels, coarse, 1),
        *_blocks(cfg, cfg.coarse_blocks, coarse, cfg.coarse_expansion or None),
        nn.Conv2d(coarse, 4 * fine, 1),
        nn.PixelShuffle(2),
        *_blocks(cfg, cfg.fine_blocks, fine, cfg.fine_expansion or None),
        nn.Conv2d(fine, 192, 1),
        nn.PixelShuffle(8),
    )


def build_hyper_analysis(cfg: CodecConfig) -> nn.Sequential:
    """Return h_a: (N, M, h, w), y in units of 16 -> (N, Z, h/2, w/2)."""
    width = cfg.hyper_analysis_channels
    return nn.Sequential(
        PaddedConv2d(
            cfg.latent_channels, width, 3, padding=1, padding_mode=_padding(cfg.replicate)
        ),
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


class HyperPrediction(nn.Module):
    """What the left and the upper hyper-latent say of the next: a mean and a scale per channel.

    The same integers as the hyper-synthesis: both neighbours, dequantized, in units of
    2**-Z_FRAC; uint8 activations of ACTIVATION_FRAC fractional bits between two layers. Neighbours
    outside the tile, and those of flat cells, count as zeros. Initially it predicts zeros, and
    scales that depend on the quality alone.

    Args:
        channels: Z.
        hidden: activations between its layers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.first = IntegerLinear(2 * channels, hidden, fixed.Z_FRAC)
        self.heads = IntegerLinear(hidden, 2 * channels, fixed.ACTIVATION_FRAC)
        with torch.no_grad():
            self.heads.weight.zero_()

    def forward(
        self, left: Tensor, above: Tensor, hidden_bias: Tensor, index_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return means and float-valued integer scale indexes, (N, Z, h, w) each.

        Args:
            left: (N, Z, h, w), multiples of 2**-Z_FRAC.
            above: likewise.
            hidden_bias: (N, hidden), added to the first layer's bias.
            index_bias: (N, Z), added to the scale head's bias.
        """
        h = torch.relu(self.first(torch.cat([left, above], 1), hidden_bias))
        h = round_clip(h, fixed.ACTIVATION_FRAC, 0, 255)
        extra = torch.cat([torch.zeros_like(index_bias), index_bias], 1)
        mean, index = (self.heads(h, extra) * 2.0**fixed.HEAD_GAIN_LOG2).chunk(2, 1)
        mean = round_clip(mean, fixed.Z_FRAC + fixed.Z_STEP_FRAC, -Z_MEAN_LIMIT, Z_MEAN_LIMIT)
        return mean, round_clip(index, 0, 1, fixed.SCALE_LEVELS - 1)


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


class CodedHyperLatents(NamedTuple):
    """What coding yields of z, each (N, Z, h, w); scales that nothing varies are (N, Z, 1, 1)."""

    s: Tensor
    """Symbols before rounding, relative to what is predicted."""
    symbols: Tensor
    """Symbols."""
    sigma: Tensor
    """Their scales, in steps."""
    z_fix: Tensor
    """Dequantized hyper-latents, multiples of 2**-Z_FRAC; zero in flat cells."""


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
        self.z_prediction: HyperPrediction | None = None
        if cfg.z_hidden:
            self.z_prediction = HyperPrediction(z, cfg.z_hidden)
            self.z_hidden_bias = QualityTable(0.0, 0.0, n, cfg.z_hidden)
        if cfg.flat_cells:
            self.flat_weight = nn.Parameter(torch.zeros(m, 3))
            self.flat_bias = nn.Parameter(torch.zeros(m))

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
            z_hat: (N, Z, h, w), integers, symbols that nothing predicts.
            quality: (N,).
        """
        return self.code_given(y, self._dequantized(z_hat, self._step_z(quality)), quality)

    def _step_z(self, quality: Tensor) -> Tensor:
        """Return the steps of hyper-latents, (N, Z, 1, 1)."""
        step = self.log_step_z(quality).exp()[:, :, None, None]
        return round_clip(step, fixed.Z_FRAC + fixed.Z_STEP_FRAC, 1, (1 << 15) - 1)

    @staticmethod
    def _dequantized(symbols: Tensor, step: Tensor, mean: Tensor | float = 0.0) -> Tensor:
        return round_clip(symbols * step + mean, fixed.Z_FRAC, -2047, 2047)

    def code_hyper(self, z: Tensor, flat: Tensor | None, quality: Tensor) -> CodedHyperLatents:
        """Quantize z as the encoder does.

        Args:
            z: (N, Z, h, w), in steps.
            flat: (N, 1, h, w), true for cells whose hyper-latents are not coded but zero; or None.
            quality: (N,).
        """
        step = self._step_z(quality)
        limit = fixed.HYPER_LIMIT
        if self.z_prediction is None:
            symbols = round_clip(z, 0, -limit, limit)
            z_fix = self._dequantized(symbols, step)
            sigma = self.log_sigma_z(quality).exp().clamp(fixed.SCALE_MIN, fixed.SCALE_MAX)
            return CodedHyperLatents(z, symbols, sigma[:, :, None, None], _without(z_fix, flat))
        if self.training:
            # All at once: neighbours as they come out when first nothing, then that predicts them.
            with torch.no_grad():
                z_fix = _without(self._dequantized(round_clip(z, 0, -limit, limit), step), flat)
                mean, _ = self._predict(z_fix, quality)
                symbols = round_clip(z - mean / step, 0, -limit, limit)
                z_fix = _without(self._dequantized(symbols, step, mean), flat)
            shifted = _without(z * step, flat)
            mean, index = self._predict(shifted + (z_fix - shifted).detach(), quality)
            s = z - mean / step
            symbols = round_clip(s, 0, -limit, limit)
            z_fix = _without(self._dequantized(symbols, step, mean), flat)
            return CodedHyperLatents(s, symbols, _sigma(index), z_fix)
        return self._code_hyper_in_order(z, flat, quality)

    def _predict(self, z_fix: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and scale index of all hyper-latents, given all of them."""
        left = F.pad(z_fix, (1, 0))[..., :-1]
        above = F.pad(z_fix, (0, 0, 1, 0))[..., :-1, :]
        return self._predict_from(left, above, quality)

    def _predict_from(self, left: Tensor, above: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        assert self.z_prediction is not None
        biases = self.z_hidden_bias(quality), self.z_index_bias(quality)
        mean, index = self.z_prediction(left, above, *biases)
        return mean, index

    def z_index_bias(self, quality: Tensor) -> Tensor:
        """Return log_sigma_z as biases of the scale indexes that z_prediction has, (N, Z)."""
        unit = 2.0**fixed.HEAD_GAIN_LOG2 * fixed.log_scale_step()
        bias: Tensor = (self.log_sigma_z(quality) - math.log(fixed.SCALE_MIN)) / unit
        return bias

    def _code_hyper_in_order(
        self, z: Tensor, flat: Tensor | None, quality: Tensor
    ) -> CodedHyperLatents:
        """Quantize z cell after cell, those of a diagonal at once, as a decoder knows them."""
        step = self._step_z(quality)
        height, width = z.shape[2:]
        limit = fixed.HYPER_LIMIT
        s, symbols, sigma = (torch.zeros_like(z) for _ in range(3))
        z_fix = z.new_zeros(*z.shape[:2], height + 1, width + 1)  # row and column of the outside
        for diagonal in range(height + width - 1):
            rows = torch.arange(
                max(0, diagonal - width + 1), min(diagonal, height - 1) + 1, device=z.device
            )
            columns = diagonal - rows
            left = z_fix[:, :, rows + 1, columns][:, :, :, None]
            above = z_fix[:, :, rows, columns + 1][:, :, :, None]
            mean, index = self._predict_from(left, above, quality)
            here = z[:, :, rows, columns][:, :, :, None] - mean / step
            rounded = round_clip(here, 0, -limit, limit)
            dequantized = self._dequantized(rounded, step, mean)
            if flat is not None:
                dequantized = _without(dequantized, flat[:, :, rows, columns][:, :, :, None])
            s[:, :, rows, columns] = here[..., 0]
            symbols[:, :, rows, columns] = rounded[..., 0]
            sigma[:, :, rows, columns] = _sigma(index)[..., 0]
            z_fix[:, :, rows + 1, columns + 1] = dequantized[..., 0]
        return CodedHyperLatents(s, symbols, sigma, z_fix[:, :, 1:, 1:])

    def flat_latents(self, colour: Tensor) -> Tensor:
        """Return the latents y_hat that stand for cells of one colour.

        Args:
            colour: (N, 3, h, w), levels 0..255.

        Returns:
            (N, M, h, w), the same for all latents of a cell.
        """
        values = (colour - fmt.PIXEL_OFFSET) * (1.0 / fmt.PIXEL_UNIT)
        y = F.conv2d(values, self.flat_weight[:, :, None, None], self.flat_bias) * fmt.Y_UNIT
        return round_clip(y, fixed.Y_FRAC, -(1 << 15), (1 << 15) - 1)

    def code_given(self, y: Tensor, z_fix: Tensor, quality: Tensor) -> CodedLatents:
        """Quantize y given dequantized hyper-latents; else as `code`.

        Args:
            y: (N, M, 2h, 2w).
            z_fix: (N, Z, h, w), multiples of 2**-Z_FRAC.
            quality: (N,).
        """
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
            flat, colour = flat_cells(x) if self.cfg.flat_cells else (None, None)
            z = z * self.log_enc_z(quality).exp()[:, :, None, None]
            hyper = self.code_hyper(z, flat, quality)
            coded = self.code_given(y, hyper.z_fix, quality)
            sigma = _sigma(coded.scale_index)
            if self.training:
                s_rate = coded.s + torch.rand_like(coded.s) - 0.5
                z_rate = hyper.s + torch.rand_like(z) - 0.5
            else:
                s_rate, z_rate = coded.s_hat, hyper.symbols
            bits_y, bits_z = gaussian_bits(s_rate, sigma), gaussian_bits(z_rate, hyper.sigma)
            y_hat = coded.y_hat
            if flat is not None and colour is not None:
                flat_y = _larger(flat, 2)
                y_hat = torch.where(flat_y, _larger(self.flat_latents(colour), 2), y_hat)
                bits_y, bits_z = _without(bits_y, flat_y), _without(bits_z, flat)
            bits_y, bits_z = bits_y.sum((1, 2, 3)), bits_z.sum((1, 2, 3))
        x_hat = self.synthesise(y_hat)
        if flat is not None:
            x_hat = torch.where(_larger(flat, HYPER_STRIDE), x, x_hat)
        return x_hat, bits_y, bits_z


def flat_cells(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find the cells of one colour.

    Args:
        x: (N, 3, H, W), H and W multiples of 32.

    Returns:
        (N, 1, H/32, W/32), true where all pixels of a cell are the same, and the greatest levels
        of each cell, (N, 3, H/32, W/32), which are its colour there.
    """
    side = HYPER_STRIDE
    n, c, height, width = x.shape
    cells = x.reshape(n, c, height // side, side, width // side, side)
    most, least = cells.amax((3, 5)), cells.amin((3, 5))
    return (most == least).all(1, keepdim=True), most


def _larger(cells: Tensor, side: int) -> Tensor:
    """Repeat every value of (N, C, h, w) over a square."""
    n, c, h, w = cells.shape
    return (
        cells[:, :, :, None, :, None]
        .expand(n, c, h, side, w, side)
        .reshape(n, c, h * side, w * side)
    )


def _without(values: Tensor, flat: Tensor | None) -> Tensor:
    """Return values with zeros in flat cells."""
    return values if flat is None else values.masked_fill(flat, 0.0)


def _sigma(index: Tensor) -> Tensor:
    return fixed.SCALE_MIN * torch.exp(index * fixed.log_scale_step())


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
