"""What `edgecodec devices` shows: the machine, its runtimes, what was measured and chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import EdgeCodecError, UnknownPluginError
from edgecodec.runtimes.base import STAGES, Availability
from edgecodec.runtimes.device.probe import Device, probe_device
from edgecodec.runtimes.environment import AUTO
from edgecodec.runtimes.registry import backend_names
from edgecodec.runtimes.selection.candidates import probe
from edgecodec.runtimes.selection.choice import Choice, StageVerdict
from edgecodec.runtimes.selection.selector import DEFAULT_SIZE, choose
from edgecodec.text_table import align

REPORT_BUDGET_S = 1.5
"""Seconds of timing per stage: a report may take longer than the start of a command."""


@dataclass(frozen=True)
class DevicesReport:
    """Everything a bug report about a runtime needs.

    Attributes:
        device: the machine.
        backends: availability by name of backend.
        verdicts: the decision for each stage.
        problems: where no decision was possible: stage and reason.
    """

    device: Device
    backends: dict[str, Availability]
    verdicts: tuple[StageVerdict, ...]
    problems: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return {
            "device": self.device.to_dict(),
            "backends": {name: asdict(found) for name, found in self.backends.items()},
            "stages": [asdict(verdict) for verdict in self.verdicts],
            "problems": [{"stage": stage, "reason": reason} for stage, reason in self.problems],
        }

    def text(self) -> str:
        """Return tables for a person; no trailing newline."""
        rows = [("backend", "usable", "version", "runs on", "")]
        rows += [
            (name, "yes" if found.ok else "no", found.version, found.accelerator, found.reason)
            if found.ok
            else (name, "no", found.version, "", found.reason)
            for name, found in self.backends.items()
        ]
        reported = [
            f"{n} reports: {', '.join(f.devices)}" for n, f in self.backends.items() if f.devices
        ]
        parts = [self.device.text(), "\n".join(align(rows, left=range(5))), "\n".join(reported)]
        parts += [_verdict_text(verdict) for verdict in self.verdicts]
        parts += [f"{stage}: {reason}" for stage, reason in self.problems]
        return "\n\n".join(filter(None, parts))


def devices_report(
    bundle: Bundle | None,
    threads: int | None = None,
    *,
    size: tuple[int, int] = DEFAULT_SIZE,
    budget_s: float = REPORT_BUDGET_S,
    refresh: bool = False,
) -> DevicesReport:
    """Probe the machine and all backends, and measure what a bundle offers.

    What is in the cache is not measured again.

    Args:
        bundle: what to measure; None only probes.
        threads: for the runtimes; None leaves it to them.
        size: height and width of the pictures to come.
        budget_s: seconds of timing per stage.
        refresh: measure again and replace what is in the cache.

    Raises:
        ConfigError: `threads` is not positive, or two packages claim the name of a backend.
        UnknownPluginError: a variable of the environment names a backend there is not.
    """
    backends = {name: probe(name) for name in backend_names()}
    verdicts: list[StageVerdict] = []
    problems: list[tuple[str, str]] = []
    if bundle is None:
        return DevicesReport(probe_device(), backends, ())
    for stage in STAGES:
        try:
            verdict = choose(
                bundle,
                threads=threads,
                stages=(stage,),
                size=size,
                budget_s=budget_s,
                refresh=refresh,
            )
            verdicts += verdict.stages
        except UnknownPluginError:
            raise
        except EdgeCodecError as exc:
            problems.append((stage, str(exc)))
    return DevicesReport(probe_device(), backends, tuple(verdicts), tuple(problems))


def _verdict_text(verdict: StageVerdict) -> str:
    asked = [f"backend {verdict.backend}"] if verdict.backend != AUTO else []
    asked += [] if verdict.threads is None else [f"threads {verdict.threads}"]
    height, width = verdict.size
    what = ", ".join([verdict.stage, *asked, f"{width}x{height} pixels"])
    head = f"{what}, measured {verdict.measured_at}:"
    rows = [_row(choice, "->" if choice is verdict.best else "") for choice in verdict.ranked]
    rows += [_row(choice, "x") for choice in verdict.rejected]
    return "\n".join([head, *align(rows, left=range(7), indent="  ")])


def _row(choice: Choice, mark: str) -> tuple[str, ...]:
    return (
        mark,
        choice.backend,
        choice.precision,
        "" if choice.threads is None else f"{choice.threads} thr.",
        _milliseconds(choice.median_s),
        "" if choice.load_s is None else f"loads in {_milliseconds(choice.load_s)}",
        choice.reason,
    )


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.1f} ms"
