"""`edgecodec device-test` on another machine, over the system's own ssh.

    edgecodec device-test --host user@board

Two connections. The first looks for a Python and for an environment made before; the second sends
what is missing, runs the test, and brings the report (far_side.py). Both are one `ssh` each with
everything through its standard streams, so that keys, ports, jumps and names are those of the
user's own configuration, and no program but sh and Python is needed there.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgecodec.device_tests.remote import far_side
from edgecodec.device_tests.remote.wheel import installed, pack_wheel
from edgecodec.errors import ConfigError, EdgeCodecError
from edgecodec.files import refuse_device

REMOTE_FOLDER = "~/.cache/edgecodec/device-test"
CONNECT_S, SILENT_S = 15, 15
_FOUND = "edgecodec-python"
_INTERPRETERS = ("python3", *(f"python3.{minor}" for minor in range(19, 10, -1)), "python")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Board:
    """The other machine.

    Attributes:
        host: as ssh takes it: a name of its configuration, or user@address.
        ssh: the program with options of its own.
        python: the interpreter there; empty looks for one.
        folder: where environments are kept there.
    """

    host: str
    ssh: tuple[str, ...] = ("ssh",)
    python: str = ""
    folder: str = REMOTE_FOLDER


@dataclass(frozen=True)
class RemoteJob:
    """What to do there.

    Attributes:
        arguments: of `edgecodec device-test`, with `files` by their names in the run's folder.
        files: to send along, by name there.
        extras: of edgecodec, as `openvino`.
        wheels: a folder of wheels that are installed from; None takes the board's own index.
    """

    arguments: tuple[str, ...] = ()
    files: dict[str, Path] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    wheels: Path | None = None


@dataclass(frozen=True)
class _Found:
    """What the first connection found: the Python there, its machine, and an environment."""

    python: str
    version: tuple[int, int]
    system: str
    has_venv: bool
    has_environment: bool


def run_there(target: Board, job: RemoteJob, say: Say, show: Say) -> dict[str, Any]:
    """Run the test on another machine and return its report.

    Args:
        target: that machine.
        job: what to do.
        say: told progress, one line at a time.
        show: told what the test prints, one line at a time.

    Raises:
        ConfigError: an option cannot be.
        EdgeCodecError: there is no ssh, no way there, no Python, no installation, or no report.
    """
    _check(target, job)
    full = pack_wheel(core=True)
    wheels = _wheels(job.wheels)
    extras = f"[{','.join(job.extras)}]" if job.extras else ""
    key = _key(full[1], extras, wheels)
    connection = _Connection(target, say)
    say(f"connecting to {target.host}")
    found = _look(connection, key)
    content: dict[str, bytes] = {}
    if not found.has_environment:
        if not found.has_venv:
            raise EdgeCodecError(
                f"{target.host}: {found.python} has no venv; install it there "
                f"(Debian: apt install python3-venv)"
            )
        name, data = full if found.system == _system() else pack_wheel(core=False)
        content[name] = data
        content.update({f"wheels/{path.name}": path.read_bytes() for path in wheels})
    for name, path in job.files.items():
        content.update(_contents(name, path))
    order = {"key": key, "extras": extras, "arguments": list(job.arguments)}
    content["job.json"] = json.dumps(order).encode()
    sent = _tar(content)
    say(f"{found.python} is Python {'.'.join(map(str, found.version))}; {len(sent) / 1e6:.1f} MB")
    code = Path(far_side.__file__).read_text(encoding="utf-8")
    out = connection.run(_command([found.python, "-c", code, target.folder]), sent, show)
    return _report(target.host, out, connection)


def _check(target: Board, job: RemoteJob) -> None:
    if not target.host or target.host.startswith("-"):
        raise ConfigError(f"--host {target.host}: not a host; give user@board")
    if not target.ssh:
        raise ConfigError("--ssh names no program")
    for path in job.files.values():
        refuse_device(path)
    known = installed().metadata.get_all("Provides-Extra") or []
    for extra in job.extras:
        if extra not in known:
            raise ConfigError(f"--extras {extra}: there are {', '.join(known)}")


def _wheels(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise ConfigError(f"{folder}: no wheels there; fill it: pip download -d {folder} edgecodec")
    return found


def _key(wheel: bytes, extras: str, wheels: Sequence[Path]) -> str:
    """Return what changes with anything that is installed."""
    total = hashlib.sha256(wheel)
    total.update(extras.encode())
    for path in wheels:
        total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def _system() -> str:
    """Return what compiled code depends on."""
    libc = "-".join(platform.libc_ver()[:1])
    return f"{sys.platform} {platform.machine()} {libc}"


def _contents(name: str, path: Path) -> dict[str, bytes]:
    """Return a file, or all files of a folder, by name in what is sent."""
    if path.is_dir():
        inside = (p for p in sorted(path.rglob("*")) if p.is_file())
        return {f"{name}/{p.relative_to(path).as_posix()}": p.read_bytes() for p in inside}
    try:
        return {name: path.read_bytes()}
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror or exc})") from exc


def _tar(content: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _command(words: Sequence[str]) -> str:
    """Return a command line that any login shell hands to sh unchanged."""
    return f"exec sh -c {shlex.quote(f'exec {shlex.join(words)}')}"


class _Connection:
    """One ssh after the other to the same machine, and what the last said on standard error."""

    def __init__(self, target: Board, say: Say) -> None:
        self.target, self.host, self.say = target, target.host, say
        program = shutil.which(target.ssh[0])
        if program is None:
            raise EdgeCodecError(
                f"{target.ssh[0]}: no such program; install an OpenSSH client, or name one: --ssh"
            )
        options = {"ConnectTimeout": str(CONNECT_S), "ServerAliveInterval": str(SILENT_S)}
        if sys.stdin is None or not sys.stdin.isatty():
            options["BatchMode"] = "yes"  # without a terminal a question would hang
        pairs = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        # The user's own options come first: of two, ssh takes the first.
        self._start = [program, *target.ssh[1:], *pairs, "-T", target.host]
        self.errors: list[str] = []
        self.code = 0

    def run(self, command: str, sent: bytes, show: Say) -> bytes:
        """Run a command there; return its standard output from the first line of ours on."""
        self.errors = []
        with subprocess.Popen(
            [*self._start, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            helpers = [
                threading.Thread(target=_feed, args=(process.stdin, sent), daemon=True),
                threading.Thread(target=self._listen, args=(process.stderr,), daemon=True),
            ]
            for helper in helpers:
                helper.start()
            try:
                answer = self._answer(process.stdout, show)
            except BaseException:
                process.kill()  # an interrupted test must not leave ssh behind
                raise
            for helper in helpers:
                helper.join()
            self.code = process.wait()
        if self.code == 255 and not answer:
            raise EdgeCodecError(_reason(self.host, self.errors))
        return answer

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip()
            if text:
                self.errors.append(text)
                self.say(f"{self.host}: {text}")

    def _answer(self, stream: IO[bytes], show: Say) -> bytes:
        marks = tuple(mark.encode() for mark in (far_side.REPORT, far_side.ERROR, _FOUND))
        for line in stream:
            if line.startswith(marks):
                return line + stream.read()
            show(line.decode(errors="replace").rstrip())
        return b""


def _feed(stream: IO[bytes], data: bytes) -> None:
    try:
        stream.write(data)
        stream.close()
    except OSError:  # it went away; why is told on its standard error
        pass


def _reason(host: str, errors: Sequence[str]) -> str:
    """Return what ssh said as one line with what to do."""
    text = " ".join(errors)
    last = errors[-1] if errors else "it ended without a word"
    hints = {
        "Permission denied": "set up a key: ssh-copy-id, or name it: --ssh 'ssh -i KEY'",
        "Host key verification failed": "connect once by hand, and check its key: ssh HOST",
        "Could not resolve": "check the name, or put it into ~/.ssh/config",
        "Connection refused": "check that sshd runs there, and its port: --ssh 'ssh -p PORT'",
        "timed out": "check that it is switched on and can be reached",
        "No route to host": "check that it is switched on and can be reached",
        "Bad configuration": "check the options in --ssh",
    }
    hint = next((hint for said, hint in hints.items() if said in text), f"try: ssh {host} true")
    return f"{host}: ssh failed ({last}); {hint}"


def _look(connection: _Connection, key: str) -> _Found:
    """Find a Python there, and whether the environment is there.

    Raises:
        EdgeCodecError: there is none, or it is too old.
    """
    target_code = (
        "import os,platform,sys\n"
        "try:\n import venv,ensurepip\n v=1\nexcept ImportError:\n v=0\n"
        "p=os.path.join(os.path.expanduser(sys.argv[1]),'env-'+sys.argv[2])\n"
        "e=os.path.isfile(p+'/complete') and os.system(\"'\"+p+\"/bin/python' -c "
        "'import edgecodec.cli' >/dev/null 2>&1 </dev/null\")==0\n"
        "print('\\n" + _FOUND + " %d.%d %d %d %s %s %s\\t%s'%(sys.version_info[0],"
        "sys.version_info[1],v,e,sys.platform,platform.machine(),platform.libc_ver()[0],"
        "sys.executable))"
    )
    target = connection.target
    tries = [target.python] if target.python else list(_INTERPRETERS)
    check = "import sys;sys.exit(sys.version_info<(3,11))"
    words = " ".join(map(shlex.quote, tries))
    run = f'"$p" -c {shlex.quote(target_code)} {shlex.quote(target.folder)} {shlex.quote(key)}'
    script = (
        f'old=; for p in {words}; do command -v "$p" >/dev/null 2>&1 || continue; '
        f'if "$p" -c {shlex.quote(check)} 2>/dev/null; then {run}; exit; fi; '
        f'old=$("$p" -V 2>&1); done; echo; echo "{_FOUND} none $old"'
    )
    out = connection.run(f"exec sh -c {shlex.quote(script)}", b"", lambda line: None)
    line = out.decode(errors="replace").partition("\n")[0]
    host = connection.host
    if match := re.fullmatch(rf"{_FOUND} (\d+)\.(\d+) ([01]) ([01]) ([^\t]*)\t(.*)", line):
        version = (int(match[1]), int(match[2]))
        return _Found(match[6], version, match[5], match[3] == "1", match[4] == "1")
    if line.startswith(f"{_FOUND} none"):
        old = line.removeprefix(f"{_FOUND} none").strip()
        what = f"{old} is too old" if old else f"no Python ({', '.join(tries[:2])}...)"
        raise EdgeCodecError(
            f"{host}: {what}; install Python 3.11 or later there, or name one: --remote-python PROG"
        )
    said = connection.errors[-1] if connection.errors else "it needs sh"
    raise EdgeCodecError(f"{host}: cannot run commands there ({said})")


def _report(host: str, out: bytes, connection: _Connection) -> dict[str, Any]:
    """Return the report in an answer.

    Raises:
        EdgeCodecError: there is none, it is not whole, or what went wrong there.
    """
    head, _, data = out.partition(b"\n")
    kind, _, rest = head.decode(errors="replace").partition(" ")
    if kind == far_side.ERROR:
        own = [line for line in connection.errors if line.startswith("edgecodec: ")]
        why = f" ({own[-1].removeprefix('edgecodec: ')})" if own else ""
        raise EdgeCodecError(f"{host}: {rest.strip()}{why}")
    if kind == far_side.REPORT:
        size, _, digest = rest.partition(" ")
        if len(data) == int(size) and hashlib.sha256(data).hexdigest() == digest.strip():
            report = json.loads(data)
            return {**report, "host": host}
    said = connection.errors[-1] if connection.errors else "no message"
    raise EdgeCodecError(f"{host}: the connection was lost before the report was here ({said})")
