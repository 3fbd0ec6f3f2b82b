"""Temporary folders: gone with their owner, however it ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgecodec.bundle.scratch import Scratch, remove_abandoned

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")


def folders(parent: Path) -> list[Path]:
    return sorted(parent.glob("edgecodec-*"))


def test_folder_goes_when_removed_or_forgotten(scratch: Path) -> None:
    one, two = Scratch(), Scratch()
    (two.path / "deep").mkdir()
    assert folders(scratch) == sorted([one.path, two.path])
    one.remove()
    one.remove()
    assert folders(scratch) == [two.path]
    del two
    gc.collect()
    assert folders(scratch) == []


def child(code: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", f"from edgecodec.bundle.scratch import Scratch\n{code}"]
    return subprocess.Popen(
        command,
        env={**environment, "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_folders_of_the_dead_go_and_those_of_the_living_stay(
    scratch: Path, environment: dict[str, str]
) -> None:
    wait = "s = Scratch(); (s.path / 'x').touch(); print(s.path, flush=True); input()"
    with child(wait, scratch, environment) as dead, child(wait, scratch, environment) as living:
        assert dead.stdout
        assert living.stdout
        paths = [Path(p.readline().decode().strip()) for p in (dead.stdout, living.stdout)]
        dead.kill()
        assert dead.wait() == -signal.SIGKILL
        assert folders(scratch) == sorted(paths)
        own = Scratch()
        assert folders(scratch) == sorted([paths[1], own.path])
        assert (paths[1] / "x").exists()
        living.communicate(b"\n")
    assert folders(scratch) == [own.path]


def test_forked_child_leaves_the_folder_of_its_parent(
    scratch: Path, environment: dict[str, str]
) -> None:
    code = "import os, sys\ns = Scratch()\npid = os.fork()\nif not pid: sys.exit()\n"
    code += "os.waitpid(pid, 0)\nassert s.path.exists()"
    with child(code, scratch, environment) as process:
        process.communicate()
    assert process.returncode == 0
    assert folders(scratch) == []


def test_only_folders_that_are_ours_and_abandoned_are_removed(scratch: Path) -> None:
    beside = scratch / "edgecodec-no-lock"
    beside.mkdir()
    other = scratch / "other"
    other.mkdir()
    (other / "lock").touch()
    (scratch / "edgecodec-link").symlink_to(other)
    (scratch / "edgecodec-file").touch()
    linked = scratch / "edgecodec-linked-lock"
    linked.mkdir()
    (linked / "lock").symlink_to(other / "lock")
    abandoned = scratch / "edgecodec-abandoned"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    if os.geteuid() == 0:
        foreign = scratch / "edgecodec-foreign"
        foreign.mkdir()
        (foreign / "lock").touch()
        os.chown(foreign, 12345, 12345)
    before = set(scratch.iterdir())
    remove_abandoned(scratch)
    assert set(scratch.iterdir()) == before - {abandoned}
    assert (other / "lock").exists()
