"""Candidates of a selection: an artefact of a bundle, a backend for it, and how it fares."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from edgecodec.arrays import Float32Array
from edgecodec.bundle.manifest import ArtefactEntry
from edgecodec.bundle.reading import Bundle
from edgecodec.errors import (
    BackendError,
    BackendUnavailableError,
    BundleError,
    EdgeCodecError,
    UnknownPluginError,
)
from edgecodec.runtimes.base import (
    Artefact,
    Availability,
    Backend,
    Session,
    SessionOptions,
    StageName,
    lend,
)
from edgecodec.runtimes.environment import AUTO, DISABLE, disabled_backends
from edgecodec.runtimes.registry import UnavailableBackend, backend_names, get_backend
from edgecodec.runtimes.selection import store
from edgecodec.runtimes.selection.choice import Choice
from edgecodec.runtimes.selection.golden import Golden
from edgecodec.runtimes.selection.timing import time_side_by_side
from edgecodec.runtimes.selection.watched import load_watched
from edgecodec.runtimes.vendor import one_line

REFERENCE = "torch"
"""Slow to import and to run: automatic selection takes it when nothing else works."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Candidate:
    """An artefact on a backend while it is being judged.

    Attributes:
        stage: which stage.
        name: of the backend.
        entry: the artefact.
        backend: what loads it.
        threads: worker threads of the runtime; None leaves it to the backend.
        session: the loaded artefact, while it is wanted.
        error: why it was rejected.
        load_s: seconds to load.
        median_s: seconds per call.
        high_s: upper end of what the median may be.
        variant: another thread count for what is among the candidates already.
    """

    stage: StageName
    name: str
    entry: ArtefactEntry
    backend: Backend
    threads: int | None = None
    session: Session | None = None
    error: EdgeCodecError | None = None
    load_s: float | None = None
    median_s: float | None = None
    high_s: float | None = None
    variant: bool = False

    def reject(self, error: EdgeCodecError) -> None:
        """Note why it cannot be used and let go of its session."""
        self.error = error
        self.close()

    def close(self) -> None:
        """Close the session, whatever it says to that."""
        session, self.session = self.session, None
        if session is not None:
            close_quietly(session)

    def choice(self, reason: str = "") -> Choice:
        """Return the outcome as data."""
        if self.error is not None:
            reason = str(self.error).removeprefix(f"{self.name}: ")
        return Choice(
            stage=self.stage,
            backend=self.name,
            precision=self.entry.precision,
            ok=self.error is None,
            reason=reason,
            median_s=self.median_s,
            load_s=self.load_s,
            threads=self.threads,
        )

    @property
    def artefact(self) -> tuple[str, str]:
        """Backend and precision: what is alike, whatever the threads."""
        return self.name, self.entry.precision

    @property
    def is_installed(self) -> bool:
        """Whether the runtime is there at all, usable or not."""
        return not isinstance(self.backend, UnavailableBackend)


def close_quietly(session: Session) -> None:
    """Close a session, whatever it says to that."""
    try:
        session.close()
    except Exception as exc:  # code of other packages; there is nothing left to save
        _log.warning("closing a session failed: %s", one_line(exc))


def probe(name: str) -> Availability:
    """Ask a backend whether it can be used, and bear one that raises instead of answering.

    Raises:
        UnknownPluginError: no backend of that name, here or in EDGECODEC_DISABLE.
    """
    if name in disabled_backends():
        return Availability(False, f"forbidden by {DISABLE}")
    try:
        return get_backend(name).probe()
    except UnknownPluginError:
        raise
    except Exception as exc:  # code of other packages
        return Availability(False, f"does not answer: {one_line(exc)}")


def load(bundle: Bundle, candidate: Candidate) -> Session:
    """Load the artefact of a candidate, into a session that does not wait for ever.

    Raises:
        BundleError: its files are damaged.
        BackendError: the backend refuses it.
    """
    stage, entry, backend = candidate.stage, candidate.entry, candidate.backend
    artefact = Artefact(stage, entry.target, entry.precision, bundle.artefact_file(entry))
    options = SessionOptions(candidate.threads)
    try:
        return load_watched(candidate.name, lambda: backend.load(artefact, options))
    except EdgeCodecError:
        raise
    except Exception as exc:  # a backend of another package may not keep to the protocol
        raise BackendError(candidate.name, f"{artefact.path.name}: {one_line(exc)}") from exc


