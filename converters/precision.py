"""The precisions an artefact can have, and what asking for another one says."""

from __future__ import annotations

from typing import Literal, TypeAlias

from edgecodec.errors import ConversionError

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def check_precision(precision: str, available: tuple[str, ...], stage: str = "") -> None:
    """Refuse what a writer cannot make.

    Raises:
        ConversionError: `precision` is not among `available`.
    """
    if precision in available:
        return
    if precision == "int8":
        raise ConversionError(
            "int8 is not available: this version of edgecodec converts to fp32 and fp16 only", stage
        )
    raise ConversionError(
        f"precision {precision!r} is not available; there are: {', '.join(available)}", stage
    )
