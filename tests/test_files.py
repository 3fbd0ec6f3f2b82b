from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecodec import files
from edgecodec.errors import ConfigError
from edgecodec.files import read_input, write_output


class Narrow(io.RawIOBase):
    """An output that takes a few bytes at a time, as an unbuffered pipe may; None where full."""

    def __init__(self, room: int | None = None) -> None:
        self.taken, self.room = bytearray(), room

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int | None:
        part = bytes(memoryview(data)[:7])  # type: ignore[arg-type]
        if self.room is not None and len(self.taken) + len(part) > self.room:
            return None
        self.taken += part
        return len(part)


def test_all_of_it_goes_to_an_output_that_takes_little_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, data = Narrow(), bytes(range(256)) * 3
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    write_output("-", data)
    assert bytes(out.taken) == data


def test_an_output_that_takes_no_more_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=Narrow(room=20)))
    with pytest.raises(ConfigError, match="cannot be written"):
        write_output("-", bytes(100))


def test_input_larger_than_any_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "INPUT_LIMIT", 1 << 20)
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(ConfigError, match="larger than any picture"):
        files.read_input(str(sparse))
    sparse.write_bytes(bytes(1 << 20))
    assert len(files.read_input(str(sparse))) == 1 << 20


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices with names here")
def test_a_device_is_no_input(tmp_path: Path) -> None:
    link = tmp_path / "picture.png"
    link.symlink_to("/dev/zero")
    for name in ("/dev/zero", str(link)):
        with pytest.raises(ConfigError, match=f"^{name}: is a device, not a file; give the name"):
            files.read_input(name)
    files.refuse_device(tmp_path / "absent")
    files.refuse_device(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_with_a_name_is_an_input(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"through",))
    writer.start()
    assert files.read_input(str(pipe)) == b"through"
    writer.join(30)


def test_read_input_names_what_it_cannot_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_input(str(path))


def test_write_output_replaces_whole_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.bin"
    write_output(str(target), b"first")
    assert target.read_bytes() == b"first"

    def fail(self: Path, other: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(ConfigError, match="No space left"):
            write_output(str(target), b"second")

    def interrupt(self: Path, mode: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_output(str(target), b"third")
    assert target.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_write_output_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_output(str(tmp_path / "x"), b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_output(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to be root")
def test_a_file_that_root_replaces_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    os.chown(path, 12345, 54321)
    write_output(str(path), b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EPERM])
@pytest.mark.parametrize("old", [b"", b"longer than what is new"])
def test_a_file_that_cannot_be_replaced_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, old: bytes
) -> None:
    """A file that is mounted itself, as a container is given one; or in a sticky folder."""

    def fail(self: Path, other: Path) -> Path:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "x"
    path.write_bytes(old)
    inode = path.stat().st_ino
    monkeypatch.setattr(Path, "replace", fail)
    write_output(str(path), b"new")
    assert (path.read_bytes(), path.stat().st_ino) == (b"new", inode)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_output(str(tmp_path / "y"), b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_a_folder_that_takes_no_other_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old and long")
    inode, access = path.stat().st_ino, os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != tmp_path and access(p, mode))
    files.check_folder(path)
    write_output(str(path), b"new")
    assert (path.read_bytes(), path.stat().st_ino) == (b"new", inode)
    with pytest.raises(ConfigError, match="cannot be written; choose another"):
        files.check_folder(tmp_path / "y")


@pytest.mark.parametrize("where", ["absent/x.bin", "."])
def test_write_output_reports_impossible_places(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_output(str(tmp_path / where), b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_write_output_writes_into_pipes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_output(str(pipe), b"through")
    reader.join(30)
    assert got == [b"through"]
    assert pipe.is_fifo()


DESCRIPTORS = "/dev/fd/{}", "/proc/self/fd/{}", "link"


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="no names of what is open")
@pytest.mark.parametrize("name", DESCRIPTORS)
def test_what_is_open_already_is_written_on(tmp_path: Path, name: str) -> None:
    if name.startswith("/proc") and not Path("/proc/self/fd").exists():
        pytest.skip("no such folder here")
    with (tmp_path / "both.bin").open("wb", 0) as out:
        target = Path(name.format(out.fileno()))
        if name == "link":
            target = tmp_path / name
            target.symlink_to(f"/dev/fd/{out.fileno()}")
        files.check_folder(target)
        out.write(b"0")
        write_output(str(target), b"first")
        write_output(str(target), b"second")
        with files.replacing(target) as temporary:
            temporary.write_bytes(b"third")
    assert (tmp_path / "both.bin").read_bytes() == b"0firstsecondthird"
    assert {path.name for path in tmp_path.iterdir()} <= {"both.bin", "link"}


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="no names of what is open")
def test_standard_output_in_a_file_takes_what_follows(tmp_path: Path) -> None:
    code = (
        "from edgecodec.files import write_output; print('a', flush=False)\n"
        "write_output('/dev/stdout', b'b'); write_output('/dev/stdout', b'c')"
    )
    with (tmp_path / "out").open("wb") as out:
        for _ in range(2):
            subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == b"a\nbc" * 2
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_what_is_not_open_is_told() -> None:
    with pytest.raises(ConfigError, match="/dev/fd/987: cannot be written"):
        write_output("/dev/fd/987", b"x")
