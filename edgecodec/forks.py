"""What a forked process inherits and cannot use: sessions of runtimes, and locks of other threads.

A fork has its parent's memory but only the one thread that forked. A runtime's session waits for
its worker threads when it is destroyed, which then is for ever, at the end of the process as well;
and a lock that another thread held is never released. So what is told of a fork lets go of the one
without destroying it, and makes the other anew.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something that a fork cannot use as it is."""

    def after_fork(self) -> None:
        """Become usable in a process that was forked; called there, before anything else."""
        ...


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def tell_of_fork(thing: Inherited) -> None:
    """Call `after_fork` of a thing in every process that is forked while the thing is there."""
    _inherited.add(thing)


def keep_for_ever(thing: object) -> None:
    """See to it that a thing is never destroyed, at the end of the process neither."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork() -> None:
    for thing in list(_inherited):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
