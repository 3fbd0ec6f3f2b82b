"""What a tile must see around it: enough, and not generous."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgecodec.converters.graph.from_torch import graph_from_module
from edgecodec.converters.graph.receptive_field import halo
from edgecodec.converters.sources.source import Source, read_source
from edgecodec.model.checkpoint import save_checkpoint
from edgecodec.model.config import CodecConfig
from edgecodec.model.network import NeuralCodec
from tests.converters.conftest import Residual

NETWORKS: dict[str, tuple[nn.Module, int, int]] = {
    # A network, pixels per position of its result, and how far it reaches.
    "nothing": (nn.Conv2d(3, 4, 1), 1, 0),
    "patches": (nn.Conv2d(3, 4, 8, stride=8), 8, 0),
    "overlapping": (nn.Conv2d(3, 4, 5, stride=2, padding=2), 2, 2),
    "deeper": (
        nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(4, 4, 5, stride=2, padding=2),
        ), 4, 6,
    ),
    "dilated": (nn.Conv2d(3, 4, 3, padding=4, dilation=4), 1, 4),
    "one_axis": (nn.Conv2d(3, 4, (1, 7), padding=(0, 3)), 1, 3),
    "one_side": (nn.Conv2d(3, 4, 2, padding="same"), 1, 1),
    "replicated": (
        nn.Sequential(
            nn.Conv2d(3, 4, 5, padding=2, padding_mode="replicate"), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"),
        ), 1, 3,
    ),
    "unshuffled": (
        nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 2, 3, padding=1)), 4, 4
    ),
    "there_and_back": (
        nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), Residual(8), nn.PixelShuffle(2), Residual(2)),
        1, 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_halo_is_what_networks_reach(name: str) -> None:
    network, stride, reach = NETWORKS[name]
    for parameter in network.parameters():  # so that nothing cancels and no ReLU is closed
        nn.init.uniform_(parameter, 0.1, 1.0)
    graph = graph_from_module(network, stage="s", inputs={"x": 3}, outputs=["y"])
    assert halo(graph, 16, {"y": 16 // stride}) == reach
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    block = slice(32 // stride, 48 // stride)
    network(x)[:, :, block, block].sum().backward()
    assert x.grad is not None
    seen = torch.nonzero(x.grad.abs().amax((0, 1)))
    assert max(32 - int(seen.min()), int(seen.max()) - 47) == reach


def test_the_widest_of_several_outputs_counts() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 2, stride=2)
            self.second = nn.Conv2d(4, 4, 3, padding=1, stride=2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.first(x)
            return y, self.second(y)

    graph = graph_from_module(Two(), stage="s", inputs={"x": 3}, outputs=["y", "z"])
    assert halo(graph, 4, {"y": 2, "z": 1}) == 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    torch.manual_seed(1)
    cfg = CodecConfig(
        latent_channels=8,
        hyper_channels=4,
        fine_channels=8,
        coarse_channels=8,
        hyper_analysis_channels=8,
        hyper_hidden=8,
        hyper_features=4,
    )
    codec = NeuralCodec(cfg)
    path = tmp_path_factory.mktemp("codec") / "codec.pt"
    save_checkpoint(path, {"config": cfg.to_dict(), "weights": codec.state_dict(), "step": 0})
    return read_source(path)


def test_a_tile_with_its_halo_is_computed_as_in_the_whole(source: Source) -> None:
    """At the edges of what it is given, the networks put zeros of their own."""
    rng = np.random.default_rng(3)
    photo = rng.integers(0, 256, (256, 320, 3), dtype=np.uint8)
    assert (source.analysis_field, source.synthesis_halo) == (64, 3)
    y, z = source.analyse(photo)
    part_y, part_z = source.analyse(photo[32:224, 64:256])
    assert np.allclose(part_y[4:8, 4:8], y[6:10, 8:12], atol=1e-4)
    assert np.allclose(part_z[2:4, 2:4], z[3:5, 4:6], atol=1e-4)
    y_hat = rng.integers(-500, 500, (12, 14, 8)).astype(np.int16)
    part = source.synthesise(y_hat[2:9, 3:10])[48:64, 48:64]
    assert np.allclose(part, source.synthesise(y_hat)[80:96, 96:112], atol=1e-3)
    cut = source.synthesise(y_hat[3:9, 3:10])[32:48, 48:64]
    assert not np.allclose(cut, source.synthesise(y_hat)[80:96, 96:112], atol=1e-3)
