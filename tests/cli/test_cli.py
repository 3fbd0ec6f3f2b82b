"""The command line: exit codes, one line per failure, outputs that appear whole or not at all."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecodec._version import __version__
from edgecodec.bundle import manifest
from edgecodec.bundle.reading import Bundle
from edgecodec.cli import COMMANDS, main
from edgecodec.codec import Codec
from edgecodec.coding.image_files import expand_images
from edgecodec.converters.checks.report import ConversionReport
from edgecodec.errors import ConfigError
from edgecodec.format.container import read_container, read_header

Run = Callable[..., subprocess.CompletedProcess[bytes]]
FAST = ("--backend", "onnxruntime", "--precision", "fp32", "--threads", "1")


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


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    return Call(capfd)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


# -- the way through -------------------------------------------------------------------------------


def test_encode_info_decode(folder: Path, call: Call, small: npt.NDArray[np.uint8]) -> None:
    before = names(folder)
    assert call("encode", "photo.png", "out.ecx", "-q", "80", "--tile", "32", *FAST) == 0
    assert call.out == ""
    assert "onnxruntime fp32" in call.err
    header = read_header((folder / "out.ecx").read_bytes())
    assert (header.quality, header.tile) == (80, 32)
    assert call("info", "out.ecx") == 0
    assert "61 x 50 pixels, RGB" in call.out
    assert call("decode", "out.ecx", "out.png", *FAST) == 0
    with Image.open(folder / "out.png") as image:
        assert image.size == (small.shape[1], small.shape[0])
    assert names(folder) == before | {"out.ecx", "out.png"}


def test_results_are_those_of_the_library(
    folder: Path, call: Call, codec: Codec, small: npt.NDArray[np.uint8], small_file: bytes
) -> None:
    assert call("encode", "photo.png", "out.ecx", *FAST) == 0
    assert (folder / "out.ecx").read_bytes() == codec.encode(small)
    assert call("decode", "good.ecx", "out.png", *FAST) == 0
    with Image.open(folder / "out.png") as image:
        assert (np.asarray(image) == np.asarray(codec.decode(small_file))).all()


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "webp", "tiff", "bmp"])
def test_decode_writes_the_format_of_the_extension(folder: Path, call: Call, suffix: str) -> None:
    assert call("decode", "good.ecx", f"out.{suffix}", *FAST) == 0
    with Image.open(folder / f"out.{suffix}") as image:
        expected = {"jpg": "JPEG"}.get(suffix, suffix.upper())
        assert image.format == expected


def test_info_json_has_the_facts(folder: Path, call: Call, shipped: Bundle) -> None:
    assert call("info", "good.ecx", "--json") == 0
    facts = json.loads(call.out)
    size = (folder / "good.ecx").stat().st_size
    assert facts == {
        "format": "image/x-edgecodec",
        "width": 61,
        "height": 50,
        "mode": "RGB",
        "quality": 50,
        "tables_id": shipped.manifest.tables_id,
        "tile": 32,
        "tiles": 4,
        "damaged_tiles": [],
        "bytes": size,
        "bpp": 8 * size / (61 * 50),
        "metadata": {"icc_profile": 9, "exif": 20},
    }


def test_info_shows_damage(folder: Path, call: Call) -> None:
    for name in ("cut.ecx", "flipped.ecx"):
        assert call("info", name, "--json") == 0
        assert json.loads(call.out)["damaged_tiles"] == [4]
        assert call("info", name) == 0
        assert "damaged   tile 4" in call.out


@pytest.mark.parametrize("name", ["cut.ecx", "flipped.ecx"])
def test_keep_going_saves_the_rest_and_says_what_is_lost(
    folder: Path, call: Call, name: str
) -> None:
    assert call("decode", name, "out.png", "--keep-going", *FAST) == 0
    assert "damaged tiles shown in grey: 4" in call.err
    with Image.open(folder / "out.png") as image:
        found = np.asarray(image)
    assert (found[32:, 32:] == 128).all()
    assert not (found[:32, :32] == 128).all()


def test_force_replaces(folder: Path, call: Call) -> None:
    (folder / "out.ecx").write_bytes(b"precious")
    assert "--force" in call.fails("encode", "photo.png", "out.ecx", *FAST)
    assert "--force" in call.fails("decode", "good.ecx", "photo.png", *FAST)
    assert (folder / "out.ecx").read_bytes() == b"precious"
    assert call("encode", "photo.png", "out.ecx", "-f", *FAST) == 0
    read_container((folder / "out.ecx").read_bytes())


# -- failures --------------------------------------------------------------------------------------

FAILURES = {
    "missing input": (("encode", "absent.png", "out.ecx"), "absent.png: cannot be read"),
    "missing file": (("decode", "absent.ecx", "out.png"), "absent.ecx: cannot be read"),
    "missing info": (("info", "absent.ecx"), "cannot be read"),
    "folder as input": (("encode", ".", "out.ecx"), "cannot be read"),
    "no image": (("encode", "text.txt", "out.ecx"), "text.txt: not an image"),
    "empty image": (("encode", "empty", "out.ecx"), "empty: not an image"),
    "ecx as image": (("encode", "good.ecx", "out.ecx"), "not an image"),
    "image as ecx": (("decode", "photo.png", "out.png"), "not an edgecodec file"),
    "empty file": (("decode", "empty", "out.png"), "ends after 0 bytes"),
    "info of an image": (("info", "photo.png"), "not an edgecodec file"),
    "cut": (("decode", "cut.ecx", "out.png"), "file ends"),
    "flipped": (("decode", "flipped.ecx", "out.png"), "tile 4 of 4 is damaged"),
    "encode nowhere": (("encode", "photo.png", "no/out.ecx"), "no: no such folder"),
    "decode nowhere": (("decode", "good.ecx", "no/out.png"), "no: no such folder"),
    "folder as output": (("encode", "photo.png", "."), "is a folder"),
    "no quality": (("decode", "good.ecx", "out.png", "--quality", "9"), "PNG has no quality"),
    "bad extension": (("decode", "good.ecx", "out.xyz"), "try .png"),
    "no extension": (("decode", "good.ecx", "out"), "try .png"),
    "missing bundle": (("encode", "photo.png", "out.ecx", "--bundle", "no"), "no such bundle"),
    "bad bundle": (("decode", "good.ecx", "out.png", "--bundle", "text.txt"), "neither"),
    "no bundle": (("devices", "--bundle", "."), "not a bundle"),
    "json to a folder": (("device-test", "--json", "."), "is a folder"),
    "json nowhere": (("bench", "--json", "no/x.json"), "no such folder"),
    "bench of nothing": (("bench", "absent.png"), "no such file"),
    "page nowhere": (("bench", "--html", "no/x.html"), "no such folder"),
    "compare nothing": (("bench", "--compare", "absent.json", "text.txt"), "absent.json"),
    "compare no report": (("bench", "--compare", "text.txt", "text.txt"), "text.txt"),
    "bench of no image": (("bench", "text.txt", "--backends", "onnxruntime"), "text.txt"),
    "test of no image": (("device-test", "text.txt"), "text.txt"),
    "test of no precision": (
        ("device-test", "--precision", "int4"),
        "fp32, fp16, bf16, int8 exist",
    ),
    "eval of nothing": (("eval", "absent.png"), "no such file"),
    "eval to nowhere": (("eval", "photo.png", "--html", "no/x.html"), "no such folder"),
    "eval of no codec": (("eval", "photo.png", "--against", "gif", *FAST), "gif"),
    "unknown backend": (("encode", "photo.png", "out.ecx", "--backend", "cuda"), "onnxruntime"),
    "unknown in bench": (("bench", "photo.png", "--backends", "cuda"), "onnxruntime"),
    "demo over a file": (("demo", "-o", "text.txt"), "is a file"),
    "convert nothing": (("convert", "absent.pt", "-o", "x.bundle"), "no such file"),
    "convert over its checkpoint": (
        ("convert", "text.txt", "-o", "x.bundle", "--json", "text.txt"),
        "would replace text.txt",
    ),
    "convert over its code": (
        ("convert", "text.txt:load", "-o", "x.bundle", "--json", "./text.txt"),
        "would replace text.txt",
    ),
    "convert to one file twice": (
        ("convert", "text.txt", "-o", "x.zip", "--json", "x.zip"),
        "would replace x.zip",
    ),
    "eval over a picture": (("eval", "photo.png", "--csv", "photo.png"), "would replace photo.png"),
    "eval over its cache": (
        ("eval", "photo.png", "--cache", "c.json", "--json", "./c.json"),
        "would replace c.json",
    ),
    "bench over a picture": (("bench", ".", "--trace", "photo.png"), "would replace photo.png"),
    "bench to one file twice": (
        ("bench", "photo.png", "--html", "x", "--trace", "./x"),
        "would replace that of --html",
    ),
    "bench to stdout twice": (
        ("bench", "photo.png", "--json", "-", "--html", "-"),
        "that of --json",
    ),
    "compare over a report": (
        ("bench", "--compare", "good.ecx", "text.txt", "--json", "text.txt"),
        "would replace text.txt",
    ),
    "test over a picture": (("device-test", "photo.png", "--json", "photo.png"), "would replace"),
    "train on nothing": (("train", "--images", "absent", "--out", "x.pt"), "absent"),
}


@pytest.mark.parametrize(("args", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_failure_is_one_line_and_leaves_nothing(
    folder: Path, call: Call, args: tuple[str, ...], words: str
) -> None:
    before = names(folder)
    assert words in call.fails(*args)
    assert names(folder) == before


def test_convert_of_no_checkpoint_ends_in_one_line(folder: Path, call: Call) -> None:
    before = names(folder)
    assert call("convert", "text.txt", "-o", "x.bundle") == 1
    assert call.err.splitlines()[-1].startswith("edgecodec: text.txt: not a readable checkpoint")
    assert names(folder) == before


def convert_nothing(monkeypatch: pytest.MonkeyPatch, bundle: str) -> None:
    """Let a conversion take no time."""
    report = ConversionReport(
        Path(bundle), "n", "m", "t", {"judged": 1}, 1, 1, (), 0.0, math.inf, "psnr"
    )
    monkeypatch.setattr("edgecodec.converters.convert.convert_checkpoint", lambda *_, **__: report)


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


def test_names_that_are_no_text_are_printed_all_the_same(environment: dict[str, str]) -> None:
    """A table at the end of minutes of work does not end in an encoding error."""
    program = """
