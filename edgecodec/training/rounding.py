"""Quantization-aware training: residual blocks that round as their int8 form will.

The converter keeps the residual trunk in float32 and makes the branches int8
(docs/exact-int8.md). So it is what branches read and what they pass on and give back that is
rounded here, straight through, in units per channel that are learned with the weights (Esser et
al. 2020, arXiv:1902.08153): one for all readers of a trunk, those of what is added to it whole
powers of two finer or coarser. Weights are left alone: the converter rounds them with
compensation, better than rounding to nearest could teach.

Nothing of this is part of the model: `plain_weights` is what a checkpoint keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgecodec.model.folding import fold_latent_layers
from edgecodec.model.network import NeuralCodec, ResidualBlock
from edgecodec.model.quantizers import ste_round

TRUNK_BITS = 3
"""Bits by which the trunk is finer than the codes read from it: the finest a branch can be."""
_SIGNED = (-128, 127)
_POSITIVE = (0, 255)
_STEPS = 3
"""Units tried per octave."""
_OCTAVES = 5
_SAMPLES = 4096


class Rounding(nn.Module):
    """Round to 8-bit codes, in a unit per channel.

    Until `settle`, values pass as they are and are looked at.

    Args:
        channels: C.
        codes: least and largest code.
    """

    def __init__(self, channels: int, codes: tuple[int, int]) -> None:
        super().__init__()
        self.low, self.high = codes
        self.log_unit = nn.Parameter(torch.zeros(channels))
        self.seen: list[tuple[Tensor, Tensor]] | None = None
        """Of each batch, values at random places (C, n) and the largest magnitudes (C,)."""

    def unit(self) -> Tensor:
        """Return the unit of each channel, (C,)."""
        return torch.exp2(self.log_unit)

    def forward(self, x: Tensor) -> Tensor:
        """Round (N, C, H, W)."""
        if self.seen is not None:
            self._look(x)
            return x
        with torch.autocast(x.device.type, enabled=False):
            unit = self.unit()[None, :, None, None]
            codes = ste_round(x.float() / unit).clamp(self.low, self.high)
            return (codes * unit).to(x.dtype)

    @torch.no_grad()
    def _look(self, x: Tensor) -> None:
        assert self.seen is not None
        flat = x.detach().float().movedim(1, 0).flatten(1)
        keep = torch.randint(flat.shape[1], (min(_SAMPLES, flat.shape[1]),), device=x.device)
        self.seen.append((flat[:, keep].cpu(), flat.abs().amax(1).cpu()))

    @torch.no_grad()
    def settle(self) -> None:
        """Take the unit that has the least squared error on what was seen, and round from now."""
        assert self.seen
        samples = torch.cat([values for values, _ in self.seen], 1)
        largest = torch.stack([ends for _, ends in self.seen]).amax(0)
        top = largest.clamp_min(1e-6) / self.high
        units = top * torch.exp2(-torch.arange(_STEPS * _OCTAVES + 1) / _STEPS)[:, None]
        errors = [
            ((samples / u[:, None]).round().clamp(self.low, self.high) * u[:, None] - samples)
            .square()
            .mean(1)
            for u in units
        ]
        best = units.gather(0, torch.stack(errors).argmin(0)[None])[0]
        self.log_unit.copy_(best.log2())
        self.seen = None


class GridRounding(Rounding):
    """Rounding to whole powers of two of the trunk's unit, as what is added to a trunk must be.

    Args:
        trunk: how the trunk is read.
    """

    def __init__(self, trunk: Rounding) -> None:
        super().__init__(trunk.log_unit.numel(), _SIGNED)
        self.trunk = [trunk]
        """In a list, so that its parameters are counted once, where they belong."""

    def unit(self) -> Tensor:
        """Return the unit of each channel, (C,)."""
        trunk = self.trunk[0].log_unit - TRUNK_BITS
        return torch.exp2(trunk + ste_round(self.log_unit - trunk).clamp_min(0.0))


class RoundedBlock(ResidualBlock):
    """A residual block that rounds as its int8 form does.

    Args:
        block: to be copied.
        trunk: how the trunk is read, shared by all blocks along it.
    """

    def __init__(self, block: ResidualBlock, trunk: Rounding) -> None:
        channels, wide = block.enter.out_channels, block.expand.out_channels
        depthwise = block.depthwise
        super().__init__(
            channels, wide, depthwise.kernel_size[0], depthwise.padding_mode == "replicate"
        )
        self.load_state_dict(block.state_dict())
        self.trunk = trunk
        self.entered = Rounding(channels, _POSITIVE)
        self.filtered = Rounding(channels, _SIGNED)
        self.left = GridRounding(trunk)
        self.expanded = Rounding(wide, _POSITIVE)
        self.contracted = GridRounding(trunk)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        inner = self.entered(torch.relu(self.enter(self.trunk(x))))
        x = x + self.left(self.leave(self.filtered(self.depthwise(inner))))
        inner = self.expanded(torch.relu(self.expand(self.trunk(x))))
        out: Tensor = x + self.contracted(self.contract(inner))
        return out


def round_blocks(codec: NeuralCodec) -> None:
    """Make the blocks of both transforms round; `measure_units` says how finely.

    The layers beside the latents are folded first, as they will be when the codec is converted:
    what is rounded depends on the basis. What is left of them is not trained.
    """
    folded = fold_latent_layers(codec, magnitudes=True)
    for layer, done in zip((codec.g_a[-1], codec.g_s[0]), folded, strict=True):
        layer.requires_grad_(not done)
    for net in (codec.g_a, codec.g_s):
        trunk: Rounding | None = None
        for i, layer in enumerate(net):
            if isinstance(layer, ResidualBlock):
                trunk = trunk or Rounding(layer.enter.out_channels, _SIGNED)
                net[i] = RoundedBlock(layer, trunk)
            else:
                trunk = None


def _roundings(codec: NeuralCodec) -> list[Rounding]:
    return [module for module in codec.modules() if isinstance(module, Rounding)]


@torch.no_grad()
def measure_units(codec: NeuralCodec, images: Sequence[Tensor]) -> None:
    """Set the units by what float networks make of images.

    Args:
        codec: with blocks that round.
        images: (N, 3, H, W) float32 each, levels 0..255, sides multiples of 32.
    """
    for rounding in _roundings(codec):
        rounding.seen = []
    for x in images:
        codec(x, torch.linspace(1.0, 100.0, len(x), device=x.device))
    for rounding in _roundings(codec):
        rounding.settle()


def plain_weights(codec: NeuralCodec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of a state's tensors that are the model, without the units of its roundings."""
    extra = {
        f"{name}.{parameter}"
        for name, module in codec.named_modules(remove_duplicate=False)
        if isinstance(module, Rounding)
        for parameter, _ in module.named_parameters(recurse=False)
    }
    return {name: tensor for name, tensor in state.items() if name not in extra}
