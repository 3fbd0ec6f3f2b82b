"""Compiling test programs with the C core."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

import edgecodec.core

HERE = Path(__file__).parent
CORE = Path(edgecodec.core.__file__).parent
LOUD = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")


def clang() -> str | None:
    """Return the newest clang there is, under its plain name or with its version."""
    names = ["clang", *(f"clang-{version}" for version in range(30, 9, -1))]
    return next(filter(None, map(shutil.which, names)), None)


def checksum(values: npt.NDArray[Any]) -> int:
    """FNV-1a over the little-endian bytes."""
    total = 2166136261
    for byte in values.astype(values.dtype.newbyteorder("<")).tobytes():
        total = (total ^ byte) * 16777619 & 0xFFFFFFFF
    return total


def build(
    folder: Path, sources: Sequence[str], *flags: str, compiler: str = "gcc", name: str = "program"
) -> Path:
    """Compile sources of this folder with the core; return the program.

    Raises:
        AssertionError: the compiler refuses; its own words.
    """
    program = folder / name
    command = [compiler, *LOUD, *flags, f"-I{CORE}"]
    command += [str(HERE / source) for source in sources]
    command += [str(CORE / "edgecodec_core.c"), "-o", str(program)]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return program
