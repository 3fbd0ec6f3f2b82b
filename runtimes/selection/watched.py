"""Calls that must come back: each is done by a worker, and given up when it takes far too long.

A thread that hangs inside a runtime cannot be stopped, only left behind. So the caller lets a
worker do the call and waits for it; a worker that does not come back is abandoned with its session,
whose memory it may still use, and the caller goes on with another backend. Workers are kept, the
last one is taken first: a runtime sees the same thread for every call as long as calls do not
overlap.

Handing a call over takes some 20 microseconds, but what then runs in another thread than the one
that was at work finds itself on a core with a runtime's own threads: on two cores encoding took
1.1 to 1.6 times as long. So what is watched is loading and the first call with inputs of each
size, where a backend that is wrong for a machine shows it; every call where EDGECODEC_TIMEOUT is
set.

A runtime that hangs without leaving the interpreter's lock stops the whole process; no thread of it
can help against that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from edgecodec.arrays import Float32Array
from edgecodec.errors import BackendError
from edgecodec.runtimes.base import Session, lend
from edgecodec.runtimes.environment import call_limit, watches_every_call

_T = TypeVar("_T")

PATIENCE = 30.0
"""A call may take this many times what it should, beside the least limit."""

FIRST_S_PER_MEGAVALUE = 10.0
"""What a session that has not answered yet should take per million numbers it is given."""

LOAD_FACTOR = 3.0
"""Loading may take this many times the least limit: it may have to read much from a slow disk."""

SLICE_S = 1.0
"""Waiting is counted in slices: a process that was stopped for an hour has waited for one."""


class _Call:
    """Work for a worker, and what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self.ended = threading.Lock()
        self.ended.acquire()

    def do(self) -> None:
        try:
            self._result = self._work()
        except BaseException as exc:  # whatever it is, it belongs to the caller
            self._error = exc

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


class _Worker:
    """A thread that does one call after the other."""

    def __init__(self) -> None:
        self._call: _Call | None = None
        self._woken = threading.Lock()
        self._woken.acquire()
        threading.Thread(target=self._serve, name="edgecodec-call", daemon=True).start()

    def begin(self, call: _Call) -> None:
        self._call = call
        self._woken.release()

    def _serve(self) -> None:
        while True:
            self._woken.acquire()
            call, self._call = self._call, None
            if call is not None:  # never: it is woken for one
                call.do()
            _idle.append(self)  # first, so that the caller's next call finds it
            if call is not None:
                call.ended.release()
            del call


_idle: list[_Worker] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # a fork has none of its parent's threads


def watched(
    work: Callable[[], _T], limit_s: float, progress: Callable[[], int] = int
) -> tuple[bool, _T | None]:
    """Do some work in another thread, and wait for it no longer than a limit.

    Args:
        work: may take for ever.
        limit_s: seconds without progress after which it is given up.
        progress: a number that changes when something that the work may wait for gets on.

    Returns:
        whether it came back, and what it returned. What it raises is raised here.
    """
    call = _Call(work)
    try:
        worker = _idle.pop()
    except IndexError:
        try:
            worker = _Worker()
        except RuntimeError:  # there is no memory for a thread: do without
            return True, work()
    worker.begin(call)
    part, waited, seen = min(SLICE_S, limit_s), 0.0, progress()
    while not call.ended.acquire(timeout=part):
        waited += part
        if (now := progress()) != seen:
            waited, seen = 0.0, now
        if waited >= limit_s:
            return False, None
    return True, cast(_T, call.result())


class WatchedSession:
    """A session whose calls are given up when they take far too long: the first of each size.

    The limit follows from what its own calls took so far; EDGECODEC_TIMEOUT sets its least value.

    Args:
        backend: for errors.
        session: what is called; left behind with all its memory when a call hangs.
    """

    def __init__(self, backend: str, session: Session) -> None:
        self._backend, self._session = backend, session
        self._least_s = call_limit()
        self._s_per_value: float | None = None
        self._every = watches_every_call()
        self._answered: set[int] = set()
        self._ended = 0
        self._lock = threading.Lock()
        self._at_work: set[object] = set()
        self._given_up: set[object] = set()

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """See Session.

        Raises:
            BackendError: also when the call does not come back, and as long as it does not.
        """
        if not self._must_watch(inputs):
            return self._session.run(inputs)
        call, values = object(), _values(inputs)
        limit_s = self._limit(values)
        self._at_work.add(call)
        back, outputs = watched(
            lambda: self._timed(call, inputs, values), limit_s, lambda: self._ended
        )
        if not back or outputs is None:
            with self._lock:
                self._given_up |= self._at_work & {call}
            raise BackendError(self._backend, f"did not answer within {limit_s:.3g} s")
        return outputs

    def lend(
        self,
        inputs: Mapping[str, Float32Array],
        use: Callable[[Mapping[str, Float32Array]], _T],
    ) -> _T:
        """See LendingSession.

        Results of a call that is watched are copied first: should it be given up, nobody may use
        what it gives later.

        Raises:
            BackendError: as of `run`.
        """
        if self._must_watch(inputs):
            return use(self.run(inputs))
        return lend(self._session, inputs, use)

    def _must_watch(self, inputs: Mapping[str, Float32Array]) -> bool:
        if self._least_s is None:
            return False
        if self._given_up:
            raise BackendError(self._backend, "an earlier call has not come back")
        return self._every or _values(inputs) not in self._answered

    def close(self) -> None:
        """See Session; one that hangs is left alone, as closing it might wait for ever."""
        if not self._given_up:
            self._session.close()

    def _limit(self, values: int) -> float:
        s_per_value = self._s_per_value
        if s_per_value is None:
            s_per_value = FIRST_S_PER_MEGAVALUE / 1e6
        return (self._least_s or 0.0) + PATIENCE * s_per_value * values

    def _timed(
        self, call: object, inputs: Mapping[str, Float32Array], values: int
    ) -> dict[str, Float32Array]:
        begun = time.perf_counter()
        try:
            outputs = self._session.run(inputs)
        finally:
            with self._lock:
                self._ended += 1
                self._at_work.discard(call)
                self._given_up.discard(call)
        self._s_per_value = max(self._s_per_value or 0.0, (time.perf_counter() - begun) / values)
        self._answered.add(values)
        return outputs


def _values(inputs: Mapping[str, Float32Array]) -> int:
    return max(1, sum(value.size for value in inputs.values()))


def load_watched(backend: str, load: Callable[[], Session]) -> Session:
    """Load a session that is watched, giving up when that takes far too long.

    Args:
        backend: for errors.
        load: may take for ever.

    Raises:
        BackendError: it does not come back.
    """
    least_s = call_limit()
    if least_s is None:
        return load()
    limit_s = LOAD_FACTOR * least_s
    back, session = watched(load, limit_s)
    if not back or session is None:
        raise BackendError(backend, f"did not load within {limit_s:.3g} s")
    return WatchedSession(backend, session)