import sys
from edgecodec.cli import convert_command, entry_point
convert_command.run = lambda args: print("written to " + args.output) or 0
sys.argv = ["edgecodec", "convert", "text.txt", "-o", "caf\\udce9 \\u2603"]
entry_point()
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        env=environment | {"PYTHONIOENCODING": "ascii:strict"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == rb"written to caf\udce9 \u2603" + os.linesep.encode()


def test_precision_that_the_bundle_lacks(folder: Path, call: Call, shipped: Bundle) -> None:
    for precision in {"fp16", "bf16", "int8"} - {e.precision for e in shipped.manifest.artefacts}:
        line = call.fails("encode", "photo.png", "out.ecx", "--precision", precision)
        assert f"no {precision} artefact" in line


def test_foreign_bundle_names_both_ids(
    folder: Path, call: Call, shipped: Bundle, other_bundle: Path
) -> None:
    line = call.fails("decode", "good.ecx", "out.png", "--bundle", other_bundle, *FAST)
    with Bundle(other_bundle) as other:
        assert shipped.manifest.tables_id in line
        assert other.manifest.tables_id in line


def test_interruption_is_told_and_leaves_nothing(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(folder)
    for exception, words, code in (
        (KeyboardInterrupt, "interrupted", 130),
        (MemoryError, "memory", 1),
    ):

        def encode(*_: object, exception: type[BaseException] = exception, **__: object) -> bytes:
            raise exception

        monkeypatch.setattr(Codec, "encode", encode)
        assert words in call.fails("encode", "photo.png", "out.ecx", *FAST, code=code)
    assert names(folder) == before


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("compress",),
        ("encode",),
        ("encode", "a"),
        ("encode", "a", "b", "c"),
        ("encode", "a", "b", "-q", "0"),
        ("encode", "a", "b", "-q", "101"),
        ("encode", "a", "b", "-q", "high"),
        ("encode", "a", "b", "-q", "5.5"),
        ("encode", "a", "b", "-e", "0"),
        ("encode", "a", "b", "--effort", "10"),
        ("encode", "a", "b", "--tile", "33"),
        ("encode", "a", "b", "--tile", "0"),
        ("encode", "a", "b", "--threads", "0"),
        ("encode", "a", "b", "--precision", "fp8"),
        ("decode", "a", "b", "--quality", "0"),
        ("info",),
        ("bench", "--backends", ","),
        ("bench", "--seconds", "-1"),
        ("bench", "--minutes", "nan"),
        ("bench", "--compare", "a.json"),
        ("bench", "photo.png", "--compare", "a.json", "b.json"),
        ("bench", "--compare", "a.json", "b.json", "--threads", "1"),
        ("bench", "--compare", "a.json", "b.json", "--backends", "tflite"),
        ("eval",),
        ("eval", "a", "--qualities", "10,200"),
        ("eval", "a", "--effort", "1,11"),
        ("convert", "a"),
        ("train",),
    ],
    ids=lambda a: " ".join(a) or "nothing",
)
def test_wrong_usage_is_exit_code_2(call: Call, args: tuple[str, ...]) -> None:
    assert call(*args) == 2
    assert "usage: edgecodec" in call.err
    assert call.out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call: Call, command: str) -> None:
    assert call(command, "--help") == 0
    assert call.out.startswith(f"usage: edgecodec {command}")


