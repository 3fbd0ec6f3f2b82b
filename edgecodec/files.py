"""Files that appear whole or not at all, and `-` for standard input and output."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgecodec.errors import ConfigError

INPUT_LIMIT = 2 << 30
"""Bytes of a file that are read at most: no picture has more, a device may have no end."""

_MOST_LINKS = 40
"""That lead to another, as Linux has it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to fill that becomes `path` when all went well and vanishes otherwise.

    A link stays one: the file it leads to is replaced. A file that is replaced leaves its owner
    and its permissions to the new one. Where only the file can be written and not its folder, or
    it is the root of a mount, what it holds is replaced. What has been opened already, as
    /dev/stdout or /dev/fd/3 stand for, is written on in its place: others write to it, too.

    Raises:
        OSError: the folder is missing, or neither it nor the file can be written.
    """
    descriptor = _descriptor(path)
    path = Path(os.path.realpath(path))
    in_place = descriptor is not None or _only_in_place(path)
    folder = None if in_place else path.parent
    # Not named after it: a name may be as long as the file system allows. With a suffix, because
    # torch names what it saves after what precedes that.
    handle, name = tempfile.mkstemp(dir=folder, prefix=".edgecodec-", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if descriptor is not None:
            with temporary.open("rb") as source, _opened(descriptor) as target:
                shutil.copyfileobj(source, target)
            return
        if folder is None:
            _overwrite(path, temporary)
            return
        _take_over(path, temporary)
        try:
            temporary.replace(path)
        except OSError as exc:
            if exc.errno not in (errno.EBUSY, errno.EXDEV, errno.EPERM) or not path.is_file():
                raise
            _overwrite(path, temporary)  # the root of a mount, or of others in a sticky folder
    finally:
        temporary.unlink(missing_ok=True)


def _descriptor(path: Path) -> int | None:
    """Return the number of what has been opened that a name such as /dev/stdout stands for."""
    name = os.path.abspath(path)  # noqa: PTH100 - `resolve` leads on to the file
    for _ in range(_MOST_LINKS):
        if match := re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", name):
            return int(match[1])
        try:
            name = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(name)))  # noqa: PTH115, PTH118, PTH120
        except (OSError, ValueError):  # no link
            return None
    return None


def _opened(descriptor: int) -> BinaryIO:
    """Return a file that writes to what has been opened, behind all that was written so far."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return os.fdopen(os.dup(descriptor), "wb")


def _only_in_place(path: Path) -> bool:
    """Say whether a file can be written, but no other be put in its place."""
    folder = os.access(path.parent, os.W_OK | os.X_OK)
    return not folder and path.is_file() and os.access(path, os.W_OK)


def _take_over(path: Path, temporary: Path) -> None:
    """Give a file the owner and permissions of that it replaces, or what the umask leaves."""
    with contextlib.suppress(PermissionError, AttributeError):  # file systems that have none
        try:
            old = path.stat()
        except FileNotFoundError:
            mask = os.umask(0)  # mkstemp is private
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            return
        temporary.chmod(stat.S_IMODE(old.st_mode) & 0o777)
        new = temporary.stat()
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.chown(temporary, old.st_uid, old.st_gid)


def _overwrite(path: Path, temporary: Path) -> None:
    """Write what is ready into a file that stays, which keeps its end until all is written."""
    with temporary.open("rb") as source, path.open("r+b") as target:
        shutil.copyfileobj(source, target)
        target.truncate()


def check_folder(path: Path) -> None:
    """Refuse a path whose folder does not exist, or takes no new file.

    Raises:
        ConfigError: it does not, or takes none.
    """
    if _descriptor(path) is not None:
        return
    path = _through_link(path)
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder")
    writable = os.access(path.parent, os.W_OK | os.X_OK) or _only_in_place(path)
    if not _is_device(path) and not writable:
        raise ConfigError(f"{path}: the folder {path.parent} cannot be written; choose another")


def _through_link(path: Path) -> Path:
    """Return the file that a link leads to, which is replaced in its stead."""
    return path.resolve() if path.is_symlink() and path.is_file() else path


def _is_device(path: Path) -> bool:
    """Say whether there is nothing to replace: it is a device or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


def refuse_device(path: Path) -> None:
    """Refuse to read from a device, which may have no end. Files and pipes have one.

    Raises:
        ConfigError: it is one. What is not there is for whoever opens it to tell.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise ConfigError(f"{path}: is a device, not a file; give the name of a file")


def read_input(name: str) -> bytes:
    """Read a file or a pipe, or standard input for `-`.

    Raises:
        ConfigError: it cannot be read, is a device, or is larger than any picture.
    """
    if name == "-" and sys.stdin is None:
        raise ConfigError("standard input is closed")
    if name != "-":
        refuse_device(Path(name))
    try:
        if name == "-":
            data = sys.stdin.buffer.read(INPUT_LIMIT + 1)
        else:
            with Path(name).open("rb") as file:
                # Asked first: a sparse file costs its maker nothing.
                small = os.fstat(file.fileno()).st_size <= INPUT_LIMIT
                data = file.read(INPUT_LIMIT + 1) if small else b""
                if not small:
                    raise OSError(errno.EFBIG, "larger than any picture")
    except OSError as exc:
        raise ConfigError(f"{name}: cannot be read ({exc.strerror or exc})") from exc
    if len(data) > INPUT_LIMIT:
        raise ConfigError(f"{name}: cannot be read (larger than any picture)")
    return data


def write_output(name: str, data: bytes) -> None:
    """Write a file whole or not at all; `-` is standard output.

    What a link leads to is replaced, not the link.

    Raises:
        ConfigError: it cannot be written.
    """
    if name == "-" and sys.stdout is None:
        raise ConfigError("standard output is closed")
    path = Path(name)
    try:
        if name == "-":
            _write_all(sys.stdout.buffer, data)
            return
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if _descriptor(path) is None and _is_device(path):
            path.write_bytes(data)
            return
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except BrokenPipeError:
        raise  # the reader of a pipe has gone
    except OSError as exc:
        raise ConfigError(f"{name}: cannot be written ({exc.strerror or exc})") from exc


def _write_all(out: BinaryIO, data: bytes) -> None:
    """Write all of it: an unbuffered standard output (`python -u`) may take less at a time."""
    rest = memoryview(data)
    while rest:
        taken = out.write(rest)
        if taken is None:
            raise BlockingIOError(errno.EAGAIN, "the output does not wait for its reader")
        rest = rest[taken:]
    out.flush()
