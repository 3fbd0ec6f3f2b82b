"""Straight-through quantizers: integer arithmetic forwards, usable gradients backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RoundClip(torch.autograd.Function):
    """Round half up to a multiple of a power of two and clip.

    Outside the range the gradient passes only where it leads back in, so that a value that has
    run into a bound can leave it again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: float, low: float, high: float) -> Tensor:
        rounded = torch.floor(x * (1.0 / unit) + 0.5)
        ctx.save_for_backward(rounded < low, rounded > high)
        return rounded.clamp(low, high) * unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        below, above = ctx.saved_tensors
        blocked = (below & (grad > 0)) | (above & (grad < 0))
        return grad.masked_fill(blocked, 0.0), None, None, None


def round_clip(x: Tensor, frac: int, low: int, high: int) -> Tensor:
    """Quantize to `frac` fractional bits and to integers in [low, high], straight through.

    Rounds half up, as `(v + half) >> shift` does in the integer decoder. *Bit-exact everywhere*
    as long as `x` itself is exact.

    Args:
        x: any shape, float32.
        frac: number of fractional bits.
        low: smallest integer.
        high: largest integer.
    """
    out: Tensor = _RoundClip.apply(x, 2.0**-frac, float(low), float(high))  # type: ignore[no-untyped-call]
    return out


def ste_round(x: Tensor) -> Tensor:
    """Round half up with an identity gradient (straight-through estimator)."""
    return x + (torch.floor(x + 0.5) - x).detach()


def significant(x: Tensor, bits: int) -> Tensor:
    """Round to a number of significant binary digits."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2.0**bits) * 2.0**-bits, exponent)
