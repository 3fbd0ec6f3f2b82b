"""A call that never returns is given up, and everything else is as without the watch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.errors import BackendError, ConfigError
from edgecodec.runtimes import environment
from edgecodec.runtimes.selection import watched
from edgecodec.runtimes.selection.watched import WatchedSession, load_watched

Arrays = dict[str, npt.NDArray[np.float32]]
X = {"x": np.zeros((1, 2, 2, 3), np.float32)}


class Fake:
    """A session that does as it is told."""

    def __init__(self, work: Callable[[], object] = int) -> None:
        self.work = work
        self.closed = False
        self.threads: list[int] = []

    def run(self, inputs: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
        self.threads.append(threading.get_ident())
        self.work()
        return dict(inputs)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """Something to wait for, which comes with the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECODEC_TIMEOUT", "0.1")
    monkeypatch.setattr(watched, "SLICE_S", 0.02)


def test_results_and_errors_are_those_of_the_session() -> None:
    session = WatchedSession("mine", Fake())
    assert session.run(X)["x"] is X["x"]
    error = ValueError("odd")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="odd") as caught:
        WatchedSession("mine", Fake(fail)).run(X)
    assert caught.value is error


class Lending(Fake):
    """One that can show its results."""

    lent = 0

    def lend(
        self,
        inputs: Mapping[str, npt.NDArray[np.float32]],
        use: Callable[[Mapping[str, npt.NDArray[np.float32]]], object],
    ) -> object:
        self.lent += 1
        self.work()
        return use(inputs)


def test_results_are_lent_once_a_size_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECODEC_TIMEOUT")
    fake = Lending()
    session = WatchedSession("mine", fake)
    larger = {"x": np.zeros((1, 4, 4, 3), np.float32)}
    for inputs, lent in ((X, 0), (X, 1), (larger, 1), (larger, 2), (X, 3)):
        assert session.lend(inputs, lambda outputs: outputs["x"].shape) == inputs["x"].shape
        assert fake.lent == lent
    assert len(fake.threads) == 2


def test_use_of_a_call_that_is_given_up_is_never_called(hang: threading.Event) -> None:
    session = WatchedSession("mine", Lending(hang.wait))
    used: list[object] = []
    with pytest.raises(BackendError, match="did not answer"):
        session.lend(X, used.append)
    hang.set()
    time.sleep(0.1)
    assert not used


def test_calls_that_do_not_overlap_are_done_by_one_thread() -> None:
    fake = Fake()
    session = WatchedSession("mine", fake)
    for _ in range(20):
        session.run(X)
    assert len(set(fake.threads)) == 1
    assert threading.get_ident() not in fake.threads


def test_call_that_hangs_is_given_up_and_its_session_left_alone(hang: threading.Event) -> None:
    fake = Fake(hang.wait)
    session = WatchedSession("mine", fake)
    begun = time.perf_counter()
    with pytest.raises(BackendError, match=r"^mine: did not answer within 0\.1"):
        session.run(X)
    assert time.perf_counter() - begun < 5
    with pytest.raises(BackendError, match="mine: an earlier call has not come back"):
        session.run(X)
    session.close()
    assert not fake.closed
    hang.set()
    for _ in range(500):  # it can be used again once the call has come back
        try:
            session.run(X)
            break
        except BackendError:
            time.sleep(0.01)
    session.close()
    assert fake.closed


def test_native_code_that_hangs_is_given_up_and_the_process_can_end() -> None:
    source = (
        "import ctypes\n"
        "from edgecodec.runtimes.selection.watched import watched\n"
        "print(watched(ctypes.CDLL(None).pause, 0.1))\n"
    )
    if os.name != "posix":
        pytest.skip("needs a function that never returns")
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "(False, None)\n"


def test_limit_grows_with_the_input_and_with_what_calls_took() -> None:
    session = WatchedSession("mine", Fake(lambda: time.sleep(0.02)))
    first = session._limit(1_000_000)
    assert first == pytest.approx(0.1 + watched.PATIENCE * watched.FIRST_S_PER_MEGAVALUE)
    session.run(X)  # 20 ms for 12 values
    assert session._limit(12) >= 0.1 + watched.PATIENCE * 0.02
    assert session._limit(24) > session._limit(12)


def test_those_who_wait_in_line_are_not_taken_for_hanging() -> None:
    """Eight calls of 50 ms, one at a time, with a limit of 100 ms."""
    turn = threading.Lock()

    def one_at_a_time() -> None:
        with turn:
            time.sleep(0.05)

    session = WatchedSession("mine", Fake(one_at_a_time))
    session._s_per_value = 0.0
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(session.run, [X] * 8))) == 8


class Stopped:
    """A lock that is released in the second slice of waiting, after a first one of an hour."""

    def __init__(self) -> None:
        self.waits = 0

    def acquire(self, timeout: float = -1) -> bool:
        self.waits += timeout > 0
        return self.waits > 1


def test_a_process_that_was_stopped_has_not_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    call = watched._Call(lambda: 5)
    call.do()
    monkeypatch.setattr(call, "ended", Stopped())
    monkeypatch.setattr(watched, "_Call", lambda work: call)
    monkeypatch.setattr(watched, "_idle", [SimpleNamespace(begin=lambda call: None)])
    assert watched.watched(lambda: 5, 0.03) == (True, 5)


def test_loading_that_hangs_is_given_up(hang: threading.Event) -> None:
    def load() -> Fake:
        hang.wait()
        return Fake()

    with pytest.raises(BackendError, match=r"^mine: did not load within 0\.3 s"):
        load_watched("mine", load)


def test_nothing_is_watched_where_that_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECODEC_TIMEOUT", "0")
    fake = Fake()
    assert load_watched("mine", lambda: fake) is fake
    WatchedSession("mine", fake).run(X)
    assert fake.threads == [threading.get_ident()]


def test_where_no_thread_can_be_begun_calls_are_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(watched, "_idle", [])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    fake = Fake()
    WatchedSession("mine", fake).run(X)
    assert fake.threads == [threading.get_ident()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_workers_of_its_own() -> None:
    WatchedSession("mine", Fake()).run(X)
    child = os.fork()
    if child == 0:
        back, _ = watched.watched(lambda: 1, 5.0)
        os._exit(0 if back else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_odd_limits_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("EDGECODEC_TIMEOUT", text)
    with pytest.raises(ConfigError, match="EDGECODEC_TIMEOUT must be a number of seconds"):
        environment.call_limit()
