"""Python in a process of its own, which finds the same packages as this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def can_start() -> bool:
    """Say whether there is a Python to start: a program may bring its interpreter within itself."""
    return not getattr(sys, "frozen", False) and "py" in Path(sys.executable or "").name.lower()


def start_python(
    *arguments: str, variables: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start Python.

    Args:
        arguments: of the interpreter, such as `-m` and a module, or `-c` and a program.
        variables: of the environment, beside those of this process.
        options: of `subprocess.Popen`.

    Raises:
        OSError: it cannot be started.
    """
    folders = [folder or str(Path.cwd()) for folder in sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **(variables or {})}
    # -P: the current folder is no place to import from, unless it is one in this process.
    return subprocess.Popen([sys.executable, "-P", *arguments], env=environment, **options)


def run_python(
    *arguments: str, timeout_s: float | None = None, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end and return what it printed; the exit code may be any.

    Args:
        arguments: see `start_python`.
        timeout_s: seconds after which it is ended; None waits for ever.
        variables: see `start_python`.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it took too long.
    """
    pipe = subprocess.PIPE
    options: dict[str, Any] = {"text": True, "errors": "replace", "stdout": pipe, "stderr": pipe}
    with start_python(*arguments, variables=variables, **options) as child:
        try:
            out, err = child.communicate(timeout=timeout_s)
        except BaseException:
            child.kill()
            raise
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)
