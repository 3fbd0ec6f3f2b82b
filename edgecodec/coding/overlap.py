"""Two steps of work on a row of items, one of them in a thread beside the other.

Networks and the entropy coder leave the interpreter's lock while they work, so that the one can
go on with a tile while the other is at the one before or after it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

_Item = TypeVar("_Item")
_Half = TypeVar("_Half")
_Result = TypeVar("_Result")

_WAITING = 2
"""Items between the steps: each holds what a network made of a tile."""


def in_two_steps(
    first: Callable[[_Item], _Half], second: Callable[[_Half], _Result], items: Sequence[_Item]
) -> list[_Result]:
    """Return `second(first(item))` of each item; `second` has a thread of its own.

    A single item needs none. What either step raises is raised here, and nothing is begun after it.
    """
    if len(items) < 2:
        return [second(first(item)) for item in items]
    results: list[_Result] = []
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(1, "edgecodec-second-step")
    try:
        pool.submit(int)  # begins the thread
    except RuntimeError:  # there is no memory for one
        return [second(first(item)) for item in items]
    try:
        for item in items:
            if len(waiting) == _WAITING:
                results.append(waiting.popleft().result())
            waiting.append(pool.submit(second, first(item)))
        results.extend(future.result() for future in waiting)
    finally:
        pool.shutdown(cancel_futures=True)
    return results


class Ahead:
    """Work on the items 0, 1, ... in a thread, which goes ahead of those who wait for one.

    Who has to wait takes part: two items are then at work at once. Use as a context; on leaving it,
    the items at work are finished and no other begun.

    Args:
        work: called once with the number of each item, begun in order.
        count: how many there are; a single one is done by who waits for it.
    """

    def __init__(self, work: Callable[[int], None], count: int) -> None:
        self._work, self._count = work, count
        self._next, self._done, self._at_work, self._stopped = 0, 0, 0, False
        self._finished: set[int] = set()  # beyond the first `_done`
        self._errors: dict[int, BaseException] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Ahead:
        if self._count > 1:
            thread = threading.Thread(
                target=self._run, args=(self._count,), name="edgecodec-ahead", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # no memory for one: do without
                thread.start()
                self._thread = thread
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped = True
        if self._thread is not None:
            self._thread.join()

    def wait_for(self, number: int) -> None:
        """Return when an item and all before it are done.

        Raises what the work on one of them raised, on the first of several.
        """
        self._run(number + 1)
        with self._changed:
            self._changed.wait_for(
                lambda: self._done > number or (self._errors and not self._at_work)
            )
            if self._done <= number:
                raise self._errors[min(self._errors)]

    def _run(self, end: int) -> None:
        """Work on items below a number as long as there are some that nobody has begun."""
        while True:
            with self._changed:
                number = self._next
                if self._stopped or self._errors or number >= end:
                    return
                self._next += 1
                self._at_work += 1
            error: BaseException | None = None
            try:
                self._work(number)
            except BaseException as exc:  # whatever it is, it belongs to whoever waits
                error = exc
            with self._changed:
                self._at_work -= 1
                self._note(number, error)
                self._changed.notify_all()

    def _note(self, number: int, error: BaseException | None) -> None:
        if error is not None:
            self._errors[number] = error
            return
        self._finished.add(number)
        while self._done in self._finished:
            self._finished.remove(self._done)
            self._done += 1
