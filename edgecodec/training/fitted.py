"""Our entropy model on transforms that somebody else trained.

A float hyper-synthesis cannot be kept: runtimes answer it differently, and one scale index that
differs ruins the rest of a file. So hyper-analysis, integer hyper-synthesis, gains and steps are
learned anew around the transforms, which stay as they are (docs/own-codec.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from edgecodec.arrays import UInt8Array
from edgecodec.format.tables import Tables
from edgecodec.model import config as fmt
from edgecodec.model.config import CodecConfig
from edgecodec.model.export_tables import build_tables
from edgecodec.model.network import NeuralCodec
from edgecodec.training.initialisation import set_scales
from edgecodec.training.loss import rate_distortion_loss
from edgecodec.training.photos import CropStream, to_images

_PROBES = 8
_UNIT_RESPONSE = fmt.PIXEL_UNIT / fmt.Y_UNIT
"""Length of what one unit of y adds to a picture, in levels; steps of about 1 suit it."""


class _Stage(nn.Module):
    """A function of a codec as a module; the codec's weights are its own."""

    def __init__(self, codec: nn.Module, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.codec, self.function = codec, function

    def forward(self, value: Tensor) -> object:
        """Run the stage."""
        return self.function(value)


class FittedCodec(NeuralCodec):
    """A codec whose transforms were trained elsewhere; a `TrainedCodec` for the converter.

    Args:
        analysis: maps x (N, 3, H, W), levels 0..255, to y (N, M, H/16, W/16), in any unit.
        synthesis: maps y_hat, in that unit, to x_hat (N, 3, H, W), levels.
        latent_channels: M.
        cfg: channels of the entropy model, and the range of lambda that qualities 1..100 span;
            what it says about transforms means nothing. None takes the defaults.
    """

    unit: Tensor
    """(1, M, 1, 1), what y is multiplied by so that a step of about 1 is the finest of use."""

    def __init__(
        self,
        analysis: nn.Module,
        synthesis: nn.Module,
        latent_channels: int,
        cfg: CodecConfig | None = None,
    ) -> None:
        none = {"fine_channels": 1, "fine_blocks": 0, "coarse_channels": 1, "coarse_blocks": 0}
        super().__init__(replace(cfg or CodecConfig(), latent_channels=latent_channels, **none))
        self.g_a, self.g_s = analysis, synthesis  # type: ignore[assignment]
        self.register_buffer("unit", torch.ones(1, latent_channels, 1, 1))

    def analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map an image (N, 3, H, W), levels 0..255, to y and the unscaled hyper-latents."""
        y = self.g_a(x) * self.unit
        return y, self.h_a(y * (1.0 / fmt.Y_UNIT))

    def synthesise(self, y_hat: Tensor) -> Tensor:
        """Map y_hat (N, M, h, w) to an image (N, 3, 16h, 16w), levels."""
        x_hat: Tensor = self.g_s(y_hat * (1.0 / self.unit))
        return x_hat

    @property
    def analysis(self) -> nn.Module:
        """What maps x to y and z."""
        return _Stage(self, self.analyse)

    @property
    def synthesis(self) -> nn.Module:
        """What maps y_hat to x_hat."""
        return _Stage(self, self.synthesise)

    @property
    def tables(self) -> Tables:
        """The integers of the entropy model."""
        return build_tables(self)

    def fit(
        self,
        photos: list[UInt8Array],
        *,
        steps: int = 1000,
        batch: int = 8,
        size: int = 128,
        learning_rate: float = 3e-3,
        seed: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Learn everything but the transforms, on the device the codec is on.

        Args:
            photos: (H, W, 3) uint8, no side smaller than `size`.
            steps: of Adam, each on `batch` crops of `size` x `size` pixels at as many qualities.
            batch: crops.
            size: a multiple of 32.
            learning_rate: at the start; it falls to zero.
            seed: of crops, qualities and noise.
            progress: told a line now and then.
        """
        torch.manual_seed(seed)
        for network in (self.g_a, self.g_s):
            network.requires_grad_(False)
        stream = CropStream(photos, batch=batch, size=size, seed=seed, start=0)
        try:
            self._start([self._crops(stream) for _ in range(_PROBES)])
            self._learn(stream, steps, learning_rate, seed, progress)
        finally:
            stream.close()
        self.eval()

    def _crops(self, stream: CropStream) -> Tensor:
        return to_images(stream.next(), self.unit.device)

    def _start(self, batches: list[Tensor]) -> None:
        """Choose units by what a latent does to the picture, and scales by how it spreads."""
        self.eval()
        power, latents = torch.zeros_like(self.unit), []
        for x in batches:
            y = self.g_a(x).detach().requires_grad_()
            x_hat = self.g_s(y)
            # The gradient of a sum of random signs has, in the mean, the energy of all responses.
            signs = torch.randint_like(x_hat, 2) * 2 - 1
            (gradient,) = torch.autograd.grad((x_hat * signs).sum(), y)
            power += (gradient**2).mean((0, 2, 3), keepdim=True) / len(batches)
            latents.append(y.detach())
        response = power.sqrt()
        self.unit.copy_(response.clamp_min(1e-3 * float(response.max())) / _UNIT_RESPONSE)
        y = torch.cat(latents) * self.unit
        with torch.no_grad():
            set_scales(self, y.std((0, 2, 3)), y.mean((0, 2, 3)))

    def _learn(
        self,
        stream: CropStream,
        steps: int,
        learning_rate: float,
        seed: int,
        progress: Callable[[str], None] | None,
    ) -> None:
        learned = [p for p in self.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(learned, lr=learning_rate)
        rng = np.random.default_rng(seed)
        begin = time.monotonic()
        self.train()
        self.g_a.eval()
        self.g_s.eval()
        for step in range(steps):
            x = self._crops(stream)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            # Stratified: every batch spans the whole range of qualities.
            offsets = (np.arange(len(x)) + rng.random(len(x))) / len(x)
            quality = torch.from_numpy(1.0 + 99.0 * offsets).float().to(x.device)
            losses = rate_distortion_loss(self, x, quality)
            optimiser.zero_grad(set_to_none=True)
            losses.loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimiser.step()
            if progress and ((step + 1) % 100 == 0 or step + 1 == steps):
                progress(
                    f"step {step + 1} of {steps}: {losses.bpp.mean():.3f} bpp, "
                    f"loss {losses.loss:.4f}, {time.monotonic() - begin:.0f} s"
                )
