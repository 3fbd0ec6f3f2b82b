"""What is new in the second shape: predicted hyper-latents, flat cells, other borders."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgecodec.model.config import SHAPES, CodecConfig
from edgecodec.model.export_tables import PredictionTables, build_prediction_tables, build_tables
from edgecodec.model.folding import fold_latent_layers
from edgecodec.model.network import NeuralCodec, PaddedConv2d, flat_cells, multiply_accumulates
from edgecodec.training.initialisation import start_from_photos
from edgecodec.training.photos import load_photos
from edgecodec.training.rounding import measure_units, round_blocks
from tests.training.conftest import LAPPED


@pytest.fixture
def codec() -> NeuralCodec:
    torch.manual_seed(0)
    made = NeuralCodec(LAPPED).eval()
    assert made.z_prediction is not None
    with torch.no_grad():
        for p in (*made.z_prediction.parameters(), made.flat_weight, made.flat_bias):
            p.add_(torch.randn_like(p) * 0.2)
        made.z_hidden_bias.values.add_(torch.randn_like(made.z_hidden_bias.values))
    return made


def test_second_shape_costs_what_it_says() -> None:
    codec = NeuralCodec(SHAPES["second"])
    folded = 2 * codec.cfg.latent_channels**2 / 256 / 2
    assert multiply_accumulates(codec.g_s, 16) - folded == pytest.approx(5379, abs=1)
    encoding = multiply_accumulates(codec.g_a, 1) + multiply_accumulates(codec.h_a, 16) - folded
    assert encoding == pytest.approx(12000, abs=1)


def test_configurations_of_before_are_read() -> None:
    old = SHAPES["first"].to_dict()
    for name in list(old):
        if name.startswith("analysis") or name in ("depthwise", "replicate", "z_hidden"):
            del old[name]
    assert CodecConfig.from_dict(old) == SHAPES["first"]
    with pytest.raises(ValueError, match="fine_blocks"):
        CodecConfig.from_dict({k: v for k, v in old.items() if k != "fine_blocks"})


def test_padding_in_training_is_that_of_torch() -> None:
    layer = PaddedConv2d(4, 4, 5, padding=2, groups=4, padding_mode="replicate")
    x = torch.randn(2, 4, 7, 9)
    trained = layer.train()(x)
    assert torch.allclose(trained, layer.eval()(x), atol=1e-6)


@torch.no_grad()
def test_start_from_photos_is_a_transform_of_linear_flat_cells(photos: Path) -> None:
    codec = NeuralCodec(replace(LAPPED, fine_channels=192, analysis_fine_channels=192))
    start_from_photos(codec.eval(), load_photos([photos]), 0)
    colours = torch.tensor([[255.0, 0, 0], [20, 200, 90]])[:, :, None, None]
    x = colours.expand(-1, -1, 128, 128)
    y, _ = codec.analyse(x)
    flat = codec.flat_latents(colours)
    assert torch.allclose(flat.expand_as(y), y, atol=0.04)
    # Nothing is predicted at the start: scales are those of the quality.
    z = torch.randn(2, LAPPED.hyper_channels, 3, 4) * 4
    coded = codec.code_hyper(z, None, torch.tensor([10.0, 90.0]))
    assert torch.equal(coded.s, z)
    want = codec.log_sigma_z(torch.tensor([10.0, 90.0])).exp()[:, :, None, None]
    assert torch.allclose(coded.sigma.log(), want.log().expand_as(z), atol=0.05)


def decoded(
    tables: PredictionTables,
    step: npt.NDArray[np.int64],
    quality: int,
    symbols: npt.NDArray[np.int64],
    flat: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """z_fix and scale indexes of symbols (h, w, Z), in integers as PredictionTables says."""
    h, w, z = symbols.shape
    fix = np.zeros((h + 1, w + 1, z), np.int64)
    indexes = np.zeros_like(symbols)
    for r in range(h):
        for c in range(w):
            seen = np.concatenate([fix[r + 1, c], fix[r, c + 1]])
            hidden = (tables.w1.astype(np.int64) @ seen + tables.b1[quality - 1] + 32) >> 6
            heads = tables.w2.astype(np.int64) @ hidden.clip(0, 255)
            mean = (heads[:z] + tables.b2).clip(-(1 << 14), 1 << 14)
            index = (heads[z:] + tables.index_bias[quality - 1] + 128) >> 8
            indexes[r, c] = index.clip(1, 63)
            if not flat[r, c]:
                value = (symbols[r, c] * step + mean + 8) >> 4
                fix[r + 1, c + 1] = value.clip(-2047, 2047)
    return fix[1:, 1:], indexes


@torch.no_grad()
def test_integers_of_the_prediction_are_those_of_the_network(codec: NeuralCodec) -> None:
    from edgecodec.format.tables import SCALE_MIN, log_scale_step

    quality = 37
    q = torch.tensor([float(quality)])
    z = torch.randn(1, LAPPED.hyper_channels, 5, 7) * 20
    flat = torch.rand(1, 1, 5, 7) < 0.2
    coded = codec.code_hyper(z, flat, q)
    step = build_tables(codec).step_z[quality - 1].astype(np.int64)
    symbols = coded.symbols[0].permute(1, 2, 0).numpy().astype(np.int64)
    tables = build_prediction_tables(codec)
    fix, indexes = decoded(tables, step, quality, symbols, flat[0, 0].numpy())
    assert np.array_equal(fix, (coded.z_fix[0] * 16).permute(1, 2, 0).numpy())
    want = (coded.sigma[0] / SCALE_MIN).log() / log_scale_step()
    assert np.array_equal(indexes, want.round().permute(1, 2, 0).numpy())
    assert len(np.unique(indexes)) > 5
    assert np.abs(fix).max() > 100


@torch.no_grad()
def test_flat_latents_are_those_of_the_integers(codec: NeuralCodec) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 3))
    x = torch.from_numpy(colours).float()[:, :, None, None]
    got = codec.flat_latents(x)[:, :, 0, 0].numpy() * 16
    tables = build_prediction_tables(codec)
    sums = colours @ tables.flat_weight.T.astype(np.int64) + tables.flat_bias
    assert np.abs(((sums + 2048) >> 12) - got).max() <= 1
    assert np.abs(got).max() > 100


def test_training_sees_about_what_coding_in_order_yields(codec: NeuralCodec) -> None:
    z = torch.randn(1, LAPPED.hyper_channels, 6, 6) * 3
    q = torch.tensor([50.0])
    with torch.no_grad():
        ordered = codec.code_hyper(z, None, q)
        at_once = codec.train().code_hyper(z, None, q)
    assert float((ordered.z_fix - at_once.z_fix).abs().mean()) < 0.15
    assert torch.equal(ordered.z_fix[..., :1, :1], at_once.z_fix[..., :1, :1])


@pytest.mark.parametrize("training", [False, True])
def test_flat_cells_cost_nothing_and_come_back_as_they_were(
    codec: NeuralCodec, training: bool
) -> None:
    codec.train(training)
    x = torch.rand(2, 3, 64, 96) * 255
    x[0] = torch.tensor([255.0, 255.0, 0.0])[:, None, None]
    x[1, :, :32, 32:64] = 7.0
    flat, colour = flat_cells(x)
    assert flat.sum() == 7
    assert colour[1, :, 0, 1].tolist() == [7.0] * 3
    x_hat, bits_y, bits_z = codec(x, torch.tensor([20.0, 80.0]))
    spent = (bits_y + bits_z).tolist()
    assert torch.equal(x_hat[0], x[0])
    assert torch.equal(x_hat[1, :, :32, 32:64], x[1, :, :32, 32:64])
    assert spent[0] == 0.0 < spent[1]
    assert not torch.equal(x_hat[1, :, 32:], x[1, :, 32:])
    (x_hat.square().mean() + bits_y.sum() + bits_z.sum()).backward()
    assert codec.flat_weight.grad is not None
    assert float(codec.flat_weight.grad.abs().sum()) > 0  # by what it does to its neighbours


@torch.no_grad()
def test_folding_and_rounding_take_the_second_shape(codec: NeuralCodec) -> None:
    folded = copy.deepcopy(codec)
    assert fold_latent_layers(folded) == (True, True)
    x = torch.rand(1, 3, 64, 64) * 255
    for got, want in zip(folded.analyse(x), codec.analyse(x), strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    y_hat = torch.randn(1, LAPPED.latent_channels, 4, 4) * 30
    assert torch.allclose(folded.synthesise(y_hat), codec.synthesise(y_hat), atol=0.1)
    rounded = copy.deepcopy(codec)
    round_blocks(rounded)
    measure_units(rounded, [x])
    assert torch.isfinite(rounded(x, torch.tensor([50.0]))[0]).all()
