"""A codec that edgecodec did not train, from training to a bundle (docs/own-codec.md).

    python docs/examples/own_codec.py train photos/ --minutes 2
    edgecodec convert docs/examples/own_codec.py:load_codec -o own.bundle --calibration photos/

Networks, loss and checkpoint are its author's. Two functions at the end give the converter what it
asks for: `load_codec` with the simplest entropy model, and `load_fitted` with a hyperprior that
`python docs/examples/own_codec.py fit photos/` learns around the same networks.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from edgecodec.model.channel_tables import channel_tables, steps_between
from edgecodec.model.config import CodecConfig
from edgecodec.training.fitted import FittedCodec
from edgecodec.training.photos import CropStream, load_photos, to_images

CHECKPOINT = Path(os.environ.get("OWN_CODEC", "own_codec.pt"))
CHANNELS = 128
COARSEST = 12.0
"""Latents are quantized in steps between 1 and this."""
LAMBDA = 0.1
"""Bits per pixel that a squared level of error is worth at a step of 1."""
CPU = torch.device("cpu")


class Bottleneck(nn.Module):
    """A residual block: wide, depthwise, narrow."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1), nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.ReLU(inplace=True),
            nn.Conv2d(wide, channels, 1),
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        out: Tensor = x + self.layers(x)
        return out


class Autoencoder(nn.Module):
    """Pixels in 0..1 to latents and back, with a Gaussian per channel as entropy model."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 96, 8, stride=8),
            Bottleneck(96),
            Bottleneck(96),
            nn.Conv2d(96, CHANNELS, 2, stride=2),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(CHANNELS, 96, 2, stride=2),
            Bottleneck(96),
            Bottleneck(96),
            nn.ConvTranspose2d(96, 3, 8, stride=8),
        )
        self.log_scale = nn.Parameter(torch.full((CHANNELS, 1, 1), 2.0))
        with torch.no_grad():  # starts as an orthonormal transform and its inverse
            for down, up in ((0, -1), (-1, 0)):
                nn.init.orthogonal_(self.encoder[down].weight)
                self.decoder[up].weight.copy_(self.encoder[down].weight)

    def analyse(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to latents (N, CHANNELS, H/16, W/16)."""
        y: Tensor = self.encoder(x - 0.5) * 16
        return y

    def synthesise(self, y: Tensor) -> Tensor:
        """Map latents to pixels."""
        x: Tensor = self.decoder(y / 16) + 0.5
        return x

    def forward(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels and bits of each latent, quantized in steps (N, 1, 1, 1)."""
        y = self.analyse(x)
        y = y + (torch.rand_like(y) - 0.5) * step
        prior = torch.distributions.Normal(0.0, self.log_scale.exp())
        likelihood = prior.cdf(y + step / 2) - prior.cdf(y - step / 2)
        return self.synthesise(y), -torch.log2(likelihood.clamp_min(1e-9))


def train(images: list[Path], minutes: float, most: int, size: int) -> None:
    """Train, and save the weights with some latents of the photos."""
    torch.manual_seed(1)
    network = Autoencoder()
    optimiser = torch.optim.Adam(network.parameters())
    crops = CropStream(load_photos(images, min_side=size), batch=8, size=size, seed=1, start=0)
    begin, done, count = time.monotonic(), 0.0, 0
    while done < 1.0:
        optimiser.param_groups[0]["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * done))
        x = to_images(crops.next(), CPU) / 255
        step = COARSEST ** torch.rand(len(x), 1, 1, 1)
        x_hat, bits = network(x, step)
        bpp = bits.sum((1, 2, 3)) / size**2
        mse = 255**2 * ((x - x_hat) ** 2).mean((1, 2, 3))
        step = step.flatten()
        loss = (step * (bpp + LAMBDA / step**2 * mse)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        count += 1
        done = max(count / most, (time.monotonic() - begin) / (60 * minutes))
        if count % 200 == 0 or done >= 1.0:
            print(f"step {count}, {time.monotonic() - begin:.0f} s: {bpp.mean():.2f} bpp", end=", ")
            print(f"{10 * math.log10(255**2 / float(mse.mean().detach())):.1f} dB", flush=True)
    with torch.inference_mode():
        y = torch.cat([network.analyse(to_images(crops.next(), CPU) / 255) for _ in range(16)])
    crops.close()
    latents = y.permute(0, 2, 3, 1).reshape(-1, CHANNELS)
    torch.save({"network": network.state_dict(), "latents": latents}, CHECKPOINT)


def fit(images: list[Path], steps: int, size: int) -> None:
    """Learn a hyperprior around the trained networks, and save it with them."""
    saved = torch.load(CHECKPOINT, weights_only=True)
    codec = around(load_network())
    codec.fit(load_photos(images, min_side=size), steps=steps, size=size, progress=print)
    torch.save({**saved, "fitted": codec.state_dict()}, CHECKPOINT)


class Analysis(nn.Module):
    """Levels 0..255 to latents."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage."""
        return self.network.analyse(x / 255)


class Synthesis(nn.Module):
    """Latents to levels 0..255."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, y_hat: Tensor) -> Tensor:
        """Run the stage."""
        return self.network.synthesise(y_hat) * 255


def load_network() -> Autoencoder:
    """Return the trained networks."""
    network = Autoencoder()
    network.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["network"])
    return network


def load_codec() -> SimpleNamespace:
    """Return the codec with one mean and one scale per channel."""
    network = load_network()
    latents = torch.load(CHECKPOINT, weights_only=True)["latents"].numpy()
    return SimpleNamespace(
        analysis=Analysis(network),
        synthesis=Synthesis(network),
        tables=channel_tables(latents, steps_between(COARSEST, 1.0)),
    )


def around(network: Autoencoder) -> FittedCodec:
    """Return the networks with a hyperprior around them, not yet learned."""
    cfg = CodecConfig(hyper_channels=24, lambda_min=LAMBDA / COARSEST**2, lambda_max=LAMBDA)
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
    parser.add_argument("--steps", type=int, default=1_000_000, help="of training at most")
    parser.add_argument("--fit-steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=128, help="side of a crop")
    args = parser.parse_args()
    if args.command == "train":
        train(args.images, args.minutes, args.steps, args.size)
    else:
        fit(args.images, args.fit_steps, args.size)


if __name__ == "__main__":
    main()
