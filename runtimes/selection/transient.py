"""Whether a failure tells of a runtime, or of what this process lacked just then.

What lacked memory, threads or temporary files, or lost its threads by a fork, says nothing against
a backend: such a verdict is not remembered.
"""

from __future__ import annotations

import errno
import re
import threading

from edgecodec.errors import BackendError, ScratchError

_NUMBERS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC)
_WORDS = re.compile(
    "resource temporarily unavailable|cannot allocate memory|allocate memory for requested|"
    "bad_?alloc|bad allocation|out of memory|no memory|std::system_error|start new thread|"
    "thread creation failed|pthread_create|too many open files|no space left|"
    "threads do not survive the fork",
    re.IGNORECASE,
)


def is_transient(exc: BaseException) -> bool:
    """Say whether an error, or one behind it, is of what only this process lacks, and only now."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, MemoryError | ScratchError):
            return True
        if isinstance(seen, OSError) and seen.errno in _NUMBERS:
            return True
        if transient_words(str(seen)):
            return True
        seen = seen.__cause__
    return False


def transient_words(text: str) -> str:
    """Return the line of a text that tells of such a want; empty where none does."""
    return next((line.strip() for line in text.splitlines() if _WORDS.search(line)), "")


def no_threads(count: int) -> str:
    """Return what to tell where a number of threads cannot be started; `is_transient` knows it."""
    return (
        f"cannot start {count} thread{'s' * (count > 1)} (resource temporarily unavailable); "
        "raise the limit of processes (ulimit -u, or pids of a container)"
    )


def check_threads(backend: str, count: int) -> None:
    """See whether a number of threads can be started, by doing so.

    ONNX Runtime waits for ever where it gets some of its threads and not all of them, and others
    end the process.

    Args:
        backend: for the error.
        count: beside the calling thread.

    Raises:
        BackendError: they cannot.
    """
    end = threading.Event()
    started = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, name="edgecodec-check", daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as exc:
        told = f"{no_threads(count)}, or ask for fewer threads"
        raise BackendError(backend, told) from exc
    finally:
        end.set()
        for thread in started:
            thread.join()
