from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgecodec.format import tables as fixed
from edgecodec.format.coder import LatentCoder
from edgecodec.format.tables import CELL_ORDER, scale_of
from edgecodec.model.config import CodecConfig
from edgecodec.model.export_tables import (
    SCALE_ERROR,
    build_tables,
    export_tables,
    symbol_frequencies,
    symbol_probabilities,
)
from edgecodec.model.network import (
    IntegerLinear,
    NeuralCodec,
    gaussian_bits,
    multiply_accumulates,
)
from edgecodec.model.quantizers import round_clip
from edgecodec.model.stages import build_stages


@pytest.fixture(scope="module")
def codec() -> NeuralCodec:
    torch.manual_seed(0)
    codec = NeuralCodec().eval()
    with torch.no_grad():
        for p in codec.h_s.parameters():
            p.add_(torch.randn_like(p) * 0.2)  # off the initial values, into the clips
        for table in (codec.hidden_bias, codec.index_bias):
            table.values.add_(torch.randn_like(table.values))
    return codec


def test_networks_stay_inside_the_complexity_envelope(codec: NeuralCodec) -> None:
    analysis = multiply_accumulates(codec.g_a, 1) + multiply_accumulates(codec.h_a, 16)
    assert 1000 < analysis <= 12000
    assert 1000 < multiply_accumulates(codec.g_s, 16) <= 8000


def test_networks_hold_only_layers_of_the_exact_int8_scheme(codec: NeuralCodec) -> None:
    allowed = (nn.Conv2d, nn.ReLU, nn.PixelShuffle)
    for net in (codec.g_a, codec.h_a, codec.g_s):
        leaves = [m for m in net.modules() if not list(m.children())]
        assert leaves
        assert all(isinstance(m, allowed) for m in leaves)


@pytest.fixture(scope="module")
def exact_codec() -> NeuralCodec:
    """A small codec whose steps are multiples of 2**-10, as those of its tables are.

    With an anchor per quality nothing is interpolated.
    """
    torch.manual_seed(1)
    config = CodecConfig(
        latent_channels=20,
        hyper_channels=9,
        fine_channels=8,
        fine_blocks=1,
        coarse_channels=8,
        coarse_blocks=1,
        hyper_analysis_channels=8,
        hyper_hidden=17,
        hyper_features=11,
        context_features=7,
        anchors=100,
    )
    codec = NeuralCodec(config).eval()
    with torch.no_grad():
        for p in codec.h_s.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        for table in (codec.hidden_bias, codec.index_bias):
            table.values.add_(torch.randn_like(table.values))
        steps = torch.randint(700, 9000, codec.log_step_y.values.shape) / 1024.0
        logs = torch.log(steps)
        for _ in range(8):  # exp(log(x)) is not always x; try the neighbours
            found = logs.exp()
            towards = torch.where(found < steps, torch.inf, -torch.inf)
            logs = torch.where(found == steps, logs, torch.nextafter(logs, towards))
        # Where no logarithm fits, a step of one.
        logs = torch.where(logs.exp() == steps, logs, torch.zeros_like(logs))
        codec.log_step_y.values.copy_(logs)
    return codec


