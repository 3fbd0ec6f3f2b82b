"""Trial of candidates in a process of their own, where a crash or a hang harms nobody.

    python -m edgecodec.runtimes.selection.trial '[{"bundle": ..., "stage": ..., ...}]'

The child loads each artefact, computes the golden vector, and runs once at the size in question. It
says what is wrong with each as soon as it knows, so that where it dies is known as well.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import (
    BackendError,
    BackendUnavailableError,
    EdgeCodecError,
    ScratchError,
)
from edgecodec.runtimes.base import RunSettings
from edgecodec.runtimes.child_process import can_start, start_python
from edgecodec.runtimes.environment import disabled_backends, trusted_backends
from edgecodec.runtimes.registry import BUILTIN
from edgecodec.runtimes.selection.candidates import Candidate, find_candidates, prove
from edgecodec.runtimes.selection.golden import Golden
from edgecodec.runtimes.selection.store import Store
from edgecodec.runtimes.selection.transient import is_transient, no_threads, transient_words
from edgecodec.runtimes.vendor import BROKEN, one_line

LIMIT_S = 30.0
"""Seconds a trial may take: Python, the runtime, loading, and two inferences."""

GRACE_S = 5.0
"""How much later a child ends itself: the process that would have ended it may have been killed."""

POLL_S = 0.02

REASON_LIMIT = 1 << 16


def needs_trial(bundle: Bundle, candidate: Candidate, store: Store) -> bool:
    """Say whether a candidate should not run in this process before it did so in another.

    That is one that a process died of; one of ours that never ran on this machine, with these
    packages and this bundle; and one of another package whenever it is measured. EDGECODEC_TRUST
    exempts all but the first.
    """
    if candidate.error is not None or not candidate.is_installed:
        return False
    if candidate.name in disabled_backends():
        return False
    name = store.trial_name(bundle, candidate.stage, candidate.settings)
    if store.is_marked(name):
        return True
    if candidate.name in trusted_backends():
        return False
    return not is_ours(candidate) or not store.has_passed(name)


def is_ours(candidate: Candidate) -> bool:
    """Say whether a backend is part of this package."""
    return candidate.name in {spec.name for spec in BUILTIN}


def try_elsewhere(
    bundle: Bundle, candidates: Sequence[Candidate], size: tuple[int, int], store: Store
) -> None:
    """Try candidates in a process of their own; reject those that do not pass.

    Where no such process can be had, as in a program that brings its own interpreter, those of ours
    stay that nothing is known against.

    Args:
        bundle: where their artefacts are.
        candidates: not loaded.
        size: height and width in pixels to run once at.
        store: where it is noted that they passed.

    Raises:
        ScratchError: there is no room for their files.
    """
    left = list(candidates)
    while left:
        told, ending, begun = _run_child([_job(bundle, candidate, size) for candidate in left])
        if not begun:
            _reject_untried(bundle, left, ending, store)
            return
        for candidate, problem in zip(left, told, strict=False):
            _check_room(problem)
            if problem:
                candidate.reject(_error(candidate, problem))
            # What says in good order that it cannot be used here may say it in this process.
            if not problem or problem.startswith(_NOT_HERE):
                name = store.trial_name(bundle, candidate.stage, candidate.settings)
                store.unmark(name)
                store.note_passed(name)
        left = left[len(told) :]
        if left:
            culprit = left.pop(0)
            culprit.reject(BackendError(culprit.name, ending))


def _reject_untried(
    bundle: Bundle, candidates: Sequence[Candidate], ending: str, store: Store
) -> None:
    for candidate in candidates:
        name = store.trial_name(bundle, candidate.stage, candidate.settings)
        if store.is_marked(name) or not is_ours(candidate):
            candidate.reject(BackendError(candidate.name, ending))


def _check_room(problem: str) -> None:
    """Tell what a trial lacked apart from what is wrong with a candidate.

    Raises:
        ScratchError: it was room for temporary files.
    """
    if problem.startswith(_NO_ROOM):
        raise ScratchError(problem.removeprefix(_NO_ROOM))


def _error(candidate: Candidate, problem: str) -> BackendError:
    """Return what a trial said is wrong: a fault, or that something is not here."""
    if problem.startswith(_NOT_HERE):
        return BackendUnavailableError(candidate.name, problem.removeprefix(_NOT_HERE))
    return BackendError(candidate.name, problem)


def _job(bundle: Bundle, candidate: Candidate, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "bundle": str(bundle.path.resolve()),
        "stage": candidate.stage,
        "settings": asdict(candidate.settings),
        "size": size,
    }


def _run_child(jobs: list[dict[str, Any]]) -> tuple[list[str], str, bool]:
    """Run trials.

    Returns:
        what is wrong with each job, empty when nothing is, as far as it got; how it ended before
        it had done them all; whether it was a process of ours that ran at all.
    """
    if not can_start():
        return [], "is to be tried in another process; none can start here", False
    # Files rather than pipes: something the child started might keep a pipe open for ever.
    try:
        file, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    except OSError as exc:
        raise ScratchError(
            f"no temporary file can be made ({exc.strerror or exc}); "
            "let TMPDIR name a folder that can be written"
        ) from exc
    with file as output, errors:
        try:
            child = start_python(
                "-m",
                "edgecodec.runtimes.selection.trial",
                json.dumps(jobs),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        except OSError as exc:
            return [], f"its trial in another process could not be started ({exc})", False
        with child:
            code = _wait_for(child, output)
        said, lacked = _said(output), transient_words(_tail(errors))
    if code is None:
        ending = f"its trial in another process did not end within {LIMIT_S:g} s"
    else:
        ending = f"its trial in another process crashed ({_describe(code)})"
    return said[1:], f"{ending}: {lacked}" if lacked else ending, bool(said)


def _wait_for(child: subprocess.Popen[bytes], output: IO[bytes]) -> int | None:
    """Return the exit code; None where it said nothing for too long, and was ended."""
    size, since = 0, time.monotonic()
    try:
        while (code := child.poll()) is None:
            if (now := os.fstat(output.fileno()).st_size) != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > LIMIT_S:
                return None
            time.sleep(POLL_S)
        return code
    finally:
        child.kill()


def _said(output: IO[bytes]) -> list[str]:
    """Return what the child said of itself and of each job, among what runtimes may print."""
    lines = _tail(output).split("\n")
    return [line.removeprefix(_SAID).strip() for line in lines if line.startswith(_SAID)]


def _tail(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - REASON_LIMIT))
    return file.read().decode("utf-8", "replace")


_SAID = "edgecodec trial: "
_NO_ROOM = "no room: "
_NOT_HERE = "not here: "


def _describe(code: int) -> str:
    if code < 0:
        return f"signal {-code}"
    return f"exit code {code:#x}" if code > 255 else f"exit code {code}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run trials and return the exit code."""
    jobs = json.loads((sys.argv[1:] if argv is None else argv)[0])
    _say("begins")
    with Bundle(jobs[0]["bundle"]) as bundle:
        try:
            for job in jobs:
                # Not a thread of Python's, which would wait with it where native code hangs.
                try:
                    faulthandler.dump_traceback_later(LIMIT_S + GRACE_S, exit=True)
                except RuntimeError:  # it takes a thread
                    _say(no_threads(1))
                    continue
                _say(_problem(bundle, job))
        finally:
            faulthandler.cancel_dump_traceback_later()
    return 0


def _problem(bundle: Bundle, job: dict[str, Any]) -> str:
    """Return what is wrong with a candidate, empty when nothing is."""
    try:
        settings = RunSettings(**job["settings"])
        (candidate,) = find_candidates(bundle, job["stage"], settings)
        golden = Golden.of(bundle)
        session = prove(candidate, bundle, golden, Store())
        session.run(golden.workload(candidate.stage, tuple(job["size"])))
        candidate.close()
    except ScratchError as exc:
        return f"{_NO_ROOM}{exc}"
    except EdgeCodecError as exc:
        told = str(exc).removeprefix(f"{job['settings']['backend']}: ")
        if is_transient(exc) and not transient_words(told):  # all that is told is this text
            return f"{told} (out of memory or threads)"
        # A runtime that is there but broken is a fault; what this device lacks is none.
        lacking = isinstance(exc, BackendUnavailableError) and BROKEN not in told
        return f"{_NOT_HERE}{told}" if lacking else told
    except Exception as exc:  # whatever the backend raises is what is to be told
        return one_line(exc)
    return ""


def _say(text: str) -> None:
    sys.stdout.write(f"\n{_SAID}{' '.join(text.split())}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