def test_version(call: Call) -> None:
    assert call("--version") == 0
    assert call.out == f"edgecodec {__version__}\n"


# -- in a process of its own -----------------------------------------------------------------------


def test_pipes_go_both_ways(folder: Path, run_cli: Run, codec: Codec) -> None:
    """Only the result is on stdout, so that commands can follow each other."""
    encoded = run_cli("encode", "-", "-", *FAST, stdin=(folder / "photo.png").read_bytes())
    assert encoded.returncode == 0
    assert encoded.stderr.count(b"\n") == 1
    decoded = run_cli("decode", "-", "-", *FAST, stdin=encoded.stdout)
    assert decoded.returncode == 0
    assert decoded.stderr.count(b"\n") == 1
    with Image.open(io.BytesIO(decoded.stdout)) as image:
        assert image.format == "PNG"
        assert (np.asarray(image) == np.asarray(codec.decode(encoded.stdout))).all()
    told = run_cli("info", "-", "--json", stdin=encoded.stdout)
    assert json.loads(told.stdout)["width"] == 61


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("decode", "cut.ecx", "out.png", *FAST), 1),
        (("encode", "text.txt", "-", *FAST), 1),
        (("encode", "photo.png", "out.ecx", "-q", "0"), 2),
    ],
    ids=["cut", "no image", "usage"],
)
def test_process_fails_in_one_line(
    folder: Path, run_cli: Run, args: tuple[str, ...], code: int
) -> None:
    before = names(folder)
    result = run_cli(*args)
    assert result.returncode == code
    assert result.stdout == b""
    assert b"Traceback" not in result.stderr
    if code == 1:
        assert result.stderr.count(b"\n") == 1
    assert names(folder) == before


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_reader_that_goes_away_is_no_traceback(folder: Path, environment: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "edgecodec", "info", "good.ecx"]
    result = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, check=False, env=environment
    )
    os.close(write)
    assert result.returncode == 1
    assert result.stderr == b""


