"""Butteraugli by libjxl's own program, where it is installed: a metric of what eyes notice."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgecodec.arrays import UInt8Array
from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.evaluation.window import check_pair

_PROGRAM = "butteraugli_main"
LEAST_SIDE = 8
_TIMEOUT_S = 600


def butteraugli(a: UInt8Array, b: UInt8Array) -> float:
    """Return the 3-norm of butteraugli's map of differences.

    Args:
        a: the original, (H, W, 3) uint8 sRGB, both sides 8 or more.
        b: what to judge, likewise.

    Returns:
        0 for identical images; about 1 is where differences begin to be seen.

    Raises:
        BackendUnavailableError: the program is not installed.
        BackendError: it failed.
        ConfigError: not uint8, not (H, W, 3), of different shapes, or a side below 8 pixels.
    """
    check_pair(a, b, LEAST_SIDE, "butteraugli")
    program = _program()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("a.ppm", "b.ppm")]
        for path, image in zip(paths, (a, b), strict=True):
            header = f"P6 {image.shape[1]} {image.shape[0]} 255\n".encode()
            path.write_bytes(header + image.tobytes())
        try:
            done = subprocess.run(
                [program, *map(str, paths), "--pnorm", "3"],
                capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise BackendError(_PROGRAM, f"did not run: {exc}") from exc
    found = re.search(r"^3-norm: ([0-9.]+)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise BackendError(_PROGRAM, f"gave no 3-norm but exit code {done.returncode}: {said[-1]}")
    return float(found[1])


def program_digest() -> str:
    """Return what tells builds of the program apart.

    Raises:
        BackendUnavailableError: the program is not installed.
    """
    return _digest(_program())


@functools.cache
def _digest(program: str) -> str:
    return hashlib.sha256(Path(program).read_bytes()).hexdigest()[:16]


def _program() -> str:
    program = shutil.which(_PROGRAM)
    if program is None:
        raise BackendUnavailableError(
            _PROGRAM,
            "not on PATH; install libjxl's development tools (apt install libjxl-devtools) or "
            "leave butteraugli out of the metrics",
        )
    return program
