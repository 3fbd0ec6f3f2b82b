"""Calls of the command line inside the test's process."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecodec.cli import main

FAST = ("--backend", "onnxruntime", "--precision", "fp32", "--threads", "1")


class Call:
    """Runs the command line in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.out = self.err = ""

    def __call__(self, *args: object) -> int:
        try:
            code = main([str(a) for a in args])
        except SystemExit as exc:
            code = int(exc.code or 0)
        self.out, self.err = self._capfd.readouterr()
        return code

    def fails(self, *args: object, code: int = 1) -> str:
        """Expect an exit code and a single line on stderr, and return it."""
        assert self(*args) == code
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("edgecodec: ")
        assert self.out == ""
        return lines[0]


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}
