"""What the selection decided: plain data, for the CLI, reports and logs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgecodec.runtimes.base import StageName


@dataclass(frozen=True)
class Choice:
    """One artefact on one backend, and what became of it.

    Attributes:
        stage: `analysis` or `synthesis`.
        backend: its name.
        precision: of the artefact.
        ok: it gave the right results here.
        reason: one line: why it was rejected, or what speaks for it.
        median_s: seconds per call at the size measured; None where it was not timed.
        load_s: seconds to load; None where it did not load.
    """

    stage: StageName
    backend: str
    precision: str
    ok: bool
    reason: str
    median_s: float | None = None
    load_s: float | None = None

    def __str__(self) -> str:
        """Return backend, precision and reason."""
        return f"{self.backend} {self.precision}: {self.reason}"


@dataclass(frozen=True)
class StageVerdict:
    """The candidates of one stage.

    Attributes:
        stage: `analysis` or `synthesis`.
        backend: what was asked for, a name or `auto`.
        precision: what was asked for, a precision or `auto`.
        threads: asked for; None leaves it to the runtimes.
        size: height and width in pixels they were timed at.
        ranked: those that can be used, best first; never empty.
        rejected: those that cannot, with the reason.
    """

    stage: StageName
    backend: str
    precision: str
    threads: int | None
    size: tuple[int, int]
    ranked: tuple[Choice, ...]
    rejected: tuple[Choice, ...]

    @property
    def best(self) -> Choice:
        """What is used."""
        return self.ranked[0]


@dataclass(frozen=True)
class Verdict:
    """The decision for some stages.

    Attributes:
        stages: one verdict each.
    """

    stages: tuple[StageVerdict, ...]

    def of(self, stage: StageName) -> StageVerdict:
        """Return the verdict of a stage; KeyError where it was not asked for."""
        return {verdict.stage: verdict for verdict in self.stages}[stage]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return asdict(self)
