"""Units of the format's maps."""

from __future__ import annotations

from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE, LATENTS_PER_HYPER, padded_side


def test_strides_are_those_of_the_document() -> None:
    assert (LATENT_STRIDE, HYPER_STRIDE, LATENTS_PER_HYPER) == (16, 32, 2)


def test_padded_side_is_the_next_whole_cell() -> None:
    assert [padded_side(n) for n in (1, 32, 33, 64, 65)] == [32, 32, 64, 64, 96]
