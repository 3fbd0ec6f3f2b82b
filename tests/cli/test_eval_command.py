"""`edgecodec eval`: tables, files, and several efforts side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import FAST, Call


def test_eval_prints_a_table(folder: Path, call: Call) -> None:
    args = ("eval", "photo.png", "--qualities", "20,60", "--against", "jpeg", "--csv", "x.csv")
    assert call(*args, *FAST) == 0
    assert "edgecodec" in call.out
    assert len((folder / "x.csv").read_text().splitlines()) > 3


def test_eval_of_several_efforts_compares_them(folder: Path, call: Call) -> None:
    args = ("eval", "photo.png", "--qualities", "20,60", "--against", "jpeg", "-e", "1,3")
    assert call(*args, "--json", "x.json", "--html", "x.html", *FAST) == 0
    assert "BD-rate of effort 3" in call.out
    result = json.loads((folder / "x.json").read_text())
    assert result["variants"] == ["effort 3"]
    pairs = {(r["codec"], r["anchor"]) for r in result["bd_rates"]}
    assert pairs == {("edgecodec", "jpeg"), ("effort 3", "jpeg"), ("effort 3", "edgecodec")}
    sizes = {(r["codec"], r["quality"]): r["bytes"] for r in result["rows"]}
    assert sizes["effort 3", 20] != sizes["edgecodec", 20]
    assert "bits of effort 3 vs edgecodec" in (folder / "x.html").read_text()


def test_eval_goes_on_behind_a_photo_that_is_cut(folder: Path, call: Call) -> None:
    whole = (folder / "photo.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    args = ("eval", "a.png", "photo.png", "--qualities", "20", "--against", "jpeg")
    assert call(*args, *FAST) == 1
    assert "over 1 image" in call.out
    assert call.err.startswith("edgecodec: left out: a.png: the image is damaged")


def test_eval_by_chosen_metrics(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("eval", "photo.png", "--qualities", "20,60", "--against", "jpeg", *FAST)
    assert call(*args, "--metrics", "ssimulacra2,psnr", "--html", "x.html", "--crops", "1") == 0
    assert call.out.splitlines()[0].split()[1:5] == ["quality", "bpp", "SSIMULACRA2", "PSNR"]
    assert "MS-SSIM" not in call.out
    page = (folder / "x.html").read_text()
    assert page.count("<h3>") == 1
    assert "Side by side at equal bytes" in page
    assert "no metric named 'vmaf'" in call.fails(*args, "--metrics", "vmaf")
    monkeypatch.setenv("PATH", "")
    assert "libjxl-devtools" in call.fails(*args, "--metrics", "butteraugli")
