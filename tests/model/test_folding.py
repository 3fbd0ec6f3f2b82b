from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgecodec.model.config import CodecConfig
from edgecodec.model.folding import fold_latent_layers
from edgecodec.model.network import NeuralCodec
from edgecodec.model.stages import build_stages
from tests.training.conftest import SMALL


def codec(config: CodecConfig = SMALL) -> NeuralCodec:
    torch.manual_seed(0)
    made = NeuralCodec(config).eval()
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                layer.bias.normal_()
    return made


def latent_layers(model: NeuralCodec) -> tuple[nn.Module, nn.Module]:
    return model.g_a[-1], model.g_s[0]


@pytest.mark.parametrize("magnitudes", [False, True])
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_folding_keeps_the_codec(blocks: int, magnitudes: bool) -> None:
    plain = codec(CodecConfig(**{**SMALL.to_dict(), "coarse_blocks": blocks}))
    folded = copy.deepcopy(plain)
    assert fold_latent_layers(folded, magnitudes=magnitudes) == (True, True)
    x = torch.rand(2, 3, 64, 96) * 255
    y_hat = torch.randn(2, SMALL.latent_channels, 4, 6) * 30
    with torch.inference_mode():
        for got, want in zip(folded.analyse(x), plain.analyse(x), strict=True):
            assert torch.allclose(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        got, want = folded.synthesise(y_hat), plain.synthesise(y_hat)
        assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max()))
    for layer in latent_layers(folded):
        assert isinstance(layer, nn.Conv2d)
        matrix = layer.weight[:, :, 0, 0]
        diagonal = matrix.diagonal()
        assert torch.equal(matrix, torch.diag(diagonal))
        assert torch.equal(diagonal.log2(), diagonal.log2().round())
        assert magnitudes or (diagonal == 1).all()
        assert not layer.bias.any()  # type: ignore[union-attr]


def test_folding_again_changes_nothing() -> None:
    once = codec()
    fold_latent_layers(once, magnitudes=True)
    twice = copy.deepcopy(once)
    assert fold_latent_layers(twice, magnitudes=True) == (True, True)
    for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_layers_that_cannot_be_undone_stay() -> None:
    wide = codec(CodecConfig(**{**SMALL.to_dict(), "latent_channels": 24}))
    singular = codec()
    with torch.no_grad():
        for layer in latent_layers(singular):
            layer.weight[0] = layer.weight[1]  # type: ignore[index, operator]
    for model in (wide, singular):
        before = copy.deepcopy(model.state_dict())
        assert fold_latent_layers(model) == (False, False)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for model, count in ((wide, 1), (codec(), 0)):
        analysis, synthesis = build_stages(model)
        convolutions = [m for m in synthesis.g_s if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 2 + count
        assert len([m for m in analysis.g_a if isinstance(m, nn.Conv2d)]) == 2 + count
