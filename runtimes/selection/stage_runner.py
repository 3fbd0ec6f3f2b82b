"""One stage for as long as a codec lives: sessions by size class, and what happens when one fails.

A choice that was right when measured may fail later: memory runs out, a driver resets, a session
dies. Where the backend was left open the next in rank computes the same input, and the picture
comes out; with a backend named, its error is raised.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array
from edgecodec.bundle.reading import Bundle
from edgecodec.errors import CODEC_CLOSED, BackendError, ConfigError, EdgeCodecError
from edgecodec.runtimes.backends.checked_session import (
    checked_inputs,
    fits,
    in_pixels,
    stage_inputs,
    stage_outputs,
)
from edgecodec.runtimes.base import Session, StageName, lend
from edgecodec.runtimes.environment import AUTO, wanted_backend
from edgecodec.runtimes.selection.candidates import close_quietly
from edgecodec.runtimes.selection.choice import Choice
from edgecodec.runtimes.selection.selector import DEFAULT_SIZE, demote, open_stage, size_class
from edgecodec.runtimes.vendor import one_line

_Result = TypeVar("_Result")
_Outputs = Mapping[str, Float32Array]
Use = Callable[[_Outputs], bool]
"""Does something with results, and says whether the values are finite."""
Size = tuple[int, int]

_log = logging.getLogger(__name__)


class StageRunner:
    """Runs one stage on whatever is best for the size of the picture. Safe from many threads.

    Args:
        bundle: the artefacts; must outlive this.
        stage: which stage.
        backend: a name or `auto`.
        precision: a precision or `auto`.
        threads: worker threads of the runtime, None leaves it open.
    """

    def __init__(
        self,
        bundle: Bundle,
        stage: StageName,
        backend: str = AUTO,
        precision: str = AUTO,
        threads: int | None = None,
    ) -> None:
        self._bundle, self._stage = bundle, stage
        self._backend, self._precision, self._threads = backend, precision, threads
        self._lock = threading.Lock()
        self._closed = False
        self._choices: dict[Size, Choice] = {}
        self._sessions: dict[tuple[str, str, int | None], Session] = {}
        self._failed: set[tuple[str, str]] = set()
        self._last: Size | None = None

    def open(self, size: Size | None = None) -> Choice:
        """Decide and load what runs pictures of a size, where that has not been done.

        Args:
            size: height and width in pixels; None takes that of the last call, or the default.

        Raises:
            EdgeCodecError: see `edgecodec.runtimes.selection.selector.choose`.
        """
        return self._current(size)[1]

    def run(
        self, inputs: Mapping[str, Float32Array], size: Size | None = None
    ) -> dict[str, Float32Array]:
        """Run the stage; inputs and outputs as in `edgecodec.runtimes.base`, x_hat as pixels.

        Args:
            inputs: float32, one array per input of the stage.
            size: of the picture the input is part of; see `open`.

        Raises:
            BackendError: an input does not fit; or the backend named failed, or all there are.
            ConfigError: this is closed.
        """

        def owned(session: Session, arrays: _Outputs) -> tuple[dict[str, Float32Array], str]:
            outputs = session.run(arrays)
            problem = self._misshapen(arrays, outputs)
            if problem:
                return {}, problem
            strange = [name for name, value in outputs.items() if not _is_finite(value)]
            return in_pixels(outputs), self._not_finite(arrays, strange)

        return self._first_good(inputs, size, owned)

    def lend(self, inputs: Mapping[str, Float32Array], use: Use, size: Size | None = None) -> None:
        """Run the stage and show its results where they lie, without copying them.

        Args:
            inputs: float32, one array per input of the stage.
            use: given the outputs as in `edgecodec.runtimes.base`, which it must neither change nor
                keep. Called again where what it saw was not finite and the next backend computes
                the same; what it did is then to be done anew.
            size: of the picture the input is part of; see `open`.

        Raises:
            BackendError: as of `run`.
            ConfigError: this is closed.
        """

        def lent(session: Session, arrays: _Outputs) -> tuple[None, str]:
            def checked(outputs: _Outputs) -> str:
                problem = self._misshapen(arrays, outputs)
                return problem or self._not_finite(arrays, () if use(outputs) else tuple(outputs))

            return None, lend(session, arrays, checked)

        self._first_good(inputs, size, lent)

    def _first_good(
        self,
        inputs: Mapping[str, Float32Array],
        size: Size | None,
        attempt: Callable[[Session, _Outputs], tuple[_Result, str]],
    ) -> _Result:
        """Return what comes of the best session with which nothing is wrong."""
        dims = stage_inputs(self._stage, self._bundle.manifest)
        arrays = checked_inputs(self._backend, self._stage, dims, inputs)
        failures: dict[tuple[str, str], tuple[Choice, BackendError]] = {}
        while True:
            session, choice = self._next(size, failures)
            try:
                result, problem = attempt(session, arrays)
                error = BackendError(choice.backend, problem) if problem else None
            except BackendError as exc:
                error = exc
            except Exception as exc:  # sessions of other packages may raise anything
                error = BackendError(choice.backend, one_line(exc))
                error.__cause__ = exc
            if error is None:
                self._drop(list(failures.values()), choice, size)
                return result
            if self._closed:
                raise ConfigError(CODEC_CLOSED) from error
            if wanted_backend(self._backend) != AUTO:
                raise error
            what = (choice.backend, choice.precision)
            if what not in self._failed:  # else another thread closed the session under this one
                failures[what] = (choice, error)

    def close(self) -> None:
        """Close all sessions; further calls are errors."""
        with self._lock:
            self._closed = True
            for session in self._sessions.values():
                close_quietly(session)
            self._sessions.clear()
            self._choices.clear()

    def _next(
        self, size: Size | None, failures: Mapping[tuple[str, str], tuple[Choice, BackendError]]
    ) -> tuple[Session, Choice]:
        """Return what is best beside those that failed with this input."""
        try:
            return self._current(size, failures)
        except EdgeCodecError as exc:
            if not failures:
                raise
            told = "; ".join(str(error) for _, error in failures.values())
            raise BackendError(AUTO, f"nothing could run {self._stage}: {told}") from exc

    def _current(
        self, size: Size | None, without: Collection[tuple[str, str]] = ()
    ) -> tuple[Session, Choice]:
        with self._lock:
            if self._closed:
                raise ConfigError(CODEC_CLOSED)
            kind = size_class(*(size or self._last or DEFAULT_SIZE))
            choice = self._choices.get(kind)
            if choice is None or (choice.backend, choice.precision) in without:
                session, choice = self._load(kind, self._failed.union(without))
                if without:
                    return session, choice
                self._choices[kind] = choice
            self._last = kind
            return self._sessions[choice.settings], choice

    def _load(self, kind: Size, failed: Collection[tuple[str, str]]) -> tuple[Session, Choice]:
        asked = (self._backend, self._precision, self._threads)
        session, choice = open_stage(
            self._bundle, self._stage, *asked, size=kind, failed=failed, loaded=self._sessions
        )
        kept = self._sessions.setdefault(choice.settings, session)
        if kept is not session:
            close_quietly(session)
        return kept, choice

    def _misshapen(self, inputs: _Outputs, outputs: Mapping[str, npt.NDArray[Any]]) -> str:
        """Return what is wrong with the shapes of results."""
        (value,) = inputs.values()
        for name, shape in stage_outputs(self._stage, value.shape, self._bundle.manifest).items():
            found = outputs.get(name)
            if not isinstance(found, np.ndarray):
                return f"gave no {name}"
            if not fits(name, found.shape, shape) or found.dtype != np.float32:
                return f"gave {name} as {found.dtype} of shape {found.shape}, expected {shape}"
        return ""

    def _not_finite(self, inputs: _Outputs, names: Collection[str]) -> str:
        """Return what is wrong where results are not finite, though inputs are."""
        if names and all(_is_finite(value) for value in inputs.values()):
            return f"gave {', '.join(names)} with NaN or infinity"
        return ""

    def _drop(
        self, failures: list[tuple[Choice, BackendError]], successor: Choice, size: Size | None
    ) -> None:
        """Forget what failed where another succeeded: so it was not the input's fault."""
        if not failures:
            return
        with self._lock:
            kinds = {*self._choices, size_class(*(size or self._last or DEFAULT_SIZE))}
            for choice, error in failures:
                what = (choice.backend, choice.precision)
                if what in self._failed or self._closed:
                    continue
                self._failed.add(what)
                _log.warning(
                    "%s: %s failed in use (%s); going on with %s ('edgecodec devices --refresh' "
                    "measures anew)", self._stage, choice.what, error, successor.what,
                )  # fmt: skip
                for settings in [s for s in self._sessions if s[:2] == what]:
                    close_quietly(self._sessions.pop(settings))
                asked = (self._backend, self._precision, self._threads)
                for kind in kinds:
                    demote(self._bundle, choice, one_line(error), *asked, size=kind)
            self._choices = {
                kind: c
                for kind, c in self._choices.items()
                if (c.backend, c.precision) not in self._failed
            }


def _is_finite(value: npt.NDArray[Any]) -> bool:
    """Say whether all values are finite."""
    return bool(np.isfinite(value).all())
