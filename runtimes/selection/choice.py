"""What the selection decided: plain data, for the CLI, reports, logs and the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgecodec.runtimes.base import RunSettings, StageName


@dataclass(frozen=True)
class Choice:
    """One artefact on one backend, and what became of it.

    Attributes:
        stage: `analysis` or `synthesis`.
        settings: what it runs on and how, nothing of it left open.
        ok: it gave the right results here.
        reason: one line: why it was rejected, or what speaks for it.
        median_s: seconds per call at the size measured; None where it was not timed.
        load_s: seconds to load; None where it did not load.
    """

    stage: StageName
    settings: RunSettings
    ok: bool
    reason: str
    median_s: float | None = None
    load_s: float | None = None

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return self.settings.backend

    @property
    def precision(self) -> str:
        """Precision of the artefact."""
        return self.settings.precision

    @property
    def threads(self) -> int | None:
        """Worker threads of the runtime; None leaves it to the backend."""
        return self.settings.threads

    @property
    def what(self) -> str:
        """Backend and precision, and threads where they are set: `tflite int8, 2 threads`."""
        return str(self.settings)

    def __str__(self) -> str:
        """Return backend, precision, threads and reason."""
        return f"{self.what}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values, those of `settings` among them."""
        return _flat(self, "settings")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Choice:
        """Return a choice from what `to_dict` gave.

        Raises:
            TypeError: a field is missing, or one too many.
        """
        settings, others = _settings_in(values)
        return cls(settings=settings, **others)


@dataclass(frozen=True)
class StageVerdict:
    """The candidates of one stage.

    Attributes:
        stage: `analysis` or `synthesis`.
        wanted: what was asked for.
        size: height and width in pixels they were timed at.
        ranked: those that can be used, best first; never empty.
        rejected: those that cannot, with the reason.
        measured_at: time of the measurement, ISO 8601 in UTC.
    """

    stage: StageName
    wanted: RunSettings
    size: tuple[int, int]
    ranked: tuple[Choice, ...]
    rejected: tuple[Choice, ...]
    measured_at: str = ""

    @property
    def best(self) -> Choice:
        """What is used."""
        return self.ranked[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values, those of `wanted` among them."""
        lists = {name: [c.to_dict() for c in getattr(self, name)] for name in _LISTS}
        return {**_flat(self, "wanted"), **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageVerdict:
        """Return a verdict from what `to_dict` gave and JSON may have changed.

        Raises:
            ValueError: not a verdict that could be used.
        """
        try:
            wanted, others = _settings_in(values)
            lists = {name: tuple(map(Choice.from_dict, values[name])) for name in _LISTS}
            verdict = cls(wanted=wanted, **{**others, **lists, "size": tuple(values["size"])})
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not a verdict: {exc}") from exc
        choices = (*verdict.ranked, *verdict.rejected)
        if not verdict.ranked or not all(map(_sound, choices)) or len(verdict.size) != 2:
            raise ValueError("not a verdict: a field cannot be")
        return verdict


_LISTS = ("ranked", "rejected")
_SETTINGS = tuple(field.name for field in fields(RunSettings))


def _flat(value: Choice | StageVerdict, settings: str) -> dict[str, Any]:
    """Return the fields of a dataclass with those of its settings in place of them."""
    found = asdict(value)
    return {**found.pop(settings), **found}


def _settings_in(values: Mapping[str, Any]) -> tuple[RunSettings, dict[str, Any]]:
    """Return settings that lie among other fields, and the others."""
    others = dict(values)
    return RunSettings(**{name: others.pop(name) for name in _SETTINGS}), others


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
        return {"stages": [verdict.to_dict() for verdict in self.stages]}
