"""What runs on the far side of `edgecodec device-test --host`: the standard library alone.

It is sent as text, with a tar file behind it on standard input, and started by whatever Python 3.11
or later is there. It makes the environment where there is none, runs the test in it, and writes
the report behind a line that begins with REPORT. Standard error is for progress.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

REPORT, ERROR = "edgecodec-report", "edgecodec-error"
KEPT = 2  # environments
DAY_S = 86400.0


class Failure(Exception):
    """Something that the user can do something about; one line."""


def main(home: str) -> int:
    """Take the job from standard input, do it, and answer on standard output."""
    try:
        base = Path(home).expanduser()
        base.mkdir(parents=True, exist_ok=True)
        _clean(base)
        work = Path(tempfile.mkdtemp(prefix="run-", dir=base))
        try:
            with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
                # Python 3.11.0 to 3.11.3 have no filters; we packed it ourselves.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(work)
            job = json.loads((work / "job.json").read_text(encoding="utf-8"))
            python = _environment(base, work, job)
            return _test(base, python, work, job)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except Failure as exc:
        _error(str(exc))
    except tarfile.TarError as exc:
        _error(f"what was sent did not arrive whole ({exc}); try again")
    except OSError as exc:
        what = f"{exc.filename or home}: {exc.strerror or exc}"
        _error(f"{what}; it must be a folder that can be written, with room: --remote-dir DIR")
    return 1


def _error(line: str) -> None:
    print(f"\n{ERROR} {' '.join(line.split())}", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _clean(base: Path) -> None:
    """Remove what runs left that were killed."""
    for path in base.glob("run-*"):
        if time.time() - path.stat().st_mtime > DAY_S:
            shutil.rmtree(path, ignore_errors=True)


def _environment(base: Path, work: Path, job: dict[str, object]) -> Path:
    """Return the Python of the environment for this job, made where it is not there yet."""
    import fcntl  # not on Windows, from where this may be sent

    place = base / f"env-{job['key']}"
    python, done = place / "bin" / "python", place / "complete"
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two tests at once make one environment
        if not (done.is_file() and _starts(python)):
            done.unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            _say("making an environment")
            _run([sys.executable, "-m", "venv", str(place)], "no virtual environment can be made")
            _say("installing")
            _install(python, work, job)
            _compile_core(python)
            done.touch()
        else:
            _say("the environment is there already")
        os.utime(done)
        known = sorted(base.glob("env-*/complete"), key=lambda path: path.stat().st_mtime)
        for old in known[:-KEPT]:
            shutil.rmtree(old.parent, ignore_errors=True)
    return python


def _starts(python: Path) -> bool:
    """Say whether an environment still works: the Python it was made of may have gone since."""
    command = [str(python), "-c", "import edgecodec.cli"]
    try:
        return (
            subprocess.run(command, env=_variables(), capture_output=True, check=False).returncode
            == 0
        )
    except OSError:
        return False


def _variables() -> dict[str, str]:
    """Return the environment variables without those that lead Python out of its environment."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def _install(python: Path, work: Path, job: dict[str, object]) -> None:
    wheel = next(work.glob("edgecodec-*.whl"), None)
    if wheel is None:
        raise Failure("the environment broke since it was looked at; try again")
    what = f"edgecodec{job['extras']} @ {wheel.as_uri()}"
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    wheels = work / "wheels"
    hint = "give the board an index, or send wheels along: --wheels DIR"
    if wheels.is_dir():
        command += ["--no-index", "--find-links", str(wheels)]
        hint = "--wheels must hold wheels for the board's Python and processor"
    _run([*command, what], f"pip failed; {hint}")


def _compile_core(python: Path) -> None:
    """Compile the C core where none came along that loads, its source did, and a compiler is here.

    What was sent may not load: this machine's C library is older, or its Python of fewer bits.
    """
    code = (
        "import sysconfig, edgecodec.core as c\n"
        "print(c.__path__[0]); print(sysconfig.get_path('include'))"
    )
    result = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, env=_variables(), check=False
    )
    if result.returncode:
        raise Failure(f"the installed edgecodec does not start: {_last(result.stderr)}")
    core, include = map(Path, result.stdout.split("\n")[:2])
    sources = [core / f"{name}.c" for name in ("binding", "share", "edgecodec_core")]
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    load = [str(python), "-c", "import edgecodec.core._binding"]
    if subprocess.run(load, capture_output=True, env=_variables(), check=False).returncode == 0:
        return
    for sent in core.glob("_binding*.so"):
        sent.unlink()
    if not compiler or not all(path.is_file() for path in sources):
        return
    if not (include / "Python.h").is_file():
        return
    _say("compiling the C core")
    flags = ["-std=c99", "-O3", "-fno-trapping-math", "-fno-math-errno", "-ffp-contract=off"]
    command = [compiler, "-shared", "-fPIC", *flags, f"-I{include}"]
    made = core / "_binding.abi3.so"
    subprocess.run(
        [*command, *map(str, sources), "-o", str(made)], capture_output=True, check=False
    )


def _run(command: list[str], failed: str) -> None:
    """Run a step of the installation; its last line says what was wrong."""
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_variables(),
        check=False,
    )
    if result.returncode:
        raise Failure(f"{failed} ({_last(result.stdout)})")


def _last(text: str) -> str:
    """Return the line of an output that says most: the first error, or the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1])


def _ended(code: int) -> str:
    """Return how a process ended, in words: out of memory and a wrong instruction are signals."""
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _test(base: Path, python: Path, work: Path, job: dict[str, object]) -> int:
    """Run the test, and answer with its report."""
    report = work / "report.json"
    arguments = job["arguments"]
    assert isinstance(arguments, list)
    command = [str(python), "-m", "edgecodec", "device-test", "--json", str(report), *arguments]
    # What runtimes were measured to be is remembered in the same folder; nothing else is touched.
    environment = {**_variables(), "XDG_CACHE_HOME": str(base / "cache")}
    _say("testing")
    run = subprocess.run(command, stdin=subprocess.DEVNULL, cwd=work, env=environment, check=False)
    if not report.is_file():
        raise Failure(f"edgecodec device-test {_ended(run.returncode)} and left no report")
    data = report.read_bytes()
    out = sys.stdout.buffer
    out.write(f"\n{REPORT} {len(data)} {hashlib.sha256(data).hexdigest()}\n".encode() + data)
    out.flush()
    return run.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
