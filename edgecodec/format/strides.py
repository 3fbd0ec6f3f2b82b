"""How many pixels a position of each map stands for; the format allows no others."""

LATENT_STRIDE = 16
"""Pixels per latent in each direction."""
HYPER_STRIDE = 32
"""Pixels per hyper-latent in each direction; pictures are padded to a multiple of it."""
LATENTS_PER_HYPER = HYPER_STRIDE // LATENT_STRIDE
"""Latents per hyper-latent in each direction."""


def padded_side(side: int) -> int:
    """Return a side in pixels rounded up to whole cells of 32.

    >>> padded_side(1), padded_side(64), padded_side(65)
    (32, 64, 96)
    """
    return -(-side // HYPER_STRIDE) * HYPER_STRIDE