@pytest.mark.parametrize("quality", [1, 2, 37, 50, 99, 100])
def test_training_model_and_integer_decoder_agree_to_the_bit(
    exact_codec: NeuralCodec, quality: int
) -> None:
    """Symbols of the training model, decoded with the tables, are its y_hat.

    The networks agree always. The step of training is a float, that of the tables its nearest
    multiple of 2**-10, and float32 holds `s * step` exactly below 2**24 units of 2**-10: with other
    steps or larger symbols, as with a residual that leaves 16 bits, training sees a latent that may
    be off by a rounding. Files are not concerned: an encoder quantizes with the tables.
    """
    coder = LatentCoder(export_tables(exact_codec))
    rng = np.random.default_rng(quality)
    z = rng.integers(-127, 128, (5, 3, coder.hyper_channels)).astype(np.int16)
    z[1:] //= 20
    y = torch.from_numpy(rng.laplace(0, 30, (1, coder.latent_channels, 10, 6)).astype(np.float32))
    q = torch.tensor([float(quality)])
    with torch.inference_mode():
        step = exact_codec.log_step_y(q).exp()[0].numpy() * 1024.0
        coded = exact_codec.code(y, torch.from_numpy(z).permute(2, 0, 1)[None].float(), q)
    s_hat, want_index, want_y_hat = (
        v[0].permute(1, 2, 0).numpy() for v in (coded.s_hat, coded.scale_index, coded.y_hat)
    )
    assert np.array_equal(step, coder.tables.step_y[quality - 1])  # what agreement rests on
    assert len(np.unique(step)) > 10
    assert np.abs(s_hat * step).max() < 1 << 24
    s = s_hat.astype(np.int16)
    assert np.array_equal(s, s_hat)
    mu, index = coder.predict(quality, z, s)
    assert np.array_equal(index, want_index)
    residual = (s.astype(np.int64) * coder.tables.step_y[quality - 1] + 32) >> 6
    assert np.array_equal(residual + mu, want_y_hat * 16)
    decoded = coder.decode(quality, 5, 3, coder.encode(quality, z, index, s))
    assert np.array_equal(decoded[0], z)
    assert np.array_equal(decoded[1], want_y_hat * 16)
    # The comparison saw more than a constant, and a context that matters.
    assert len(np.unique(index)) > 20
    assert (coder.predict(quality, z, np.zeros_like(s))[0] != mu)[1::2].mean() > 0.5


def test_evaluation_is_exact_where_float32_is_not() -> None:
    """Partial sums of 2**24.6 that cancel to what the activation still tells apart."""
    layer = IntegerLinear(768, 5, fixed.RESIDUAL_FRAC).eval()
    rng = np.random.default_rng(0)
    x = (511 - rng.integers(0, 2, (768, 1, 9))).astype(np.int64)
    weight = np.repeat([[127], [-127]], 384, 0) * np.ones(5, np.int64) - rng.integers(
        0, 2, (768, 5)
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T) / 2**fixed.WEIGHT_FRAC)
        layer.bias.copy_(torch.arange(5) / 2**layer.accumulator_frac)
        found = layer(torch.from_numpy(x)[None].float() / 2**fixed.RESIDUAL_FRAC)
        weight = weight.clip(-127, 127)
        wanted = np.einsum("ihw,io->ohw", x, weight) + np.arange(5)[:, None, None]
        assert np.array_equal(found[0].numpy() * 2**layer.accumulator_frac, wanted)
        assert np.abs(wanted).max() < 1 << 19


def mixture_symbols(rng: np.random.Generator, sigma: np.ndarray) -> np.ndarray:
    scale = sigma * np.exp(SCALE_ERROR * rng.normal(size=sigma.shape) - SCALE_ERROR**2)
    symbols: np.ndarray = np.rint(rng.normal(size=sigma.shape) * scale).astype(np.int64)
    return symbols


def mixture_bits(s: np.ndarray, sigma: np.ndarray) -> float:
    total = 0.0
    for value in np.unique(sigma):
        k = np.abs(s[sigma == value])
        total -= np.log2(symbol_probabilities(float(value), int(k.max()))[0][k]).sum()
    return total


@pytest.mark.parametrize("quality", [1, 50, 100])
def test_coded_size_is_the_information_content(codec: NeuralCodec, quality: int) -> None:
    """Symbols drawn from the model's own distributions cost their information content."""
    coder = LatentCoder(export_tables(codec))
    rng = np.random.default_rng(quality)
    sigmas = np.array([scale_of(i) for i in range(64)])
    index_z = coder.tables.index_z[quality - 1]
    z = np.clip(
        mixture_symbols(rng, np.broadcast_to(sigmas[index_z], (12, 10, len(index_z)))), -127, 127
    )
    z = z.astype(np.int16)
    s = np.zeros((24, 20, coder.latent_channels), np.int16)
    for dy, dx in CELL_ORDER:  # each depends on those before it
        level = coder.predict(quality, z, s)[1][dy::2, dx::2]
        s[dy::2, dx::2] = np.where(level > 0, mixture_symbols(rng, sigmas[level]), 0)
    _, index = coder.predict(quality, z, s)
    data = coder.encode(quality, z, index, s)
    coded = index > 0
    bits = mixture_bits(np.abs(z), np.broadcast_to(sigmas[index_z], z.shape))
    bits += mixture_bits(np.abs(s[coded]), sigmas[index[coded]])
    assert bits > 8000
    assert abs(8 * len(data) / bits - 1) <= 0.005


