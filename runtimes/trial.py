"""Trial of a candidate in a process of its own, where a crash or a hang harms nobody.

    python -m edgecodec.runtimes.trial '{"bundle": ..., "stage": ..., "backend": ..., ...}'

The child loads the artefact, computes the golden vector, and runs once at the size in question.
Its exit code is 0 where all went well, 1 with the reason as the last line of its output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from edgecodec.bundle import Bundle
from edgecodec.errors import BackendError, EdgeCodecError
from edgecodec.runtimes.base import Availability
from edgecodec.runtimes.candidates import Candidate, find_candidates, prove
from edgecodec.runtimes.environment import risky_backends
from edgecodec.runtimes.golden import Golden
from edgecodec.runtimes.registry import BUILTIN, plugin_specs
from edgecodec.runtimes.vendor import one_line
from edgecodec.runtimes.verdict_store import is_marked, trial_name, unmark

LIMIT_S = 30.0
"""Seconds a trial may take: Python, the runtime, loading, and two inferences."""

REASON_LIMIT = 4096


def is_risky(bundle: Bundle, candidate: Candidate, found: Availability) -> bool:
    """Say whether a candidate should not run in this process before it did so in another.

    That is one of another package, one that runs on something else than the CPU, one that
    EDGECODEC_RISKY names, and one that a process died of.
    """
    return (
        plugin_specs()[candidate.name] not in BUILTIN
        or found.accelerator != "cpu"
        or candidate.name in risky_backends()
        or is_marked(trial_name(bundle, candidate.stage, *candidate.artefact))
    )


def try_in_child(bundle: Bundle, candidate: Candidate, size: tuple[int, int]) -> None:
    """Try a candidate in a process of its own.

    Args:
        bundle: where its artefact is.
        candidate: not loaded.
        size: height and width in pixels to run once at.

    Raises:
        BackendError: it crashed, did not end in time, or answered wrongly.
    """
    if not sys.executable:
        raise BackendError(candidate.name, "is to be tried in another process; none can start here")
    job = {
        "bundle": str(bundle.path.resolve()),
        "stage": candidate.stage,
        "backend": candidate.name,
        "precision": candidate.entry.precision,
        "threads": candidate.threads,
        "size": size,
    }
    problem = _run_child(json.dumps(job))
    if problem:
        raise BackendError(candidate.name, problem)
    unmark(trial_name(bundle, candidate.stage, *candidate.artefact))


def _run_child(job: str) -> str:
    """Return what is wrong, empty when nothing is."""
    # -P: the current folder is no place to import from, unless it is one in this process.
    command = [sys.executable, "-P", "-m", "edgecodec.runtimes.trial", job]
    folders = [folder or str(Path.cwd()) for folder in sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    # A file rather than a pipe: something the child started might keep a pipe open for ever.
    with tempfile.TemporaryFile() as output:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=LIMIT_S,
                check=False,
                env=environment,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"its trial in another process did not end within {LIMIT_S:g} s"
        except OSError as exc:
            return f"its trial in another process could not be started ({exc})"
        if code == 0:
            return ""
        reason = _last_line(output) if code == 1 else ""
    return reason or f"its trial in another process crashed ({_describe(code)})"


def _last_line(output: IO[bytes]) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - REASON_LIMIT))
    lines = output.read().decode("utf-8", "replace").split("\n")
    said = [line.removeprefix(_SAID) for line in lines if line.startswith(_SAID)]
    return said[-1].strip() if said else ""


_SAID = "edgecodec trial: "


def _describe(code: int) -> str:
    if code < 0:
        return f"signal {-code}"
    return f"exit code {code:#x}" if code > 255 else f"exit code {code}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one trial and return the exit code."""
    job = json.loads((sys.argv[1:] if argv is None else argv)[0])
    try:
        with Bundle(job["bundle"]) as bundle:
            (candidate,) = find_candidates(
                bundle, job["stage"], job["backend"], job["precision"], job["threads"]
            )
            golden = Golden(bundle)
            session = prove(candidate, bundle, golden)
            session.run(golden.workload(candidate.stage, tuple(job["size"])))
            candidate.close()
    except EdgeCodecError as exc:
        return _say(str(exc).removeprefix(f"{job['backend']}: "))
    except Exception as exc:  # whatever the backend raises is what is to be told
        return _say(one_line(exc))
    return 0


def _say(problem: str) -> int:
    sys.stdout.write(f"\n{_SAID}{' '.join(problem.split())}\n")
    sys.stdout.flush()
    return 1


if __name__ == "__main__":
    sys.exit(main())
