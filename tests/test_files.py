from __future__ import annotations

import io
import sys
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
    for name in (str(sparse), "/dev/zero"):
        if Path(name).exists():
            with pytest.raises(ConfigError, match="larger than any picture"):
                files.read_input(name)
    sparse.write_bytes(bytes(1 << 20))
    assert len(files.read_input(str(sparse))) == 1 << 20
