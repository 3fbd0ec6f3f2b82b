from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecodec import files
from edgecodec.errors import ConfigError
from edgecodec.files import write_output


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
