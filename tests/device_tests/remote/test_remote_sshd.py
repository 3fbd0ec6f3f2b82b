"""A device test over a real OpenSSH server on loopback, into a fresh environment there."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgecodec.cli import main
from tests.support.wheels import needed_by, pack_again

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None, reason="no sshd here; install openssh-server"),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh here"),
]


@dataclass(frozen=True)
class Server:
    """A server of our own.

    Attributes:
        folder: of its files.
        ssh: the client's command, with its configuration.
        port: where it listens.
    """

    folder: Path
    ssh: str
    port: int


def _key(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert SSHD is not None
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "mine", "stranger"):
        _key(folder / name)
    shutil.copy(folder / "mine.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nUsePAM no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    host = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host[0]} {host[1]}\n")
    (folder / "config").write_text(
        f"Host board\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n"
        f" IdentityFile {folder}/mine\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {folder}/known\n"
    )
    log = folder / "log"
    with log.open("wb") as said:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", f"{folder}/sshd_config"], stderr=said)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield Server(folder, f"ssh -F {folder}/config", port)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for name, known in needed_by("edgecodec").items():
        if name != "edgecodec":
            pack_again(known, folder)
    return folder


def test_runs_there_twice_and_fetches_the_report(
    server: Server, wheels: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there, first, second = tmp_path / "there", tmp_path / "first.json", tmp_path / "second.json"
    command = ["device-test", "--host", "board", "--ssh", server.ssh, "--wheels", str(wheels)]
    command += ["--remote-dir", str(there), "--qualities", "50", "--threads", "1", "--runs", "3"]
    command += ["--remote-python", str(Path(sys.executable).resolve())]
    assert main([*command, "--json", str(first)]) == 0, capfd.readouterr().err
    said = capfd.readouterr()
    assert "installing" in said.err
    assert "robustness passed" in said.out
    report = json.loads(first.read_text())
    assert report["passed"] is True
    assert report["host"] == "board"
    backends = {c["settings"]["analysis"]["backend"] for c in report["bench"]["contenders"]}
    assert backends == {"onnxruntime"}  # of this process's environment it would be more
    assert set(report["device"]["packages"]) == {"edgecodec", "numpy", "pillow", "onnxruntime"}
    (environment,) = there.glob("env-*")
    (installed,) = environment.glob(
        "lib/python*/site-packages/edgecodec/device_tests/remote/far_side.py"
    )
    assert not installed.is_symlink()
    made = (environment / "pyvenv.cfg").stat().st_mtime_ns

    assert main([*command, "--json", str(second)]) == 0, capfd.readouterr().err
    said = capfd.readouterr()
    assert "installing" not in said.err
    assert (environment / "pyvenv.cfg").stat().st_mtime_ns == made
    assert not list(there.glob("run-*"))
    assert main(["bench", "--compare", str(first), str(second)]) == 0
    assert "onnxruntime:int8 decode/synthesis" in capfd.readouterr().out


def failed(capfd: pytest.CaptureFixture[str], *args: str) -> str:
    """Run the command; return the one line of its error."""
    assert main(["device-test", *args]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("edgecodec: ")
    return lines[-1]


def test_stranger_is_refused_without_a_question(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    (server.folder / "other").write_text(
        (server.folder / "config").read_text().replace("/mine", "/stranger")
    )
    ssh = f"ssh -F {server.folder}/other"
    line = failed(capfd, "--host", "board", "--ssh", ssh, "--json", str(report))
    assert "Permission denied" in line
    assert "ssh-copy-id" in line
    assert not report.exists()


def test_unknown_host_key_is_refused(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    ssh = f"{server.ssh} -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes"
    assert "check its key" in failed(capfd, "--host", "board", "--ssh", ssh)


def test_port_where_nobody_listens(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    line = failed(capfd, "--host", "board", "--ssh", f"{server.ssh} -p 1")
    assert "Connection refused" in line


def test_python_that_is_not_there(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    args = ("--host", "board", "--ssh", server.ssh, "--remote-python", "/no/python")
    assert "install Python 3.11" in failed(capfd, *args)


def test_wheels_that_do_not_suffice(
    server: Server, wheels: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    some = tmp_path / "some"
    some.mkdir()
    shutil.copy(next(wheels.glob("numpy-*.whl")), some)
    there = tmp_path / "there"
    args = ["--host", "board", "--ssh", server.ssh, "--wheels", str(some)]
    args += ["--remote-dir", str(there), "--remote-python", str(Path(sys.executable).resolve())]
    line = failed(capfd, *args)
    assert "pip failed" in line
    assert "--wheels must hold" in line
    assert not list(there.glob("run-*"))
    assert not list(there.glob("env-*/complete"))
