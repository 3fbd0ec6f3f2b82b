"""`edgecodec convert`: what it refuses, and what it shows all the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from edgecodec.converters.checks.report import ConversionReport
from edgecodec.errors import ConfigError
from tests.support.commands import Call, names


def convert_nothing(monkeypatch: pytest.MonkeyPatch, bundle: str) -> None:
    """Let a conversion take no time."""
    report = ConversionReport(
        Path(bundle), "n", "m", "t", {"judged": 1}, 1, 1, (), 0.0, math.inf, "psnr"
    )
    monkeypatch.setattr("edgecodec.converters.convert.convert_checkpoint", lambda *_, **__: report)


def test_convert_of_no_checkpoint_ends_in_one_line(folder: Path, call: Call) -> None:
    before = names(folder)
    assert call("convert", "text.txt", "-o", "x.bundle") == 1
    assert call.err.splitlines()[-1].startswith("edgecodec: text.txt: not a readable checkpoint")
    assert names(folder) == before


def test_convert_shows_its_table_when_the_report_cannot_be_written(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ConfigError("r.json: cannot be written (No space left on device)")

    convert_nothing(monkeypatch, "x.bundle")
    monkeypatch.setattr("edgecodec.cli.convert_command.write_json", full)
    assert call("convert", "text.txt", "-o", "x.bundle", "--json", "r.json") == 1
    assert "written to x.bundle" in call.out
    assert "No space left" in call.err


@pytest.mark.parametrize("loss", ["-1", "-inf", "nan", "four"])
def test_convert_allows_no_loss_below_none(folder: Path, call: Call, loss: str) -> None:
    assert call("convert", "text.txt", "-o", "x.bundle", f"--max-bd-loss={loss}") == 2
    assert "is no percentage from 0" in call.err
