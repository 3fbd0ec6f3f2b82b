"""What a test over ssh says where something is missing, with a program in the place of ssh."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecodec.device_tests.remote import far_side, remote
from edgecodec.device_tests.remote.remote import Board, RemoteJob, run_there
from edgecodec.errors import ConfigError, EdgeCodecError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs sh")


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def local(tmp_path: Path) -> str:
    """Takes the place of ssh: runs the last of its arguments here, notes the others."""
    return program(
        tmp_path / "ssh",
        f'for last; do echo "$last" >>{tmp_path}/arguments; done; exec sh -c "$last"',
    )


@pytest.fixture(autouse=True)
def small_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "pack_wheel", lambda core: ("edgecodec-1-py3-none-any.whl", b"x"))


def said(target: Board, job: RemoteJob | None = None) -> str:
    with pytest.raises(EdgeCodecError) as caught:
        run_there(target, job or RemoteJob(), lambda line: None, lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fake_environment(folder: Path, test: str) -> None:
    """Put an environment where the job looks for it; `test` is run in the place of the test."""
    place = folder / f"env-{remote._key(b'x', '', [])}"
    (place / "bin").mkdir(parents=True)
    (place / "complete").touch()
    program(place / "bin" / "python", f'[ "$1" = -c ] && exit 0\n{test}')


PASSED = json.dumps({"passed": True})


def test_takes_the_report_and_shows_what_is_said(local: str, tmp_path: Path) -> None:
    fake_environment(
        tmp_path / "there",
        f'echo table "$@"; echo progress >&2; cat images/a.png; echo {shlex.quote(PASSED)} >"$5"',
    )
    photo = tmp_path / "it's a photo.png"
    photo.write_text("pixels\n")
    shown: list[str] = []
    told: list[str] = []
    target = Board("me@board", (local, "-p", "22"), sys.executable, str(tmp_path / "there"))
    job = RemoteJob(("images/a.png",), {"images/a.png": photo})
    assert run_there(target, job, told.append, shown.append) == {"passed": True, "host": "me@board"}
    assert "me@board: progress" in told
    assert "pixels" in shown
    assert any(line.startswith("table -m edgecodec device-test --json") for line in shown)
    assert [p.name for p in (tmp_path / "there").glob("run-*")] == []
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:2] == ["-p", "22"]  # the user's come before ours
    assert "BatchMode=yes" in arguments


def test_test_without_a_report(local: str, tmp_path: Path) -> None:
    fake_environment(tmp_path / "there", "exit 7")
    target = Board("board", (local,), sys.executable, str(tmp_path / "there"))
    assert "ended with 7 and left no report" in said(target)


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("echo 'edgecodec: no such bundle' >&2; exit 1", "left no report (no such bundle)"),
        ("kill -KILL $$", "was ended by SIGKILL and left no report"),
    ],
)
def test_why_there_is_no_report(local: str, tmp_path: Path, test: str, why: str) -> None:
    fake_environment(tmp_path / "there", test)
    target = Board("board", (local,), sys.executable, str(tmp_path / "there"))
    assert why in said(target)


def test_folder_that_cannot_be_made(local: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = said(Board("board", (local,), sys.executable, str(tmp_path / "file" / "there")))
    assert "file/there" in line
    assert "--remote-dir" in line


def test_connection_lost_halfway(local: str, tmp_path: Path) -> None:
    long = json.dumps({"passed": True, "samples": [0.1] * 1000})
    fake_environment(tmp_path / "there", f'echo {shlex.quote(long)} >"$5"')
    cut = program(tmp_path / "cut", f'{local} "$@" | head -c 1000')
    target = Board("board", (cut,), sys.executable, str(tmp_path / "there"))
    assert "the connection was lost before the report was here" in said(target)


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("me@board: Permission denied (publickey).", "ssh-copy-id"),
        ("Host key verification failed.", "check its key"),
        ("ssh: Could not resolve hostname board: Name or service not known", "~/.ssh/config"),
        ("ssh: connect to host board port 22: Connection refused", "-p PORT"),
        ("ssh: connect to host board port 22: Connection timed out", "switched on"),
        ("something else", "try: ssh board true"),
    ],
)
def test_every_failure_of_ssh_says_what_to_do(tmp_path: Path, message: str, hint: str) -> None:
    failing = program(tmp_path / "ssh", f"echo {shlex.quote(message)} >&2; exit 255")
    line = said(Board("board", (failing,)))
    assert message in line
    assert hint in line


def test_no_ssh() -> None:
    assert "install an OpenSSH client" in said(Board("board", ("no-such-ssh",)))


def test_no_python_and_one_that_is_too_old(local: str, tmp_path: Path) -> None:
    assert "no Python" in said(Board("board", (local,), "/no/python"))
    old = program(tmp_path / "python", '[ "$1" = -V ] && echo Python 3.9.2; exit 1')
    line = said(Board("board", (local,), old))
    assert "Python 3.9.2 is too old; install Python 3.11" in line


def test_python_without_venv(local: str, tmp_path: Path) -> None:
    (tmp_path / "lib" / "venv").mkdir(parents=True)
    (tmp_path / "lib" / "venv" / "__init__.py").write_text("raise ImportError\n")
    bare = program(tmp_path / "python", f'PYTHONPATH={tmp_path}/lib exec {sys.executable} "$@"')
    target = Board("board", (local,), bare, str(tmp_path / "there"))
    assert "python3-venv" in said(target)


def test_shell_that_talks_and_one_that_runs_nothing(local: str, tmp_path: Path) -> None:
    fake_environment(tmp_path / "there", f'echo {shlex.quote(PASSED)} >"$5"')
    noisy = program(tmp_path / "noisy", f'echo welcome; exec {local} "$@"')
    target = Board("board", (noisy,), sys.executable, str(tmp_path / "there"))
    assert run_there(target, RemoteJob(), lambda line: None, lambda line: None)["passed"]
    router = program(tmp_path / "router", "echo command not known >&2; exit 1")
    assert "cannot run commands there (command not known)" in said(Board("board", (router,)))


def test_what_cannot_be_asked_for(local: str, tmp_path: Path) -> None:
    for target, job, what in (
        (Board("-oProxyCommand=x", (local,)), RemoteJob(), "not a host"),
        (Board("board", (local,)), RemoteJob(extras=("cuda",)), "--extras cuda: there are"),
        (Board("board", (local,)), RemoteJob(wheels=tmp_path), "no wheels there"),
    ):
        with pytest.raises(ConfigError, match=what):
            run_there(target, job, lambda line: None, lambda line: None)


@pytest.mark.slow
def test_failed_installation_leaves_nothing(local: str, tmp_path: Path) -> None:
    """The wheel of these tests is none; pip says so."""
    there = tmp_path / "there"
    line = said(Board("board", (local,), sys.executable, str(there)))
    assert "pip failed" in line
    assert not list(there.glob("run-*"))
    assert not list(there.glob("env-*/complete"))


def test_old_environments_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        place = tmp_path / f"env-{number}"
        place.mkdir()
        (place / "bin").mkdir()
        program(place / "bin" / "python", "exit 0")
        (place / "complete").touch()
        os.utime(place / "complete", (number, number))
    monkeypatch.setattr(far_side, "_say", lambda line: None)
    job: dict[str, Any] = {"key": "2", "extras": "", "arguments": []}
    far_side._environment(tmp_path, tmp_path, job)
    assert {p.name for p in tmp_path.glob("env-*")} == {"env-3", "env-2"}


def test_environment_that_broke_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python it was made of is gone, as after an upgrade of the board."""
    place = tmp_path / "env-1"
    (place / "bin").mkdir(parents=True)
    (place / "complete").touch()
    (place / "bin" / "python").symlink_to(tmp_path / "gone")
    made: list[str] = []
    monkeypatch.setattr(far_side, "_say", lambda line: None)
    monkeypatch.setattr(far_side, "_run", lambda command, failed: made.append(command[2]))
    monkeypatch.setattr(far_side, "_install", lambda python, work, job: place.mkdir())
    monkeypatch.setattr(far_side, "_compile_core", lambda python: None)
    job: dict[str, Any] = {"key": "1", "extras": "", "arguments": []}
    far_side._environment(tmp_path, tmp_path, job)
    assert made == ["venv"]
    assert not (place / "bin" / "python").is_symlink()
    assert (place / "complete").is_file()


def test_core_that_does_not_load_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was linked against a newer C library; there is no compiler to build it again."""
    core = tmp_path / "core"
    core.mkdir()
    (core / "_binding.abi3.so").touch()
    python = program(
        tmp_path / "python",
        f'case "$2" in *_binding) exit 1;; *) echo {core}; echo {tmp_path};; esac',
    )
    monkeypatch.setattr("shutil.which", lambda name: None)
    far_side._compile_core(Path(python))
    assert not list(core.iterdir())


def test_nothing_leads_python_out_of_its_environment(
    local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    fake_environment(there, f'echo "path=$PYTHONPATH"; echo {shlex.quote(PASSED)} >"$5"')
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    shown: list[str] = []
    target = Board("board", (local,), sys.executable, str(there))
    run_there(target, RemoteJob(), lambda line: None, shown.append)
    assert "path=" in shown


def test_runs_that_were_killed_are_cleaned_away(tmp_path: Path) -> None:
    for name in ("run-old", "run-new"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "run-old", (1, 1))
    far_side._clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["run-new"]