def test_stages_equal_the_codec_with_units_folded_in(codec: NeuralCodec) -> None:
    halved = NeuralCodec(codec.cfg).eval()
    halved.load_state_dict({k: v.half().float() for k, v in codec.state_dict().items()})
    analysis, synthesis = build_stages(halved)
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)) * 255
    with torch.inference_mode():
        for got, want in zip(analysis(x), halved.analyse(x), strict=True):
            assert torch.allclose(got, want, rtol=1e-4, atol=1e-3)
        y_hat = torch.round(torch.randn(1, codec.cfg.latent_channels, 4, 6) * 100)
        assert torch.allclose(synthesis(y_hat), halved.synthesise(y_hat / 16), rtol=1e-4, atol=1e-2)


SIGMAS = [0.13, 0.5, 1.0, 7.3, 64.0]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_symbol_probabilities_are_a_heavy_tailed_distribution_of_that_variance(
    sigma: float,
) -> None:
    half = math.ceil(30 * sigma)
    p, beyond = symbol_probabilities(sigma, half)
    assert p[0] + 2 * p[1:].sum() + beyond == pytest.approx(1.0, abs=1e-12)
    assert (np.diff(p[1:]) <= 0).all()
    if sigma >= 1:  # Rounding to whole steps adds 1/12.
        k = np.arange(half + 1.0)
        assert 2 * (p * k * k).sum() == pytest.approx(sigma**2 + 1 / 12, rel=0.01)
        # The fourth moment of the mixture, 3 exp(4 tau^2) sigma^4.
        kurtosis = 2 * (p * k**4).sum() / (sigma**2 + 1 / 12) ** 2
        assert kurtosis > 4


@pytest.mark.parametrize("sigma", SIGMAS)
def test_symbol_frequencies_cost_hardly_more_than_the_entropy(sigma: float) -> None:
    f = symbol_frequencies(sigma).astype(np.int64)
    half = (len(f) - 2) // 2
    assert f.sum() == 1 << 14
    assert f.min() >= 1
    assert np.array_equal(f[:-1], f[:-1][::-1])
    side, beyond = symbol_probabilities(sigma, half)
    assert f[-1] == max(2, round(beyond * (1 << 14)))
    p = np.concatenate([side[:0:-1], side, [beyond]])
    entropy = -(p * np.log2(p)).sum()
    excess = (p * -np.log2(f / (1 << 14))).sum() - entropy
    assert excess <= 0.004 * entropy + 0.001


def test_tables_grow_with_quality(codec: NeuralCodec) -> None:
    tables = build_tables(codec)
    assert (np.diff(tables.step_y.mean(1)) < 0).all()
    assert (np.diff(tables.gain_y.mean(1)) > 0).all()


def test_gaussian_bits_have_a_gradient_far_in_the_tail() -> None:
    sigma = torch.tensor([0.13], requires_grad=True)
    bits = gaussian_bits(torch.tensor([40.0]), sigma)
    bits.sum().backward()  # type: ignore[no-untyped-call]
    assert bits.item() > 1000
    assert sigma.grad is not None
    assert sigma.grad.item() < 0  # widening sigma helps


def test_round_clip_rounds_half_up_and_lets_gradients_back_in() -> None:
    x = torch.tensor([-0.5, 0.5, 1.5, 9.0, -9.0], requires_grad=True)
    out = round_clip(x, 0, -4, 4)
    assert out.tolist() == [0.0, 1.0, 2.0, 4.0, -4.0]
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    # Descending, 9 moves back towards the range and -9 would move further away.
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_config_refuses_unknown_and_missing_fields() -> None:
    values = CodecConfig().to_dict()
    assert CodecConfig.from_dict(values) == CodecConfig()
    with pytest.raises(ValueError, match="unknown"):
        CodecConfig.from_dict({**values, "depth": 3})
    values.pop("anchors")
    with pytest.raises(ValueError, match="missing"):
        CodecConfig.from_dict(values)