def find_candidates(
    bundle: Bundle,
    stage: StageName,
    backend: str,
    precision: str,
    threads: int | None = None,
) -> list[Candidate]:
    """Return what could run a stage, without loading anything.

    Args:
        bundle: where the artefacts are.
        stage: which stage.
        backend: a name or `auto`.
        precision: a precision or `auto`.
        threads: worker threads of the runtime; None leaves it to the backends.

    Raises:
        UnknownPluginError: no backend of that name.
        BackendUnavailableError: the backend named cannot be used here.
        BundleError: the bundle has no artefact of that kind; says which there are.
    """
    entries = [e for e in bundle.manifest.artefacts if e.stage == stage]
    wanted = [e for e in entries if precision in (AUTO, e.precision)]
    if backend == AUTO:
        found = [c for name in backend_names() for c in _of_backend(name, stage, wanted)]
    else:
        found = _of_named_backend(backend, stage, wanted)
    if not found:
        have = ", ".join(sorted(f"{e.target} {e.precision}" for e in entries)) or "none"
        what = "" if precision == AUTO else f"{precision} "
        whom = "" if backend == AUTO else f" for {backend}"
        raise BundleError(f"{bundle.path}: no {what}artefact of {stage}{whom}; there are: {have}")
    for candidate in found:
        candidate.threads = threads
    return found


def _of_backend(name: str, stage: StageName, entries: list[ArtefactEntry]) -> list[Candidate]:
    try:
        backend = get_backend(name)
    except BackendError as exc:
        _log.warning("%s", exc)
        return []
    return [Candidate(stage, name, e, backend) for e in entries if e.target == backend.target]


def _of_named_backend(name: str, stage: StageName, entries: list[ArtefactEntry]) -> list[Candidate]:
    backend = get_backend(name)
    available = probe(name)
    if not available.ok:
        raise BackendUnavailableError(name, available.reason)
    return [Candidate(stage, name, e, backend) for e in entries if e.target == backend.target]


def prove(candidate: Candidate, bundle: Bundle, golden: Golden) -> Session:
    """Load a candidate, which then holds its session, and compare it with the golden vector.

    Raises:
        BundleError: the files of the artefact are damaged.
        BackendError: it does not load, fails, or answers wrongly. No session is left open.
    """
    stage, entry = candidate.stage, candidate.entry
    trial = store.trial_name(bundle, stage, *candidate.artefact)
    try:
        with store.marking(trial):
            begun = time.perf_counter()
            session = candidate.session = load(bundle, candidate)
            candidate.load_s = time.perf_counter() - begun
            outputs = [session.run(given) for given in golden.inputs(stage)]
        problem = golden.problem(stage, outputs, entry.precision)
    except EdgeCodecError:
        candidate.close()
        raise
    except Exception as exc:  # a backend of another package may raise anything
        candidate.close()
        raise BackendError(candidate.name, f"{entry.path}: {one_line(exc)}") from exc
    if problem:
        candidate.close()
        raise BackendError(candidate.name, f"{entry.path}: {problem}")
    return session


def _as_used(
    stage: StageName, session: Session, workload: Mapping[str, Float32Array]
) -> Callable[[], object]:
    """Return a call of a session as a codec calls it: a picture is read where it lies."""
    if stage == "synthesis":
        return partial(lend, session, workload, len)
    return partial(session.run, workload)


def time_candidates(
    candidates: Sequence[Candidate], golden: Golden, size: tuple[int, int], budget_s: float
) -> None:
    """Time candidates that hold a session against each other; reject those that fail.

    A single one is not timed: there is nothing to decide.
    """
    if len(candidates) < 2:
        return
    stage = candidates[0].stage
    workload = golden.workload(stage, size)
    runs = [_as_used(stage, c.session, workload) for c in candidates if c.session is not None]
    timings = time_side_by_side(runs, budget_s)
    for candidate, timing in zip(candidates, timings, strict=True):
        candidate.median_s, candidate.high_s = timing.median_s, timing.high_s
        if timing.failure is not None:
            reason = f"failed at {size[0]}x{size[1]}: {one_line(timing.failure)}"
            error = BackendError(candidate.name, reason)
            error.__cause__ = timing.failure
            candidate.reject(error)
