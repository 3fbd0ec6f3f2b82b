"""Fold the 1x1 convolutions beside the latents into the residual blocks.

A residual trunk has no basis of its own: for any invertible E, blocks that read `x = E x' + e`
may read x' instead with `W E` for each of their weights W, and give back `E^-1 V` for each V. So
the convolution that ends the analysis and the one that begins the synthesis need not be computed:
the trunk can count in latents all along. Training begins with them, since it converges better in
a basis of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecodec.model.network import NeuralCodec, ResidualBlock

_MOST = 1000.0
"""Condition number up to which folding keeps 13 of float32's 24 bits; trained ones have 8 to 26."""


@torch.no_grad()
def fold_latent_layers(codec: NeuralCodec, *, magnitudes: bool = False) -> tuple[bool, bool]:
    """Make the last layer of g_a and the first of g_s do nothing; the codec stays the same.

    Args:
        codec: changed in place; its weights are float32.
        magnitudes: leave a power of two per channel in these layers, so that the channels of the
            trunk keep magnitudes that can be trained; otherwise nothing but the identity is left.

    Returns:
        whether that could be done, of g_a and g_s: not where the numbers of channels differ or
        the layer is nearly singular.
    """
    return _fold_last(codec.g_a, magnitudes), _fold_first(codec.g_s, magnitudes)


def _fold_first(net: nn.Sequential, magnitudes: bool) -> bool:
    """Move the first layer of `net` behind the blocks that follow it."""
    layer, *rest = net
    assert isinstance(layer, nn.Conv2d)
    if not _invertible(layer):
        return False
    left = _left(layer, magnitudes)
    matrix, offset = _matrix(layer) / left, _offset(layer)
    for follower in rest:
        if not isinstance(follower, ResidualBlock):
            assert isinstance(follower, nn.Conv2d)
            _read_through(follower, matrix, offset)
            break
        _change_basis(follower, matrix, offset)
    _set_diagonal(layer, left)
    return True


def _fold_last(net: nn.Sequential, magnitudes: bool) -> bool:
    """Move the last layer of `net` before the blocks that precede it."""
    *rest, layer = net
    assert isinstance(layer, nn.Conv2d)
    if not _invertible(layer):
        return False
    left = _left(layer, magnitudes)
    matrix, offset = _matrix(layer) / left[:, None], _offset(layer) / left
    inverse = torch.linalg.inv(matrix)
    for leader in reversed(rest):
        if not isinstance(leader, ResidualBlock):
            assert isinstance(leader, nn.Conv2d)
            _write_through(leader, matrix)
            _offset_by(leader, offset)
            break
        _change_basis(leader, inverse, -inverse @ offset)
    _set_diagonal(layer, left)
    return True


def _left(layer: nn.Conv2d, magnitudes: bool) -> Tensor:
    """Return what is left of a layer, (C,)."""
    norms = _matrix(layer).norm(dim=1)
    return norms.log2().round().exp2() if magnitudes else torch.ones_like(norms)


def _change_basis(block: ResidualBlock, matrix: Tensor, offset: Tensor) -> None:
    """Make a block over x one over x', where x = matrix x' + offset."""
    inverse = torch.linalg.inv(matrix)
    for reader in (block.enter, block.expand):
        _read_through(reader, matrix, offset)
    for writer in (block.leave, block.contract):
        _write_through(writer, inverse)


def _read_through(layer: nn.Conv2d, matrix: Tensor, offset: Tensor) -> None:
    """Make `layer(x')` what `layer(matrix x' + offset)` was; `layer` must not pad."""
    weight = layer.weight.double()
    _offset_by(layer, torch.einsum("oihw,i->o", weight, offset))
    layer.weight.copy_(torch.einsum("oihw,ij->ojhw", weight, matrix))


def _write_through(layer: nn.Conv2d, matrix: Tensor) -> None:
    """Make a layer's output `matrix` times what it was."""
    layer.weight.copy_(torch.einsum("po,oihw->pihw", matrix, layer.weight.double()))
    layer.bias.copy_(matrix @ _offset(layer))  # type: ignore[union-attr]


def _offset_by(layer: nn.Conv2d, offset: Tensor) -> None:
    layer.bias.copy_(_offset(layer) + offset)  # type: ignore[union-attr]


def _matrix(layer: nn.Conv2d) -> Tensor:
    return layer.weight[:, :, 0, 0].double()


def _offset(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.double()


def _invertible(layer: nn.Conv2d) -> bool:
    matrix = _matrix(layer)
    square = matrix.shape[0] == matrix.shape[1]
    # Not of its own rows' magnitudes, which floating point does not mind.
    rows = matrix / matrix.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return square and bool(torch.linalg.cond(rows) <= _MOST)


def _set_diagonal(layer: nn.Conv2d, diagonal: Tensor) -> None:
    layer.weight.copy_(torch.diag(diagonal)[:, :, None, None])
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
