"""Choice of backend, precision and thread count by what they do on this machine.

What was measured is kept on disk and believed by later processes, but never without a check: the
winner must reproduce the golden vector once in every process that uses it. With a precision or a
backend named, that is what is used, or an error says why not. Nothing falls back in silence: every
rejection is in the verdict and in the log of `edgecodec.runtimes`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from types import MappingProxyType

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import (
    BackendError,
    BundleError,
    ConfigError,
    EdgeCodecError,
    ScratchError,
)
from edgecodec.runtimes.base import STAGES, Session, StageName
from edgecodec.runtimes.device.probe import usable_cores
from edgecodec.runtimes.environment import AUTO, call_limit, wanted_backend
from edgecodec.runtimes.registry import get_backend
from edgecodec.runtimes.selection import store
from edgecodec.runtimes.selection.candidates import Candidate, load, prove
from edgecodec.runtimes.selection.choice import Choice, StageVerdict, Verdict
from edgecodec.runtimes.selection.competition import Request, compete
from edgecodec.runtimes.selection.golden import Golden

__all__ = [
    "Choice",
    "StageVerdict",
    "Verdict",
    "choose",
    "clear_cache",
    "demote",
    "open_choice",
    "open_stage",
    "size_class",
]

DEFAULT_SIZE = (512, 768)

CLASSES = range(14, 21)
"""Size classes, as powers of two of pixels. Larger pictures have tiles, so more than a megapixel
would only take memory, of several runtimes at once."""

TILE = (1088, 1088)
"""What the largest class is timed at: what the default analysis sees of a tile of the default size.
At 1024 x 1024 planes lie a power of two of bytes apart, where OpenVINO takes a tenth longer per
pixel than at sizes near it, and something else looks faster."""

DEFAULT_BUDGET_S = 0.5
"""Seconds of timing per stage: a few runs of three candidates on a laptop."""

_log = logging.getLogger(__name__)
_verdicts: dict[str, StageVerdict] = {}
_proven: set[tuple[object, ...]] = set()
"""What has reproduced the golden vector in this process."""
_measuring = threading.RLock()
"""One measurement at a time, so that they do not disturb each other."""


def size_class(height: int, width: int) -> tuple[int, int]:
    """Return height and width that pictures of this area are timed at.

    >>> size_class(480, 640), size_class(512, 768), size_class(4000, 6000)
    ((512, 512), (512, 1024), (1088, 1088))
    """
    area = max(1, height * width)
    lower = min(max(area.bit_length() - 1, CLASSES[0]), CLASSES[-1])
    # The nearer by ratio: above the geometric mean the next one.
    power = lower + (area * area > 2 ** (2 * lower + 1) and lower < CLASSES[-1])
    return TILE if power == CLASSES[-1] else (1 << power // 2, 1 << (power + 1) // 2)


def choose(
    bundle: Bundle,
    *,
    backend: str = AUTO,
    precision: str = AUTO,
    threads: int | None = None,
    stages: Sequence[StageName] = STAGES,
    size: tuple[int, int] = DEFAULT_SIZE,
    budget_s: float = DEFAULT_BUDGET_S,
    refresh: bool = False,
) -> Verdict:
    """Decide what runs each stage; measured once per machine, or found in the cache.

    Args:
        bundle: the artefacts and their golden vector.
        backend: a name or `auto`, which EDGECODEC_BACKEND may replace by a name.
        precision: a precision or `auto`, the fastest that passed the converter's judgement.
        threads: for the runtimes, at most as many as there are cores to run on; None measures
            with `auto`, and leaves it to a backend named.
        stages: which stages to decide.
        size: height and width of the pictures to come; timed at their `size_class`.
        budget_s: seconds of timing per stage, beside loading, and as many for thread counts.
        refresh: measure again, whatever is in the cache.

    Raises:
        UnknownPluginError: no backend of that name.
        ConfigError: `threads` is not positive, or EDGECODEC_TIMEOUT no number of seconds.
        BundleError: no artefact of that kind, or damaged.
        BackendUnavailableError: the backend named cannot be used here.
        BackendError: nothing works; lists every candidate with its reason.
    """
    verdicts = []
    for stage in stages:
        request = _request(stage, backend, precision, threads, size)
        with _measuring:
            verdict = None if refresh else _known(bundle, request)
            if verdict is None:
                verdict, session = _measure(bundle, request, budget_s)
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
    failed: Collection[tuple[str, str]] = (),
    loaded: Mapping[tuple[str, str, int | None], Session] = MappingProxyType({}),
) -> tuple[Session, Choice]:
    """Decide what runs a stage and load it; arguments and errors as of `choose`.

    Where what the cache names does not load, or answers wrongly by now, it is measured anew.

    Args:
        bundle: see `choose`.
        stage: which stage.
        backend: see `choose`.
        precision: see `choose`.
        threads: see `choose`.
        size: see `choose`.
        budget_s: see `choose`.
        failed: backend and precision of what failed in use: not taken, whatever is known of it.
        loaded: sessions to take instead of loading, by `Choice.settings`.

    Returns:
        a session, and what it is.
    """
    request = _request(stage, backend, precision, threads, size)
    with _measuring:
        verdict = _known(bundle, request)
        if verdict is not None and failed:
            ranked = [c for c in verdict.ranked if (c.backend, c.precision) not in failed]
            verdict = replace(verdict, ranked=tuple(ranked)) if ranked else None
        if verdict is not None:
            session = loaded.get(verdict.best.settings)
            if session is not None:
                return session, verdict.best
            try:
                return open_choice(bundle, verdict.best), verdict.best
            except ScratchError:
                raise  # a disk is full: nothing is wrong with what was chosen
            except EdgeCodecError as exc:
                _log.warning("%s: %s; measuring anew", stage, exc)
                _forget(bundle, request)
        verdict, session = _measure(bundle, request, budget_s, failed)
        return session, verdict.best


def open_choice(bundle: Bundle, choice: Choice) -> Session:
    """Load what was chosen, checked against the golden vector once per process.

    Raises:
        UnknownPluginError: there is no such backend any more.
        BundleError: the bundle has no such artefact, or it is damaged.
        BackendError: it does not load, or answers wrongly, or a process died of it.
    """
    backend = get_backend(choice.backend)
    wanted = (choice.stage, choice.precision, backend.target)
    entries = bundle.manifest.artefacts
    entry = next((e for e in entries if (e.stage, e.precision, e.target) == wanted), None)
    if entry is None:
        raise BundleError(f"{bundle.path}: no artefact for {choice.what}")
    candidate = Candidate(choice.stage, choice.backend, entry, backend, choice.threads)
    proof = _proof(bundle, choice)
    if proof in _proven:
        return load(bundle, candidate)
    trial = store.trial_name(bundle, choice.stage, *candidate.artefact)
    if store.is_marked(trial):
        raise BackendError(choice.backend, "an earlier process died of it")
    session = prove(candidate, bundle, Golden.of(bundle))
    _proven.add(proof)
    return session


def demote(
    bundle: Bundle,
    choice: Choice,
    reason: str,
    backend: str = AUTO,
    precision: str = AUTO,
    threads: int | None = None,
    *,
    size: tuple[int, int] = DEFAULT_SIZE,
) -> None:
    """Note that a choice failed in use, here and in the cache: the next in rank comes first.

    Choices of the same backend and precision go with it. Where nothing is left, or nothing is
    known, the next who asks measures.

    Args:
        bundle: see `choose`.
        choice: what failed.
        reason: one line.
        backend: see `choose`; as it was asked for.
        precision: likewise.
        threads: likewise.
        size: likewise.
    """
    request = _request(choice.stage, backend, precision, threads, size)
    with _measuring:
        verdict = _known(bundle, request)
        if verdict is None:
            return
        what = (choice.backend, choice.precision)
        out = [c for c in verdict.ranked if (c.backend, c.precision) == what]
        left = tuple(c for c in verdict.ranked if c not in out)
        if not left:
            _forget(bundle, request)
        elif out:
            told = f"failed in use: {reason}"
            out = [replace(c, ok=False, reason=told) for c in out]
            verdict = replace(verdict, ranked=left, rejected=(*verdict.rejected, *out))
            _keep(bundle, request, verdict)


def clear_cache() -> None:
    """Forget what this process knows; what is on disk stays."""
    with _measuring:
        _verdicts.clear()
        _proven.clear()
        store.forget_machine()


def _request(
    stage: StageName, backend: str, precision: str, threads: int | None, size: tuple[int, int]
) -> Request:
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, this is {threads}")
    call_limit()  # refused here, a wrong variable is not taken for the fault of each candidate
    if threads is not None:
        threads = min(threads, usable_cores())  # more would wait for each other, spinning
    return Request(stage, wanted_backend(backend), precision, threads, size_class(*size))


def _known(bundle: Bundle, request: Request) -> StageVerdict | None:
    """Return what was measured before, in this process or another."""
    key = store.make_key(bundle, asdict(request))
    verdict = _verdicts.get(key)
    if verdict is None and (verdict := store.read(key)) is not None:
        _verdicts[key] = verdict
    return verdict


def _keep(bundle: Bundle, request: Request, verdict: StageVerdict) -> None:
    key = store.make_key(bundle, asdict(request))
    _verdicts[key] = verdict
    store.write(key, verdict)


def _forget(bundle: Bundle, request: Request) -> None:
    key = store.make_key(bundle, asdict(request))
    _verdicts.pop(key, None)
    store.remove(key)


def _measure(
    bundle: Bundle,
    request: Request,
    budget_s: float,
    failed: Collection[tuple[str, str]] = (),
) -> tuple[StageVerdict, Session]:
    """Measure, keep the verdict, and return it with the session of the winner."""
    candidates = compete(bundle, request, budget_s, failed)
    session = candidates[0].session
    if session is None:  # compete keeps the best open
        raise BackendError(candidates[0].name, "its session is gone")
    verdict = _verdict(request, candidates)
    _proven.update(_proof(bundle, choice) for choice in verdict.ranked)
    # Where some failed in use, or a disk was full, it is an answer to this process alone.
    if not failed and not any(isinstance(c.error, ScratchError) for c in candidates):
        _keep(bundle, request, verdict)
    return verdict, session


def _proof(bundle: Bundle, choice: Choice) -> tuple[object, ...]:
    return (bundle.content_id, choice.stage, *choice.settings)


def _verdict(request: Request, candidates: list[Candidate]) -> StageVerdict:
    working = [c for c in candidates if c.error is None]
    times = [c.median_s for c in working if c.median_s is not None]
    verdict = StageVerdict(
        **asdict(request),
        ranked=tuple(c.choice(_praise(c, min(times, default=None))) for c in working),
        rejected=tuple(c.choice() for c in candidates if c.error is not None),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _log.info("%s: chose %s", request.stage, verdict.best)
    return verdict


def _praise(candidate: Candidate, fastest: float | None) -> str:
    if candidate.median_s is None or fastest is None:
        return "right results; not timed, nothing to compare with"
    ratio = candidate.median_s / fastest
    return "right results, " + ("fastest" if ratio == 1.0 else f"{ratio:.2f} times the fastest")
