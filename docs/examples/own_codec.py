"""A codec that edgecodec did not train, from training to a bundle (docs/own-codec.md).

    python docs/examples/own_codec.py train photos/ --minutes 2
    edgecodec convert docs/examples/own_codec.py:load_codec -o own.bundle --calibration photos/

Networks, loss and checkpoint are the author's own. Two functions at the end give the converter
what it asks for: `load_codec` with the simplest entropy model, `load_fitted` with a hyperprior
that `python docs/examples/own_codec.py fit photos/` learns around the same networks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from edgecodec.model.channel_tables import channel_tables, steps_between
from edgecodec.model.config import CodecConfig
from edgecodec.model.data import CropStream, load_photos, to_images
from edgecodec.model.fitted import FittedCodec

CHECKPOINT = Path(os.environ.get("OWN_CODEC", "own_codec.pt"))
CHANNELS = 96
LAMBDA = 0.013
FINEST = 0.25
"""Finest step that qualities reach; the networks are trained for steps of 1."""


class Autoencoder(nn.Module):
    """Pixels in 0..1 to latents that are rounded to whole numbers, and back.

    The transforms of Balle et al. 2018 (arXiv:1802.01436), narrower and with ReLU, and their
    factorized prior with a Gaussian per channel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(32, 48, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(48, 64, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(64, CHANNELS, 5, stride=2, padding=2),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(CHANNELS, 64, 5, stride=2, padding=2, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(64, 48, 5, stride=2, padding=2, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(48, 32, 5, stride=2, padding=2, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 5, stride=2, padding=2, output_padding=1),
        )  # fmt: skip
        self.log_scale = nn.Parameter(torch.zeros(CHANNELS, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the picture and the bits of each latent."""
        y = self.encoder(x)
        y = y + torch.rand_like(y) - 0.5
        prior = torch.distributions.Normal(0.0, self.log_scale.exp())
        likelihood = prior.cdf(y + 0.5) - prior.cdf(y - 0.5)
        return self.decoder(y), -torch.log2(likelihood.clamp_min(1e-9))


def train(images: list[Path], minutes: float, steps: int, size: int) -> None:
    """Train, and save the weights with some latents of the photos."""
    torch.manual_seed(1)
    network = Autoencoder()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    crops = CropStream(load_photos(images, min_side=size), batch=8, size=size, seed=1, start=0)
    begin, end = time.monotonic(), time.monotonic() + 60 * minutes
    for step in range(steps):
        x = to_images(crops.next(), torch.device("cpu")) / 255
        x_hat, bits = network(x)
        bpp, mse = bits.sum() / x[:, 0].numel(), ((x - x_hat) ** 2).mean()
        optimiser.zero_grad()
        (bpp + LAMBDA * 255**2 * mse).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if step % 200 == 199:
            spent = time.monotonic() - begin
            print(f"step {step + 1}, {spent:.0f} s: {bpp:.3f} bpp, MSE {255**2 * mse:.0f}")
        if time.monotonic() > end:
            break
    with torch.inference_mode():
        y = [network.encoder(to_images(crops.next(), torch.device("cpu")) / 255) for _ in range(16)]
    crops.close()
    latents = torch.cat(y).permute(0, 2, 3, 1).reshape(-1, CHANNELS)
    torch.save({"network": network.state_dict(), "latents": latents}, CHECKPOINT)


def fit(images: list[Path], steps: int, size: int) -> None:
    """Learn a hyperprior around the trained networks, and save both."""
    codec = around(load_network())
    codec.fit(load_photos(images, min_side=size), steps=steps, size=size, progress=print)
    saved = torch.load(CHECKPOINT, weights_only=True)
    torch.save({**saved, "fitted": codec.state_dict()}, CHECKPOINT)


class Analysis(nn.Module):
    """Levels 0..255 to latents, in units of the finest step."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.encoder = network.encoder

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage."""
        y: Tensor = self.encoder(x / 255) / FINEST
        return y


class Synthesis(nn.Module):
    """Latents in units of the finest step to levels 0..255."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.decoder = network.decoder

    def forward(self, y_hat: Tensor) -> Tensor:
        """Run the stage."""
        x_hat: Tensor = self.decoder(y_hat * FINEST) * 255
        return x_hat


def load_network() -> Autoencoder:
    """Return the trained networks."""
    network = Autoencoder()
    network.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["network"])
    return network


def load_codec() -> SimpleNamespace:
    """Return the codec with one mean and one scale per channel."""
    network = load_network()
    latents = torch.load(CHECKPOINT, weights_only=True)["latents"].numpy() / FINEST
    tables = channel_tables(latents, steps_between(8.0, FINEST) / FINEST)
    return SimpleNamespace(analysis=Analysis(network), synthesis=Synthesis(network), tables=tables)


def around(network: Autoencoder) -> FittedCodec:
    """Return the networks with a hyperprior around them, not yet learned."""
    cfg = CodecConfig(hyper_channels=24, lambda_min=0.001, lambda_max=0.1)
    return FittedCodec(Analysis(network), Synthesis(network), CHANNELS, cfg)


def load_fitted() -> FittedCodec:
    """Return the codec with its learned hyperprior."""
    codec = around(Autoencoder())
    codec.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["fitted"])
    return codec


def main() -> None:
    """Train or fit, by the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "fit"))
    parser.add_argument("images", type=Path, nargs="+", help="folders or tar files of photos")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training")
    parser.add_argument("--steps", type=int, default=None, help="at most")
    parser.add_argument("--size", type=int, default=128, help="side of a crop")
    args = parser.parse_args()
    if args.command == "train":
        train(args.images, args.minutes, args.steps or 1_000_000, args.size)
    else:
        fit(args.images, args.steps or 1000, args.size)


if __name__ == "__main__":
    sys.exit(main())
