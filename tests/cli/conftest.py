"""A folder with good and bad files, and the command line to call in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.support.commands import Call


@pytest.fixture
def folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: npt.NDArray[np.uint8],
    small_file: bytes,
) -> Path:
    """A working folder with a picture, a file of four tiles, and damaged ones."""
    Image.fromarray(small).save(tmp_path / "photo.png")
    (tmp_path / "good.ecx").write_bytes(small_file)
    (tmp_path / "cut.ecx").write_bytes(small_file[:-9])
    flipped = bytearray(small_file)
    flipped[-9] ^= 4
    (tmp_path / "flipped.ecx").write_bytes(flipped)
    (tmp_path / "text.txt").write_text("no picture\n")
    (tmp_path / "empty").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    return Call(capfd)
