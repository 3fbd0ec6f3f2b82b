"""The measurement behind a choice: backends and precisions first, then thread counts.

Correct first, then fast. Every candidate must reproduce the bundle's golden vector, in a process
of its own first where it is risky; those that do are timed in turns.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import (
    BackendError,
    BackendUnavailableError,
    BundleError,
    EdgeCodecError,
    ScratchError,
)
from edgecodec.runtimes.base import AUTO, RunSettings, StageName
from edgecodec.runtimes.selection.candidates import (
    REFERENCE,
    Candidate,
    find_candidates,
    probe,
    prove,
    time_candidates,
)
from edgecodec.runtimes.selection.golden import Golden
from edgecodec.runtimes.selection.store import Store
from edgecodec.runtimes.selection.trial import needs_trial, try_elsewhere
from edgecodec.runtimes.vendor import BROKEN

HANDICAPS = {"fp32": 1.0, "int8": 1.1}
"""With `auto` precision, times count this much: noise alone must not decide about precision, least
of all differently from run to run. fp32 wins unless int8 is faster by more than a tenth."""

HALF_HANDICAP = 1.15
"""Likewise of fp16 and bf16, which have to beat int8, too: its synthesis shows the same pixels on
every machine and in every run."""

PREFER_DEFAULT_THREADS = 1.03
"""Likewise for thread counts, whose slowest plausible time counts: on a busy machine the times of
threads that wait for a core say little, and what they say would be kept."""

THREADED = 2
"""Thread counts are tried for this many of the fastest."""

NOT_NEEDED = "the reference: used when named, or when nothing else works"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What a stage is wanted for.

    Attributes:
        stage: `analysis` or `synthesis`.
        wanted: what it is to run on and how.
        size: height and width in pixels to time at.
    """

    stage: StageName
    wanted: RunSettings
    size: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return asdict(self)


Timer = Callable[[Sequence[Candidate], Golden, tuple[int, int], float], None]
Trial = Callable[[Bundle, Sequence[Candidate], tuple[int, int], Store], None]


@dataclass(frozen=True)
class Tools:
    """What a measurement works with.

    Attributes:
        store: what is remembered of candidates, and the machine.
        time: times candidates side by side; see `time_candidates`.
        trial: tries candidates in another process; see `try_elsewhere`.
    """

    store: Store = field(default_factory=Store)
    time: Timer = time_candidates
    trial: Trial = try_elsewhere


def compete(
    bundle: Bundle,
    request: Request,
    budget_s: float,
    failed: Collection[tuple[str, str]],
    tools: Tools,
) -> list[Candidate]:
    """Return all candidates, those that can be used first and by speed.

    The first one's session is open, all others are closed.

    Args:
        bundle: the artefacts.
        request: what they are wanted for.
        budget_s: seconds of timing, for backends and once more for thread counts.
        failed: backend and precision of what failed in use and is not to be tried again.
        tools: what to measure with.

    Raises:
        UnknownPluginError: no backend of that name.
        BundleError: no artefact of that kind, or damaged.
        ScratchError: there is no room for the files of one.
        BackendUnavailableError: the backend named cannot be used here.
        BackendError: nothing works; lists every candidate with its reason.
    """
    golden = Golden.of(bundle)
    candidates = find_candidates(bundle, request.stage, request.wanted)
    for candidate in candidates:
        if candidate.settings.artefact in failed:
            candidate.reject(BackendUnavailableError(candidate.name, "failed in use"))
    last = [c for c in candidates if request.wanted.backend == AUTO and c.name == REFERENCE]
    for group in ([c for c in candidates if c not in last], last):
        if _usable(candidates):
            for candidate in group:
                candidate.reject(BackendError(candidate.name, NOT_NEEDED))
            break
        _try_out(group, bundle, golden, request.size, tools)
        tools.time(_usable(group), golden, request.size, budget_s)
    if request.wanted.backend == AUTO and request.wanted.threads is None:
        few = _usable(candidates)
        candidates += _try_thread_counts(few, bundle, golden, request, budget_s, tools)
    _keep_best_open(candidates, bundle, golden, tools.store)
    ranked = _usable(candidates)
    _log_rejections(candidates)
    if not ranked:
        raise _nothing_works(candidates, request)
    return ranked + [c for c in candidates if c.error is not None]


def _usable(candidates: list[Candidate]) -> list[Candidate]:
    """Return those without an error that were tried, best first."""
    return sorted((c for c in candidates if c.error is None and c.load_s is not None), key=_speed)


def _keep_best_open(
    candidates: list[Candidate], bundle: Bundle, golden: Golden, store: Store
) -> None:
    while ranked := _usable(candidates):
        for candidate in ranked[1:]:
            candidate.close()
        if ranked[0].session is not None:
            return
        with _rejecting(ranked[0]):
            prove(ranked[0], bundle, golden, store)


