"""Temporary folders that vanish with their owner, at the end of the process, or after its death.

A process that is killed cannot clean up. So each folder holds a file that its process keeps locked,
and the next process removes those whose lock is free. Where there are no such locks (Windows), the
system's own cleaning has to do.

That cleaning may also come too early, when a process has run for days. systemd-tmpfiles passes by a
folder that is locked itself, so ours are; of others `is_there` tells.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import weakref
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PREFIX = "edgecodec-"
_LOCK = "lock"


class Scratch:
    """A private temporary folder.

    Attributes:
        path: of the folder.

    Raises:
        OSError: none can be made.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._made = self.path.stat()
        held = (_hold(self.path), _hold_folder(self.path))
        self._remove = weakref.finalize(self, _remove, self.path, self._made, held, os.getpid())
        remove_abandoned(self.path.parent)

    def is_there(self) -> bool:
        """Say whether the folder is the one that was made: another may have its name by now."""
        return _is_there(self.path, self._made)

    def remove(self) -> None:
        """Remove the folder and what is in it; once is enough."""
        self._remove()


def _hold(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; None where that cannot be."""
    if sys.platform == "win32":
        return None
    handle = None
    try:
        handle = os.open(folder / f"{_LOCK}.new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Only now under the name that others look for: they never meet one that is not locked yet.
        (folder / f"{_LOCK}.new").rename(folder / _LOCK)
    except OSError:  # a file system without locks
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _hold_folder(folder: Path) -> int | None:
    """Lock a folder itself, so that systemd-tmpfiles leaves it alone."""
    if sys.platform == "win32":
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pass
    return handle


def _is_there(folder: Path, made: os.stat_result) -> bool:
    try:
        return os.path.samestat(folder.lstat(), made)
    except OSError:
        return False


def _remove(folder: Path, made: os.stat_result, held: tuple[int | None, ...], owner: int) -> None:
    if os.getpid() != owner:  # a fork has no right to its parent's folder
        return
    if _is_there(folder, made):
        shutil.rmtree(folder, ignore_errors=True)
    for handle in held:
        if handle is not None:
            os.close(handle)


def remove_abandoned(parent: Path) -> None:
    """Remove folders of this user's processes that ended without doing so."""
    if sys.platform == "win32":
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
