"""The precisions an artefact can have, and what asking for another one says."""

from __future__ import annotations

from typing import Literal, TypeAlias

from edgecodec.errors import ConversionError

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def check_precision(
    precision: str, available: tuple[Precision, ...] = PRECISIONS, stage: str = ""
) -> Precision:
    """Return a precision, refuse what there is not.

    Raises:
        ConversionError: `precision` is not among `available`.
    """
    for known in available:
        if precision == known:
            return known
    raise ConversionError(
        f"precision {precision!r} is not available; there are: {', '.join(available)}", stage
    )
