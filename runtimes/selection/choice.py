"""What the selection decided: plain data, for the CLI, reports, logs and the cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgecodec.runtimes.base import StageName


def describe(backend: str, precision: str, threads: int | None) -> str:
    """Return backend and precision, and threads where they are set.

    >>> describe("tflite", "int8", 2), describe("tflite", "int8", None)
    ('tflite int8, 2 threads', 'tflite int8')
    """
    name = f"{backend} {precision}"
    return name if threads is None else f"{name}, {threads} thread{'' if threads == 1 else 's'}"


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
        threads: worker threads of the runtime; None leaves it to the backend.
    """

    stage: StageName
    backend: str
    precision: str
    ok: bool
    reason: str
    median_s: float | None = None
    load_s: float | None = None
    threads: int | None = None

    @property
    def settings(self) -> tuple[str, str, int | None]:
        """Backend, precision and threads: what makes a session what it is."""
        return self.backend, self.precision, self.threads

    @property
    def what(self) -> str:
        """Backend and precision, and threads where they are set: `tflite int8, 2 threads`."""
        return describe(*self.settings)

    def __str__(self) -> str:
        """Return backend, precision, threads and reason."""
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class StageVerdict:
    """The candidates of one stage.

    Attributes:
        stage: `analysis` or `synthesis`.
        backend: what was asked for, a name or `auto`.
        precision: what was asked for, a precision or `auto`.
        threads: asked for; None leaves it open.
        size: height and width in pixels they were timed at.
        ranked: those that can be used, best first; never empty.
        rejected: those that cannot, with the reason.
        measured_at: time of the measurement, ISO 8601 in UTC.
    """

    stage: StageName
    backend: str
    precision: str
    threads: int | None
    size: tuple[int, int]
    ranked: tuple[Choice, ...]
    rejected: tuple[Choice, ...]
    measured_at: str = ""

    @property
    def best(self) -> Choice:
        """What is used."""
        return self.ranked[0]

    @classmethod
    def from_dict(cls, values: Any) -> StageVerdict:
        """Return a verdict from what `dataclasses.asdict` gave and JSON may have changed.

        Raises:
            ValueError: not a verdict that could be used.
        """
        try:
            lists = {name: tuple(Choice(**c) for c in values[name]) for name in _LISTS}
            verdict = cls(**{**values, **lists, "size": tuple(values["size"])})
        except (KeyError, TypeError) as exc:
            raise ValueError(f"not a verdict: {exc}") from exc
        choices = (*verdict.ranked, *verdict.rejected)
        if not verdict.ranked or not all(map(_sound, choices)) or len(verdict.size) != 2:
            raise ValueError("not a verdict: a field cannot be")
        return verdict


_LISTS = ("ranked", "rejected")


def _sound(choice: Choice) -> bool:
    texts = (choice.stage, choice.backend, choice.precision, choice.reason)
    seconds = (choice.median_s, choice.load_s)
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(choice.ok, bool)
        and all(s is None or (isinstance(s, int | float) and s >= 0) for s in seconds)
        and (choice.threads is None or (isinstance(choice.threads, int) and choice.threads > 0))
    )


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