@contextlib.contextmanager
def _rejecting(candidate: Candidate) -> Iterator[None]:
    """Reject a candidate for what it raises, but not where there is no room for its files."""
    try:
        yield
    except ScratchError:  # no fault of the candidate
        raise
    except EdgeCodecError as exc:
        candidate.reject(exc)


def _speed(candidate: Candidate) -> float:
    """Return what candidates are ranked by: seconds, or alike where they were not timed."""
    seconds = candidate.median_s or 1.0
    if candidate.variant:
        seconds = PREFER_DEFAULT_THREADS * (candidate.high_s or seconds)
    return HANDICAPS.get(candidate.entry.precision, HALF_HANDICAP) * seconds


def _try_out(
    candidates: list[Candidate],
    bundle: Bundle,
    golden: Golden,
    size: tuple[int, int],
    tools: Tools,
) -> None:
    """Load each candidate and compare it with the golden vector; reject those that fail."""
    untried = [c for c in candidates if needs_trial(bundle, c, tools.store)]
    tools.trial(bundle, untried, size, tools.store)
    candidates = [c for c in candidates if c.error is None]
    probed = {name: probe(name) for name in dict.fromkeys(c.name for c in candidates)}
    for candidate in candidates:
        found = probed[candidate.name]
        if not found.ok:
            broken = BROKEN in found.reason  # which its owner may want to know, unlike its absence
            kind = BackendError if broken else BackendUnavailableError
            candidate.reject(kind(candidate.name, found.reason))
            continue
        with _rejecting(candidate):
            prove(candidate, bundle, golden, tools.store)


def thread_counts(usable: int, physical: int) -> tuple[int, ...]:
    """Return the thread counts worth trying beside the backends' own choice, largest first.

    Args:
        usable: logical cores that this process may use.
        physical: of the machine; 0 where unknown.

    >>> thread_counts(8, 4), thread_counts(2, 2)
    ((8, 4, 2, 1), (1,))
    """
    physical = min(physical or usable, usable)
    counts = {usable, physical, max(1, physical // 2), 1}
    if usable == physical:
        counts.discard(usable)  # what every backend does by itself
    return tuple(sorted(counts, reverse=True))


def _try_thread_counts(
    working: list[Candidate],
    bundle: Bundle,
    golden: Golden,
    request: Request,
    budget_s: float,
    tools: Tools,
) -> list[Candidate]:
    """Try thread counts for the fastest few, one count at a time, against the best so far.

    No more sessions than those few and the best are open at once. A round's times are brought to
    the scale of the first by those of the best, which takes part in every round.
    """
    few = [c for c in working if c.name != REFERENCE][:THREADED]
    if not few:
        return []
    best = few[0]
    tried: list[Candidate] = []
    for candidate in working[1:]:
        candidate.close()
    store = tools.store
    counts = thread_counts(store.usable_cores(), store.device().physical_cores)
    unknown: dict[str, Any] = {"session": None, "median_s": None, "high_s": None}
    for count in counts:
        challengers = [
            replace(c, settings=replace(c.settings, threads=count), variant=True, **unknown)
            for c in few
        ]
        for candidate in challengers:
            with _rejecting(candidate):
                prove(candidate, bundle, golden, store)
        tried += challengers
        before = best.median_s
        usable = [c for c in challengers if c.error is None]
        tools.time([best, *usable], golden, request.size, budget_s / len(counts))
        if best.error is not None or best.median_s is None:
            break
        scale = 1.0 if before is None else before / best.median_s
        for candidate in (best, *usable):
            if candidate.median_s is not None:
                candidate.median_s *= scale
            if candidate.high_s is not None:
                candidate.high_s *= scale
        winner = min((c for c in (best, *usable) if c.error is None), key=_speed)
        for candidate in (best, *usable):
            if candidate is not winner:
                candidate.close()
        best = winner
    return tried


def _log_rejections(candidates: list[Candidate]) -> None:
    """Tell of each backend and each reason once, whatever the precisions and threads."""
    told: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        if candidate.error is not None:
            told.setdefault((candidate.name, candidate.choice().reason), []).append(candidate)
    for (name, reason), alike in told.items():
        # Scratch space that is full is told once, at the end.
        expected = isinstance(alike[0].error, BackendUnavailableError | ScratchError)
        level = logging.INFO if expected or name == REFERENCE else logging.WARNING
        more = dict.fromkeys(c.entry.precision for c in alike[1:])
        more.pop(alike[0].entry.precision, None)
        what = ", ".join([alike[0].choice().what, *more])
        _log.log(level, "%s: rejected %s: %s", alike[0].stage, what, reason)


def _nothing_works(candidates: list[Candidate], request: Request) -> EdgeCodecError:
    """Return the error that says why; with a single candidate, or a damaged bundle, its own."""
    first = candidates[0].error
    damaged = all(isinstance(candidate.error, BundleError) for candidate in candidates)
    if first is not None and (damaged or len(candidates) == 1):
        return first
    reasons = "; ".join(str(c.choice()) for c in candidates)
    return BackendError(request.wanted.backend, f"nothing can run {request.stage} here: {reasons}")