# -- commands that measure -------------------------------------------------------------------------


def test_device_test_checks_and_writes_json(folder: Path, call: Call) -> None:
    args = ("device-test", "photo.png", "--qualities", "40", "--threads", "1", "--runs", "1")
    assert call(*args, "--json", "report.json") == 0
    assert call.out.endswith("passed\n")
    report = json.loads((folder / "report.json").read_text())
    assert report["passed"] is True
    assert report["golden_mismatches"] == 0
    assert report["kit"]["passed"] is True


def test_device_test_fails_where_a_golden_file_does(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.device_tests.conformance import kit

    broken = kit.KitReport(1, ["numpy"], {"onnxruntime fp32": 0}, {}, ["format break: x.ecx"])
    monkeypatch.setattr(kit, "check_kit", lambda **_: broken)
    assert call("device-test", "photo.png", "--qualities", "40", "--threads", "1") == 1
    assert "format break: x.ecx\nkit FAILED" in call.out


def test_matrix_is_of_the_kit_where_nothing_is_named(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.device_tests.conformance import kit, matrix

    seen: dict[str, Any] = {}

    def check(images: Any, qualities: Any, **options: Any) -> Any:
        seen.update(options, images=list(images))
        return matrix.ConformanceReport(list(images), list(qualities))

    monkeypatch.setattr(matrix, "check_conformance", check)
    monkeypatch.setattr(kit, "check_kit", lambda **_: kit.KitReport())
    assert call("device-test", "--matrix", "--runs", "0") == 1  # nothing compared is not a pass
    assert seen["bundle"] == kit.kit_model()
    assert seen["images"] == list(kit.open_pictures())
    assert seen["precisions"] == manifest.PRECISIONS
    assert call("device-test", "--matrix", "--bundle", "default", "photo.png") == 1
    assert (seen["bundle"], seen["images"]) == ("default", ["photo.png"])
    assert seen["twin"] is True
    options = ("--matrix", "--precision", "int8", "--extremes", "--fast", "photo.png")
    assert call("device-test", *options) == 1
    assert (seen["precisions"], seen["twin"]) == (("int8",), False)
    assert seen["images"] == ["photo.png", "black", "white", "noise", "saturated"]


BENCH = ("--backends", "onnxruntime", "--runs", "3", "--seconds", "0", "--cold-starts", "0")


def test_bench_measures_and_writes_its_reports(folder: Path, call: Call) -> None:
    args = ("bench", "photo.png", *BENCH, "--against", "jpeg", "--threads", "1")
    assert call(*args, "--json", "a.json", "--html", "a.html", "--trace", "a.trace") == 0
    assert "outside the networks" in call.out
    report = json.loads((folder / "a.json").read_text())
    stages = {(s["codec"], s["stage"]) for s in report["summaries"]}
    assert {("onnxruntime", "decode/synthesis"), ("jpeg", "encode")} <= stages
    assert {len(m["starts_s"]) for m in report["measurements"]} == {3}
    assert (folder / "a.html").read_text().startswith("<!doctype html>")
    names = {event["name"] for event in json.loads((folder / "a.trace").read_text())["traceEvents"]}
    assert {"encode", "analysis", "decode"} <= names
    assert call("bench", "--compare", "a.json", "a.json") == 0
    assert call.out.splitlines()[-1].startswith("0 faster, 0 slower")
    assert call("bench", "--compare", "a.json", "a.json", "--json", "-") == 0
    rows = json.loads(call.out)["rows"]
    assert {row["verdict"] for row in rows} == {"no difference"}
    assert call(*args, "--trace", "-") == 0
    assert json.loads(call.out)["traceEvents"]


def test_eval_prints_a_table(folder: Path, call: Call) -> None:
    args = ("eval", "photo.png", "--qualities", "20,60", "--against", "jpeg", "--csv", "x.csv")
    assert call(*args, *FAST) == 0
    assert "edgecodec" in call.out
    assert len((folder / "x.csv").read_text().splitlines()) > 3


def test_eval_goes_on_behind_a_photo_that_is_cut(folder: Path, call: Call) -> None:
    whole = (folder / "photo.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    args = ("eval", "a.png", "photo.png", "--qualities", "20", "--against", "jpeg")
    assert call(*args, *FAST) == 1
    assert "over 1 image" in call.out
    assert call.err.startswith("edgecodec: left out: a.png: the image is damaged")


def test_decode_says_which_quality_it_writes(folder: Path, call: Call) -> None:
    sizes = {}
    for quality in ((), ("--quality", "95"), ("--quality", "30")):
        assert call("decode", "good.ecx", "out.jpg", "-f", *quality, *FAST) == 0
        assert f"quality {(*quality, '95')[1 if quality else 0]}, " in call.err
        sizes[quality] = (folder / "out.jpg").stat().st_size
    assert sizes[()] == sizes["--quality", "95"] > sizes["--quality", "30"]
    assert call("decode", "good.ecx", "out.bmp", *FAST) == 0
    assert "quality" not in call.err


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


def test_encode_takes_an_effort(folder: Path, call: Call) -> None:
    assert call("encode", "photo.png", "a.ecx", *FAST) == 0
    assert call("encode", "photo.png", "b.ecx", "-e", "3", *FAST) == 0
    assert "optimisation" in call.err
    plain, optimised = (folder / name for name in ("a.ecx", "b.ecx"))
    assert plain.read_bytes() != optimised.read_bytes()
    assert call("decode", "b.ecx", "b.png", *FAST) == 0


@pytest.mark.slow
def test_devices_lists_every_backend(call: Call) -> None:
    assert call("devices", "--json") == 0
    assert {"onnxruntime", "openvino", "tflite", "torch"} <= set(_words(json.loads(call.out)))
    assert call("devices") == 0
    assert "onnxruntime" in call.out


def _words(value: object) -> list[str]:
    if isinstance(value, dict):
        return [w for pair in value.items() for v in pair for w in _words(v)]
    if isinstance(value, list):
        return [w for v in value for w in _words(v)]
    return [value] if isinstance(value, str) else []


def test_show_numbers_joins_runs() -> None:
    from edgecodec.cli.common import show_numbers

    assert show_numbers([]) == ""
    assert show_numbers([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert show_numbers(range(1, 100, 2), most=2) == "1, 3, ..."


def test_folder_that_is_named_like_a_picture_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b.png").write_bytes(b"")
    assert expand_images([str(tmp_path)]) == [tmp_path / "b.png"]
