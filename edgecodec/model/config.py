"""The shape of a codec: channel counts, block counts and units."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

PIXEL_UNIT = 256.0
PIXEL_OFFSET = 127.5
"""Networks see (level - 127.5) / 256: a power of two, so that folding it into weights is exact."""

Y_UNIT = 16.0
"""The analysis output times this is y, so that the finest quantization step is about 1."""


@dataclass(frozen=True)
class CodecConfig:
    """Channel and block counts of one codec; enough to rebuild its networks.

    The defaults are the first shape, about 7 kMAC per pixel on each side; `SHAPES` has the others.
    Fields that a checkpoint may lack, being younger, default to what was so before they existed.

    Attributes:
        fine_channels: width at 1/8 of the resolution; like the three fields after it of the
            synthesis, and of the analysis where that has no number of its own.
        fine_expansion: width inside the synthesis' blocks at 1/8; 0 takes twice their channels.
        coarse_expansion: likewise at 1/16.
        depthwise: side of the depthwise filters.
        overlap: pixels by which a block of the first layer reaches into its neighbours.
        replicate: 1 to pad with the outermost values, 0 to pad with zeros.
        z_hidden: width of the network that predicts hyper-latents from the left and the upper one;
            0 for none.
        flat_cells: 1 if cells of one colour are coded as that colour.
    """

    latent_channels: int = 256
    hyper_channels: int = 48
    fine_channels: int = 128
    fine_blocks: int = 3
    coarse_channels: int = 256
    coarse_blocks: int = 1
    hyper_analysis_channels: int = 96
    hyper_hidden: int = 96
    hyper_features: int = 48
    context_features: int = 48
    anchors: int = 9
    lambda_min: float = 0.0006
    lambda_max: float = 0.15
    analysis_fine_channels: int = 0
    analysis_fine_blocks: int = 0
    analysis_coarse_channels: int = 0
    analysis_coarse_blocks: int = 0
    fine_expansion: int = 0
    coarse_expansion: int = 0
    depthwise: int = 3
    overlap: int = 0
    replicate: int = 0
    z_hidden: int = 0
    flat_cells: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CodecConfig:
        """Rebuild a configuration; unknown names and missing older ones are refused.

        Raises:
            ValueError: a field is unknown, missing or not a number.
        """
        known = {f.name: f.type for f in fields(cls)}
        unknown = sorted(set(values) - set(known))
        missing = sorted(set(known) - set(values) - _YOUNGER)
        if unknown or missing:
            raise ValueError(f"codec configuration: unknown {unknown}, missing {missing}")
        if not all(isinstance(v, (int, float)) for v in values.values()):
            raise ValueError("codec configuration: every field must be a number")
        return cls(**values)


_YOUNGER = {
    "analysis_fine_channels",
    "analysis_fine_blocks",
    "analysis_coarse_channels",
    "analysis_coarse_blocks",
    "fine_expansion",
    "coarse_expansion",
    "depthwise",
    "overlap",
    "replicate",
    "z_hidden",
    "flat_cells",
}

SHAPES = {
    "first": CodecConfig(),
    "second": CodecConfig(
        latent_channels=320,
        fine_channels=128,
        fine_blocks=2,
        coarse_channels=320,
        coarse_blocks=1,
        lambda_max=0.8,
        analysis_fine_channels=144,
        analysis_fine_blocks=3,
        analysis_coarse_channels=320,
        analysis_coarse_blocks=1,
        fine_expansion=160,
        coarse_expansion=448,
        depthwise=5,
        overlap=4,
        replicate=1,
        z_hidden=64,
        flat_cells=1,
    ),
}
"""Shapes by name: about 7.1 kMAC per pixel to decode and 8.0 to encode, and 5.4 and 12.0."""
