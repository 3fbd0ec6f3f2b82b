"""What a conversion made, as a table for people and a dictionary for machines."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecodec.bundle.manifest import ArtefactEntry
from edgecodec.converters.checks.operators import OpReport
from edgecodec.text_table import align

if TYPE_CHECKING:
    from edgecodec.converters.checks.diagnosis import Diagnosis

ADVICE = (
    "try more and more typical photos (--calibration), a higher --max-bd-loss, or another precision"
)
WRONG = "its runtime here computes something else; try another version of it, or another precision"
LACKING = "convert on a CPU that has the arithmetic, or without that precision"
NO_CURVE = "nothing tells what it loses; train the checkpoint, or allow all (--max-bd-loss inf)"


@dataclass(frozen=True)
class ConversionRow:
    """One artefact.

    Attributes:
        target: `onnx`, `openvino`, `tflite` or `torch`.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        stage: `analysis` or `synthesis`.
        status: `ok`, `refused`, or `not checked` where the runtime is not installed here.
        bytes: of all its files.
        exact: every runtime gives the same bits.
        max_abs_err: largest difference from the reference: latents, or levels before rounding;
            None when not checked.
        moved: share of symbols (at a step of 1) or pixels that are another integer; None likewise.
        max_level_err: largest difference of a pixel; None for the analysis and when not checked.
        seconds: for writing and checking it.
        reason: why it was not checked, or refused.
        wrong: it is refused because its runtime computes something else.
        lacking: it was not made because this machine lacks the arithmetic to judge it.
        bd_loss: BD-rate in percent against the reference, of this stage; None when not measured.
        worst_image: that of the photo where it is largest.
        ms: per call at 512x768 with two threads.
        speed_up: over fp32 of the same target.
        ops: its operators.
    """

    target: str
    precision: str
    stage: str
    status: str
    bytes: int
    exact: bool
    max_abs_err: float | None
    moved: float | None
    max_level_err: float | None
    seconds: float
    reason: str = ""
    wrong: bool = False
    lacking: bool = False
    bd_loss: float | None = None
    worst_image: float | None = None
    ms: float | None = None
    speed_up: float | None = None
    ops: OpReport | None = None

    @property
    def refused(self) -> bool:
        """Whether it is left out of the bundle."""
        return self.status == "refused"

    @classmethod
    def of(cls, entry: ArtefactEntry, ops: OpReport | None, seconds: float) -> ConversionRow:
        """Return the row of an artefact, by what its parity check gave."""
        outputs = [value for value in entry.parity.values() if isinstance(value, dict)]
        levels = [value["max_level_err"] for value in outputs if "max_level_err" in value]
        checked = bool(entry.parity["checked"])
        return cls(
            entry.target,
            entry.precision,
            entry.stage,
            "ok" if checked else "not checked",
            entry.bytes,
            entry.exact,
            max((value["max_abs_err"] for value in outputs), default=None),
            max((value["moved"] for value in outputs), default=None),
            max(levels, default=None),
            seconds,
            "" if checked else str(entry.parity["reason"]),
            ops=ops,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values; None is an infinite loss, too."""
        values = {**asdict(self), "ops": None if self.ops is None else self.ops.to_dict()}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }

    def line(self) -> str:
        """Return one line for the progress."""
        error = "" if self.max_abs_err is None else f", max error {self.max_abs_err:.2g}"
        return f"{_what(self)}: {self.bytes / 1e6:.2f} MB{error}, {self.status}"


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
        max_loss: what an artefact was allowed to cost.
        metric: by which losses were measured.
        diagnoses: of int8 artefacts that were refused, what costs most.
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
    max_loss: float
    metric: str
    diagnoses: tuple[Diagnosis, ...] = ()

    @property
    def refused(self) -> tuple[ConversionRow, ...]:
        """Artefacts asked for and left out."""
        return tuple(row for row in self.rows if row.refused)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            **asdict(self),
            "bundle": str(self.bundle),
            "rows": [row.to_dict() for row in self.rows],
            "max_loss": self.max_loss if math.isfinite(self.max_loss) else None,
            "diagnoses": [diagnosis.to_dict() for diagnosis in self.diagnoses],
        }

    def refusal(self) -> str:
        """Return in one line what is not there, and for each cause what to try; else empty."""
        if not self.refused:
            return ""
        alike: dict[str, list[str]] = {}
        for row in self.refused:
            alike.setdefault(self._remedy(row), []).append(_what(row))
        return "not written: " + "; nor ".join(
            f"{', '.join(names)}; {remedy}" for remedy, names in alike.items()
        )

    def _remedy(self, row: ConversionRow) -> str:
        """Return what to try where an artefact was refused."""
        if row.wrong:
            return WRONG
        if row.lacking:
            return LACKING
        if row.bd_loss is None:
            return NO_CURVE
        if self.diagnoses and row.precision == "int8":
            worst = self.diagnoses[-1]
            return f"most of it by {worst.summary()}: try {worst.advice[0]}"
        return ADVICE

    def table(self) -> str:
        """Return a table for the terminal, and below it what it means and what went wrong."""
        lines = align([_HEAD, *(_cells(row) for row in self.rows)], left=_LEFT)
        photos = self.calibration["judged"]
        lines += [
            "",
            f"BD loss: bits at equal {self.metric.upper()} of real files against torch, on "
            f"{photos} photo{'s' * (photos != 1)} apart from those that set ranges",
            "moved: share of symbols at a step of 1, or of pixels, that round to another integer",
            "ms: per call at 512x768, 2 threads; speed-up over fp32 of the same target",
            "float: convolutions of an int8 artefact that stay in float32; layout: operations that",
            "only change the order in memory, once the runtime has loaded it (--json names all)",
            f"model {self.model_id}, tables {self.tables_id}",
            f"size {self.stored_bytes / 1e6:.2f} MB; with every artefact whole it would be "
            f"{self.plain_bytes / 1e6:.2f} MB",
            f"written to {self.bundle} in {self.seconds:.1f} s",
        ]
        for row in self.rows:
            if row.reason:
                lines.append(f"{row.status.upper()}: {_what(row)}: {row.reason}")
        for row in self.rows:
            for warning in row.ops.warnings() if row.ops else ():
                lines.append(f"SLOW: {_what(row)}: {warning}")
        if self.diagnoses:
            lines += ["", "what costs most:"]
        for diagnosis in self.diagnoses:
            lines += diagnosis.lines()
        return "\n".join(lines)


_HEAD = (
    "target",
    "precision",
    "stage",
    "size",
    "moved",
    "BD loss",
    "ms",
    "speed-up",
    "float",
    "layout",
    "exact",
    "status",
)


def _what(row: ConversionRow) -> str:
    return f"{row.target} {row.precision} {row.stage}"


def _cells(row: ConversionRow) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    return (
        row.target,
        row.precision,
        row.stage,
        f"{row.bytes / 1e6:.2f} MB",
        shown(None if row.moved is None else 100 * row.moved, "{:.3f} %"),
        shown(row.bd_loss, "{:+.2f} %"),
        shown(row.ms, "{:.1f}"),
        shown(row.speed_up, "{:.2f}x"),
        *_shown_ops(row.ops),
        "yes" if row.exact else "no",
        row.status,
    )


def _shown_ops(ops: OpReport | None) -> tuple[str, str]:
    if ops is None:
        return "-", "-"
    left = f"{len(ops.left)} of {len(ops.left) + ops.int8}" if ops.int8 else "-"
    return left, str(len(ops.layout)) if ops.executed else "-"


_LEFT = {0, 1, 2, 10, 11}
