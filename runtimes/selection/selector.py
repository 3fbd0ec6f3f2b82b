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
from dataclasses import replace
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
from edgecodec.forks import tell_of_fork
from edgecodec.runtimes.base import STAGES, RunSettings, Session, StageName
from edgecodec.runtimes.environment import wanted_backend
from edgecodec.runtimes.registry import get_backend
from edgecodec.runtimes.selection.candidates import Candidate, load, prove
from edgecodec.runtimes.selection.choice import Choice, StageVerdict, Verdict
from edgecodec.runtimes.selection.competition import Request, Tools, compete
from edgecodec.runtimes.selection.golden import Golden
from edgecodec.runtimes.selection.transient import is_transient

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
_ANYTHING = RunSettings()


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


class Selector:
    """Decides what runs where, and remembers what it decided. Safe from many threads.

    Args:
        tools: what to measure with, and where it is remembered.
    """

    def __init__(self, tools: Tools | None = None) -> None:
        self._tools = tools or Tools()
        self._store = self._tools.store
        self._verdicts: dict[str, StageVerdict] = {}
        # What has reproduced the golden vector in this process.
        self._proven: set[tuple[object, ...]] = set()
        # One measurement at a time, so that they do not disturb each other.
        self._measuring = threading.RLock()
        tell_of_fork(self)

    def after_fork(self) -> None:
        """See `edgecodec.forks`."""
        self._measuring = threading.RLock()

    def choose(
        self,
        bundle: Bundle,
        wanted: RunSettings = _ANYTHING,
        *,
        stages: Sequence[StageName] = STAGES,
        size: tuple[int, int] = DEFAULT_SIZE,
        budget_s: float = DEFAULT_BUDGET_S,
        refresh: bool = False,
    ) -> Verdict:
        """Decide what runs each stage; measured once per machine, or found in the cache.

        Args:
            bundle: the artefacts and their golden vector.
            wanted: what to run on and how. With the backend left open, EDGECODEC_BACKEND may name
                one; with the precision, it is the fastest that passed the converter's judgement.
                Threads are at most as many as there are cores to run on; None measures with the
                backend left open, and leaves it to a backend named.
            stages: which stages to decide.
            size: height and width of the pictures to come; timed at their `size_class`.
            budget_s: seconds of timing per stage, beside loading, and as many for thread counts.
            refresh: measure again, whatever is in the cache.

        Raises:
            UnknownPluginError: no backend of that name.
            ConfigError: `threads` is not positive.
            BundleError: no artefact of that kind, or damaged.
            BackendUnavailableError: the backend named cannot be used here.
            BackendError: nothing works; lists every candidate with its reason.
        """
        verdicts = []
        for stage in stages:
            request = self._request(stage, wanted, size)
            with self._measuring:
                verdict = None if refresh else self._known(bundle, request)
                if verdict is None:
                    verdict, session = self._measure(bundle, request, budget_s)
                    session.close()
            verdicts.append(verdict)
        return Verdict(tuple(verdicts))

    def open_stage(
        self,
        bundle: Bundle,
        stage: StageName,
        wanted: RunSettings = _ANYTHING,
        *,
        size: tuple[int, int] = DEFAULT_SIZE,
        budget_s: float = DEFAULT_BUDGET_S,
        failed: Collection[tuple[str, str]] = (),
        loaded: Mapping[RunSettings, Session] = MappingProxyType({}),
    ) -> tuple[Session, Choice]:
        """Decide what runs a stage and load it; arguments and errors as of `choose`.

        Where what the cache names does not load, or answers wrongly by now, it is measured anew.

        Args:
            bundle: see `choose`.
            stage: which stage.
            wanted: see `choose`.
            size: see `choose`.
            budget_s: see `choose`.
            failed: backend and precision of what failed in use: not taken, whatever is known of
                it.
            loaded: sessions to take instead of loading, by `Choice.settings`.

        Returns:
            a session, and what it is.
        """
        request = self._request(stage, wanted, size)
        with self._measuring:
            verdict = self._known(bundle, request)
            if verdict is not None and failed:
                ranked = [c for c in verdict.ranked if c.settings.artefact not in failed]
                verdict = replace(verdict, ranked=tuple(ranked)) if ranked else None
            if verdict is not None:
                session = loaded.get(verdict.best.settings)
                if session is not None:
                    return session, verdict.best
                try:
                    return self.open_choice(bundle, verdict.best), verdict.best
                except ScratchError:
                    raise  # a disk is full: nothing is wrong with what was chosen
                except EdgeCodecError as exc:
                    _log.warning("%s: %s; measuring anew", stage, exc)
                    if not is_transient(exc):
                        self._forget(bundle, request)
            verdict, session = self._measure(bundle, request, budget_s, failed)
            return session, verdict.best

    def open_choice(self, bundle: Bundle, choice: Choice) -> Session:
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
        candidate = Candidate(choice.stage, choice.settings, entry, backend)
        proof = _proof(bundle, choice)
        if proof in self._proven:
            return load(bundle, candidate)
        if self._store.is_marked(self._store.trial_name(bundle, choice.stage, choice.settings)):
            raise BackendError(choice.backend, "an earlier process died of it")
        session = prove(candidate, bundle, Golden.of(bundle), self._store)
        self._proven.add(proof)
        return session

    def demote(
        self,
        bundle: Bundle,
        choice: Choice,
        reason: str,
        wanted: RunSettings = _ANYTHING,
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
            wanted: see `choose`; as it was asked for.
            size: likewise.
        """
        request = self._request(choice.stage, wanted, size)
        with self._measuring:
            verdict = self._known(bundle, request)
            if verdict is None:
                return
            what = choice.settings.artefact
            out = [c for c in verdict.ranked if c.settings.artefact == what]
            left = tuple(c for c in verdict.ranked if c not in out)
            if not left:
                self._forget(bundle, request)
            elif out:
                told = f"failed in use: {reason}"
                out = [replace(c, ok=False, reason=told) for c in out]
                verdict = replace(verdict, ranked=left, rejected=(*verdict.rejected, *out))
                self._keep(bundle, request, verdict)

    def clear(self) -> None:
        """Forget what this process knows; what is on disk stays."""
        with self._measuring:
            self._verdicts.clear()
            self._proven.clear()
            self._store.forget_machine()

    def _request(self, stage: StageName, wanted: RunSettings, size: tuple[int, int]) -> Request:
        threads = wanted.threads
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads must be at least 1, this is {threads}")
            # More would wait for each other, spinning.
            threads = min(threads, self._store.usable_cores())
        wanted = replace(wanted, backend=wanted_backend(wanted.backend), threads=threads)
        return Request(stage, wanted, size_class(*size))

    def _known(self, bundle: Bundle, request: Request) -> StageVerdict | None:
        """Return what was measured before, in this process or another."""
        key = self._store.make_key(bundle, request.to_dict())
        verdict = self._verdicts.get(key)
        if verdict is None and (verdict := self._store.read(key)) is not None:
            self._verdicts[key] = verdict
        return verdict

    def _keep(self, bundle: Bundle, request: Request, verdict: StageVerdict) -> None:
        key = self._store.make_key(bundle, request.to_dict())
        self._verdicts[key] = verdict
        self._store.write(key, verdict)

    def _forget(self, bundle: Bundle, request: Request) -> None:
        key = self._store.make_key(bundle, request.to_dict())
        self._verdicts.pop(key, None)
        self._store.remove(key)

    def _measure(
        self,
        bundle: Bundle,
        request: Request,
        budget_s: float,
        failed: Collection[tuple[str, str]] = (),
    ) -> tuple[StageVerdict, Session]:
        """Measure, keep the verdict, and return it with the session of the winner."""
        candidates = compete(bundle, request, budget_s, failed, self._tools)
        session = candidates[0].session
        if session is None:  # compete keeps the best open
            raise BackendError(candidates[0].name, "its session is gone")
        verdict = _verdict(request, candidates)
        self._proven.update(_proof(bundle, choice) for choice in verdict.ranked)
        # Where some failed in use, or lacked memory, threads or room for their files, it is an
        # answer to this process alone.
        if not failed and not any(c.error and is_transient(c.error) for c in candidates):
            self._keep(bundle, request, verdict)
        return verdict, session


shared = Selector()
"""That of this process: what one codec measured, the next one knows."""


def _proof(bundle: Bundle, choice: Choice) -> tuple[object, ...]:
    return bundle.content_id, choice.stage, choice.settings


def _verdict(request: Request, candidates: list[Candidate]) -> StageVerdict:
    working = [c for c in candidates if c.error is None]
    times = [c.median_s for c in working if c.median_s is not None]
    verdict = StageVerdict(
        stage=request.stage,
        wanted=request.wanted,
        size=request.size,
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
