"""Layers of our networks on each backend, as a table for people and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import EdgeCodecError
from edgecodec.runtimes.base import Artefact, SessionOptions, StageName
from edgecodec.runtimes.layers.base import Layer, LayerProfiler
from edgecodec.runtimes.layers.peak import Peak
from edgecodec.runtimes.registry import get_backend
from edgecodec.runtimes.selection.choice import Choice, describe
from edgecodec.runtimes.selection.golden import Golden
from edgecodec.text_table import align

RUNS = 20
SLOWEST = 10


@dataclass(frozen=True)
class NetworkProfile:
    """One network on one backend.

    Attributes:
        stage: `analysis` or `synthesis`.
        backend: its name.
        precision: of the artefact.
        size: height and width in pixels of what it is given: a picture, or a tile of a large one.
        layers: in the order of the plan; empty where there is no profile.
        reason: why there is none.
        threads: of the runtime; None left it to it.
    """

    stage: StageName
    backend: str
    precision: str
    size: tuple[int, int]
    layers: tuple[Layer, ...]
    reason: str = ""
    threads: int | None = None

    @property
    def total_s(self) -> float:
        """Medians of all layers together."""
        return sum(layer.median_s for layer in self.layers)

    def kinds(self) -> list[tuple[str, list[Layer]]]:
        """Return layers by operator, those that take longest together first."""
        groups: dict[str, list[Layer]] = {}
        for layer in self.layers:
            groups.setdefault(layer.operator, []).append(layer)
        return sorted(groups.items(), key=lambda item: -sum(la.median_s for la in item[1]))

    def to_dict(self, peaks: Mapping[str, Peak]) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {
            "stage": self.stage,
            "backend": self.backend,
            "precision": self.precision,
            "size": list(self.size),
            "threads": self.threads,
            "reason": self.reason,
            "total_s": self.total_s,
            "layers": [
                {
                    "name": layer.name,
                    "operator": layer.operator,
                    "arithmetic": layer.arithmetic,
                    "macs": layer.macs,
                    "median_s": layer.median_s,
                    "share": layer.median_s / self.total_s,
                    "gmacs_per_s": speed([layer]),
                    "of_peak": of_peak([layer], peaks),
                    "samples_s": list(layer.samples_s),
                }
                for layer in self.layers
            ],
        }

    def text(self, peaks: Mapping[str, Peak]) -> str:
        """Return two tables for a terminal: kinds of operators, and the slowest layers."""
        height, width = self.size
        what = describe(self.backend, self.precision, self.threads)
        title = f"{self.stage}, {what}, {width} x {height} pixels"
        if not self.layers:
            return f"{title}: not available ({self.reason})"
        runs = len(self.layers[0].samples_s)
        lines = [f"{title}: {1e3 * self.total_s:.2f} ms in layers, medians of {runs} runs"]
        rows: list[tuple[str, ...] | str] = [
            ("  operator", "n", "ms", "share", "GMAC/s", "of peak"),
            *(self._row(name, str(len(las)), las, peaks) for name, las in self.kinds()),
            "slowest layers",
        ]
        ranked = sorted(self.layers, key=lambda layer: -layer.median_s)[:SLOWEST]
        rows += [self._row(f"{la.name}: {la.operator}", "", [la], peaks) for la in ranked]
        return "\n".join([*lines, *align(rows)])

    def _row(
        self, name: str, count: str, layers: list[Layer], peaks: Mapping[str, Peak]
    ) -> tuple[str, ...]:
        seconds = sum(layer.median_s for layer in layers)
        rate, share = speed(layers), of_peak(layers, peaks)
        return (
            f"  {name if len(name) <= 60 else name[:59] + '.'}",
            count,
            f"{1e3 * seconds:.3f}",
            f"{100 * seconds / self.total_s:.1f} %",
            "-" if rate is None else f"{rate:.1f}",
            "-" if share is None else f"{100 * share:.0f} %",
        )


def profile_networks(
    bundle: Bundle,
    choices: Sequence[Choice],
    sizes: Mapping[StageName, tuple[int, int]],
    runs: int = RUNS,
) -> list[NetworkProfile]:
    """Profile networks by layer; one that cannot be says why.

    Args:
        bundle: where the artefacts are.
        choices: which stage on which backend in which precision, with how many threads; each is
            profiled once.
        sizes: height and width in pixels of what the network of each stage is given.
        runs: how often.
    """
    golden = Golden.of(bundle)
    wanted = dict.fromkeys((c.stage, c.backend, c.precision, c.threads) for c in choices)
    found = []
    for stage, name, precision, threads in wanted:
        layers: Sequence[Layer] = ()
        reason, size = "", sizes[stage]
        try:
            layers = _profile(bundle, golden, (stage, name, precision), size, threads, runs)
        except EdgeCodecError as exc:
            reason = str(exc).removeprefix(f"{name}: ")
        found.append(NetworkProfile(stage, name, precision, size, tuple(layers), reason, threads))
    return found


def _profile(
    bundle: Bundle,
    golden: Golden,
    what: tuple[StageName, str, str],
    size: tuple[int, int],
    threads: int | None,
    runs: int,
) -> Sequence[Layer]:
    stage, name, precision = what
    backend = get_backend(name)
    if not isinstance(backend, LayerProfiler):
        raise EdgeCodecError("this backend has no profiler")
    entry = next(
        e
        for e in bundle.manifest.artefacts
        if (e.stage, e.target, e.precision) == (stage, backend.target, precision)
    )
    artefact = Artefact(stage, entry.target, precision, bundle.artefact_file(entry))
    return backend.profile_layers(
        artefact, SessionOptions(threads), golden.workload(stage, size), runs
    )


def speed(layers: Sequence[Layer]) -> float | None:
    """Return GMAC/s of layers together, each in its fastest run, as the peak is of the fastest.

    None unless all that they do is known.
    """
    macs = [layer.macs for layer in layers if layer.macs is not None]
    seconds = sum(min(layer.samples_s) for layer in layers)
    return 1e-9 * sum(macs) / seconds if len(macs) == len(layers) and seconds > 0 else None


def of_peak(layers: Sequence[Layer], peaks: Mapping[str, Peak]) -> float | None:
    """Return their speed over the peak of their arithmetic; None where either is unknown."""
    kinds = {layer.arithmetic for layer in layers}
    rate = speed(layers)
    peak = peaks.get(kinds.pop()) if len(kinds) == 1 else None
    return None if rate is None or peak is None else rate / peak.gmacs_per_s
