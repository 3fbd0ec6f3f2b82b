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

    The defaults stay inside the complexity envelope: about 7 kMAC per pixel on each side.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CodecConfig:
        """Rebuild a configuration; unknown and missing names are refused.

        Raises:
            ValueError: a field is unknown, missing or not a number.
        """
        known = {f.name: f.type for f in fields(cls)}
        unknown = sorted(set(values) - set(known))
        missing = sorted(set(known) - set(values))
        if unknown or missing:
            raise ValueError(f"codec configuration: unknown {unknown}, missing {missing}")
        if not all(isinstance(v, (int, float)) for v in values.values()):
            raise ValueError("codec configuration: every field must be a number")
        return cls(**values)
