"""Butteraugli by a program that may be there or not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecodec.errors import BackendError, BackendUnavailableError, ConfigError
from edgecodec.evaluation.butteraugli import butteraugli, program_digest

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "butteraugli_main"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_its_absence_is_told_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for call in (program_digest, lambda: butteraugli(IMAGE, IMAGE)):
        with pytest.raises(BackendUnavailableError, match="libjxl-devtools"):
            call()


def test_it_gets_both_pictures_and_its_norm_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'cp "$1" "$2" {tmp_path}\necho 4.5\necho "$3 $4" >&2\necho 3-norm: 1.25\n'
    program(tmp_path, monkeypatch, script)
    assert butteraugli(IMAGE, 255 - IMAGE) == 1.25
    for name, expected in (("a.ppm", IMAGE), ("b.ppm", 255 - IMAGE)):
        written = (tmp_path / name).read_bytes()
        assert written == b"P6 48 32 255\n" + expected.tobytes()
    with pytest.raises(ConfigError, match="8 pixels"):
        butteraugli(IMAGE[:7], IMAGE[:7])


def test_its_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "echo no memory >&2\nexit 3\n")
    with pytest.raises(BackendError, match="exit code 3: no memory"):
        butteraugli(IMAGE, IMAGE)


@pytest.mark.skipif(not shutil.which("butteraugli_main"), reason="not installed")
def test_the_real_program() -> None:
    assert butteraugli(IMAGE, IMAGE) == 0
    assert butteraugli(IMAGE, IMAGE // 2) > 1
    assert len(program_digest()) == 16
