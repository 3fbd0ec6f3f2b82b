"""Choice of backend and precision by what they do on this machine.

Correct first, then fast: a candidate is loaded, must reproduce the bundle's golden vector, and is
then timed against the others at a picture size. With `auto` precision an artefact of any precision
may win, provided its results are as good as float32's; with a precision or a backend named, that
is what is used, or an error says why not. Nothing falls back in silence: every rejection is in the
verdict and in the log of `edgecodec.runtimes`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from edgecodec.bundle import Bundle
from edgecodec.errors import BackendError, BackendUnavailableError, ConfigError, EdgeCodecError
from edgecodec.runtimes.base import STAGES, Session, StageName
from edgecodec.runtimes.candidates import (
    AUTO,
    REFERENCE,
    Candidate,
    find_candidates,
    load,
    time_candidates,
    try_out,
)
from edgecodec.runtimes.choice import Choice, StageVerdict, Verdict
from edgecodec.runtimes.golden import TOLERANCES, Golden
from edgecodec.runtimes.registry import backend_names, get_backend

__all__ = ["Choice", "StageVerdict", "Verdict", "choose", "clear_cache", "open_stage", "size_class"]

SIZE_CLASSES = ((256, 256), (512, 768), (1024, 1536))
"""Height and width that candidates are timed at; a picture falls into the nearest by area."""

DEFAULT_SIZE = (512, 768)

PREFER_FP32 = 1.1
"""With `auto` precision, fp32 wins unless another is faster by more than this factor: noise alone
must not decide about precision, least of all differently from run to run."""

NOT_NEEDED = "the reference: used when named, or when nothing else works"

DEFAULT_BUDGET_S = 0.5
"""Seconds of timing per stage: a few runs of three candidates on a laptop."""

_log = logging.getLogger(__name__)
_verdicts: dict[tuple[object, ...], StageVerdict] = {}
_measuring = threading.Lock()
"""One measurement at a time, so that they do not disturb each other."""


@dataclass(frozen=True)
class Request:
    """What a stage is wanted for.

    Attributes:
        stage: `analysis` or `synthesis`.
        backend: a name or `auto`.
        precision: a precision or `auto`.
        threads: None leaves it to the runtimes.
        size: one of `SIZE_CLASSES`.
    """

    stage: StageName
    backend: str
    precision: str
    threads: int | None
    size: tuple[int, int]


def size_class(height: int, width: int) -> tuple[int, int]:
    """Return the class a picture is timed in.

    >>> size_class(480, 640), size_class(4000, 6000)
    ((512, 768), (1024, 1536))
    """
    area = max(1, height * width)

    def ratio(size: tuple[int, int]) -> float:
        own = size[0] * size[1]
        return max(own / area, area / own)

    return min(SIZE_CLASSES, key=ratio)


def choose(
    bundle: Bundle,
    *,
    backend: str = AUTO,
    precision: str = AUTO,
    threads: int | None = None,
    stages: Sequence[StageName] = STAGES,
    size: tuple[int, int] = DEFAULT_SIZE,
    budget_s: float = DEFAULT_BUDGET_S,
) -> Verdict:
    """Decide what runs each stage; measured once per process.

    Args:
        bundle: the artefacts and their golden vector.
        backend: a name or `auto`.
        precision: a precision or `auto`, the fastest whose results are as good as float32's.
        threads: for the runtimes; None leaves it to them.
        stages: which stages to decide.
        size: height and width of the pictures to come; timed at the nearest of `SIZE_CLASSES`.
        budget_s: seconds of timing per stage, beside loading.

    Raises:
        UnknownPluginError: no backend of that name.
        ConfigError: `threads` is not positive.
        BundleError: no artefact of that kind, or damaged.
        BackendUnavailableError: the backend named cannot be used here.
        BackendError: nothing works; lists every candidate with its reason.
    """
    verdicts = []
    for stage in stages:
        request = Request(stage, backend, precision, threads, size_class(*size))
        verdict, session = _decide(bundle, request, budget_s)
        if session is not None:
            session.close()
        verdicts.append(verdict)
    return Verdict(tuple(verdicts))


def open_stage(
    bundle: Bundle,
    stage: StageName,
    backend: str = AUTO,
    precision: str = AUTO,
    threads: int | None = None,
    *,
    size: tuple[int, int] = DEFAULT_SIZE,
    budget_s: float = DEFAULT_BUDGET_S,
) -> tuple[Session, Choice]:
    """Decide what runs a stage and load it; arguments and errors as of `choose`.

    Where the choice is left open and the best refuses to load later on, the next one is taken.
    """
    request = Request(stage, backend, precision, threads, size_class(*size))
    verdict, session = _decide(bundle, request, budget_s)
    if session is not None:
        return session, verdict.best
    failures: list[str] = []
    for choice in verdict.ranked:
        entry = next(
            e
            for e in bundle.manifest.artefacts
            if (e.stage, e.precision) == (stage, choice.precision)
            and e.target == get_backend(choice.backend).target
        )
        try:
            return load(bundle, get_backend(choice.backend), stage, entry, threads), choice
        except EdgeCodecError as exc:
            if backend != AUTO:
                raise
            _log.warning("%s: %s, trying the next", stage, exc)
            failures.append(str(exc))
    raise BackendError(AUTO, f"nothing can run {stage} any more: {'; '.join(failures)}")


def clear_cache() -> None:
    """Forget all verdicts, so that the next call measures again."""
    with _measuring:
        _verdicts.clear()


def _decide(
    bundle: Bundle, request: Request, budget_s: float
) -> tuple[StageVerdict, Session | None]:
    """Return the verdict and, where it was measured just now, the session of the winner."""
    if request.threads is not None and request.threads < 1:
        raise ConfigError(f"threads must be at least 1, this is {request.threads}")
    key = (
        str(bundle.path.resolve()),
        hash(frozenset(bundle.manifest.files.items())),
        backend_names(),
        request,
    )
    with _measuring:
        known = _verdicts.get(key)
        if known is not None:
            return known, None
        winner, candidates = _compete(bundle, request, budget_s)
        verdict = _verdict(request, winner, candidates)
        _verdicts[key] = verdict
        return verdict, winner.session


def _compete(
    bundle: Bundle, request: Request, budget_s: float
) -> tuple[Candidate, list[Candidate]]:
    """Return the winner, its session open, and all candidates, the others closed."""
    golden = Golden(bundle)
    candidates = find_candidates(bundle, request.stage, request.backend, request.precision)
    tolerance = TOLERANCES["fp32"] if request.precision == AUTO else None
    last = [c for c in candidates if request.backend == AUTO and c.name == REFERENCE]
    working: list[Candidate] = []
    for group in ([c for c in candidates if c not in last], last):
        if working:
            for candidate in group:
                candidate.reject(BackendError(candidate.name, NOT_NEEDED))
            break
        try_out(group, bundle, golden, request.threads, tolerance)
        time_candidates([c for c in group if c.error is None], golden, request.size, budget_s)
        working = [c for c in group if c.error is None]
    _log_rejections(candidates)
    if not working:
        raise _nothing_works(candidates, request)
    winner = min(working, key=_speed)
    for candidate in working:
        if candidate is not winner:
            candidate.close()
    return winner, candidates


def _speed(candidate: Candidate) -> float:
    """Return what candidates are ranked by: seconds, or alike where they were not timed."""
    handicap = 1.0 if candidate.entry.precision == "fp32" else PREFER_FP32
    return (candidate.median_s or 1.0) * handicap


def _log_rejections(candidates: list[Candidate]) -> None:
    for candidate in candidates:
        if candidate.error is not None:
            expected = isinstance(candidate.error, BackendUnavailableError)
            level = logging.INFO if expected or candidate.name == REFERENCE else logging.WARNING
            _log.log(level, "%s: rejected %s", candidate.stage, candidate.choice())


def _nothing_works(candidates: list[Candidate], request: Request) -> EdgeCodecError:
    """Return the error that says why; with a single candidate its own."""
    only = candidates[0].error
    if len(candidates) == 1 and only is not None:
        return only
    reasons = "; ".join(str(c.choice()) for c in candidates)
    return BackendError(request.backend, f"nothing can run {request.stage} here: {reasons}")


def _verdict(request: Request, winner: Candidate, candidates: list[Candidate]) -> StageVerdict:
    working = sorted((c for c in candidates if c.error is None), key=_speed)
    times = [c.median_s for c in working if c.median_s is not None]
    ranked = [c.choice(_praise(c, min(times, default=None))) for c in working]
    rejected = tuple(c.choice() for c in candidates if c.error is not None)
    verdict = StageVerdict(**asdict(request), ranked=tuple(ranked), rejected=rejected)
    _log.info("%s: chose %s", request.stage, verdict.best)
    return verdict


def _praise(candidate: Candidate, fastest: float | None) -> str:
    if candidate.median_s is None or fastest is None:
        return "right results; not timed, nothing to compare with"
    ratio = candidate.median_s / fastest
    return "right results, " + ("fastest" if ratio == 1.0 else f"{ratio:.2f} times the fastest")
