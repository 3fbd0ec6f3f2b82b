"""What a forked process inherits and cannot use: sessions of runtimes, and locks of other threads.

A fork has its parent's memory but only the one thread that forked. A runtime's session waits for
its worker threads when it is destroyed, which then is for ever, at the end of the process as well;
and a lock that another thread held is never released. So what is told of a fork lets go of the one
without destroying it, and makes the other anew.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something that a fork cannot use as it is."""

    def after_fork(self) -> None:
        """Become usable in a process that was forked; called there, before anything else."""
        ...


class Preparing(Inherited, Protocol):
    """Something that has to get ready before a fork."""

    def before_fork(self) -> None:
        """Get ready; called in the process that forks."""
        ...

    def after_fork_in_parent(self) -> None:
        """Go on; called in the process that has forked."""
        ...


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()
_preparing: weakref.WeakSet[Preparing] = weakref.WeakSet()
_prepared = threading.local()  # `things`: those that are told of the end of this thread's fork, too


def tell_of_fork(thing: Inherited) -> None:
    """Call `after_fork` of a thing in every process that is forked while the thing is there."""
    _inherited.add(thing)


def prepare_for_fork(thing: Preparing) -> None:
    """Tell a thing of each fork beforehand, too, and in the process that forked, while it lasts."""
    tell_of_fork(thing)
    _preparing.add(thing)


def keep_for_ever(thing: object) -> None:
    """See to it that a thing is never destroyed, at the end of the process neither."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _before_fork() -> None:
    _prepared.things = list(_preparing)
    for thing in _prepared.things:
        thing.before_fork()


def _after_fork_in_parent() -> None:
    for thing in _prepared.things:
        thing.after_fork_in_parent()
    _prepared.things = []


def _after_fork() -> None:
    for thing in list(_inherited):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork,
    )
