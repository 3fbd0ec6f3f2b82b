"""What a conversion made, as a table for people and a dictionary for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ConversionRow:
    """One artefact.

    Attributes:
        target: `onnx`, `openvino`, `tflite` or `torch`.
        precision: `fp32` or `fp16`.
        stage: `analysis` or `synthesis`.
        status: `ok`, or `not checked` where the runtime is not installed here.
        bytes: of all its files.
        max_abs_err: largest difference from the reference: latents, or levels before rounding;
            None when not checked.
        moved: share of symbols (at a step of 1) or pixels that are another integer; None likewise.
        max_level_err: largest difference of a pixel; None for the analysis and when not checked.
        seconds: for writing and checking it.
        reason: why it was not checked.
    """

    target: str
    precision: str
    stage: str
    status: str
    bytes: int
    max_abs_err: float | None
    moved: float | None
    max_level_err: float | None
    seconds: float
    reason: str = ""


def make_row(
    target: str, precision: str, stage: str, size: int, parity: dict[str, Any], seconds: float
) -> ConversionRow:
    """Return the row of an artefact from what the parity check gave."""
    outputs = [value for value in parity.values() if isinstance(value, dict)]
    if not parity["checked"]:
        reason = str(parity["reason"])
        return ConversionRow(
            target, precision, stage, "not checked", size, None, None, None, seconds, reason
        )
    levels = [value["max_level_err"] for value in outputs if "max_level_err" in value]
    return ConversionRow(
        target,
        precision,
        stage,
        "ok",
        size,
        max(value["max_abs_err"] for value in outputs),
        max(value["moved"] for value in outputs),
        max(levels, default=None),
        seconds,
    )


@dataclass(frozen=True)
class ConversionReport:
    """A conversion that went through.

    Attributes:
        bundle: where it was written.
        name: what the model is called.
        model_id: of its weights.
        tables_id: of its tables, in every file made with it.
        calibration: what the parity was checked on.
        stored_bytes: size of the bundle before it may have become a zip file.
        plain_bytes: size it would have with every artefact whole.
        rows: one per artefact.
        seconds: in all.
    """

    bundle: Path
    name: str
    model_id: str
    tables_id: str
    calibration: dict[str, Any]
    stored_bytes: int
    plain_bytes: int
    rows: tuple[ConversionRow, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {**asdict(self), "bundle": str(self.bundle), "rows": [asdict(r) for r in self.rows]}

    def table(self) -> str:
        """Return a table for the terminal, and below it a line per artefact left unchecked."""
        head = ("target", "precision", "stage", "size", "max error", "moved", "time", "status")
        lines = _aligned([head, *(_cells(row) for row in self.rows)])
        photos = self.calibration.get("photos", 0)
        lines += [
            "",
            f"max error: against torch on {photos} photo{'s' * (photos != 1)}, "
            "in latent units (analysis) or levels (synthesis)",
            "moved: share of symbols at a step of 1, or of pixels, that round to another integer",
            f"model {self.model_id}, tables {self.tables_id}",
            f"size {self.stored_bytes / 1e6:.2f} MB; with every artefact whole it would be "
            f"{self.plain_bytes / 1e6:.2f} MB",
            f"written to {self.bundle} in {self.seconds:.1f} s",
        ]
        lines += [f"NOT CHECKED: {r.target} {r.stage}: {r.reason}" for r in self.rows if r.reason]
        return "\n".join(lines)


def _cells(row: ConversionRow) -> tuple[str, ...]:
    error = "-" if row.max_abs_err is None else f"{row.max_abs_err:.2g}"
    moved = "-" if row.moved is None else f"{100 * row.moved:.4f} %"
    return (
        row.target,
        row.precision,
        row.stage,
        f"{row.bytes / 1e6:.2f} MB",
        error,
        moved,
        f"{row.seconds:.1f} s",
        row.status,
    )


_LEFT = {0, 1, 2, 7}


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in _LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
