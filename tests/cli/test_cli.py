"""The command line: exit codes, one line per failure, outputs that appear whole or not at all."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecodec._version import __version__
from edgecodec.bundle.reading import Bundle
from edgecodec.cli import COMMANDS
from edgecodec.codec import Codec
from edgecodec.format.container import read_container, read_header
from tests.support.commands import FAST, Call, names

Run = Callable[..., subprocess.CompletedProcess[bytes]]


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


def test_decode_says_which_quality_it_writes(folder: Path, call: Call) -> None:
    sizes = {}
    for quality in ((), ("--quality", "95"), ("--quality", "30")):
        assert call("decode", "good.ecx", "out.jpg", "-f", *quality, *FAST) == 0
        assert f"quality {(*quality, '95')[1 if quality else 0]}, " in call.err
        sizes[quality] = (folder / "out.jpg").stat().st_size
    assert sizes[()] == sizes["--quality", "95"] > sizes["--quality", "30"]
    assert call("decode", "good.ecx", "out.bmp", *FAST) == 0
    assert "quality" not in call.err


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
        "bundles": ["default"],
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
    "growth to nothing": (
        ("train", "--images", "absent", "--out", "x.pt", "--from", "y.pt"),
        "--from needs --shape",
    ),
    "train on nothing": (("train", "--images", "absent", "--out", "x.pt"), "absent"),
}


@pytest.mark.parametrize(("args", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_failure_is_one_line_and_leaves_nothing(
    folder: Path, call: Call, args: tuple[str, ...], words: str
) -> None:
    before = names(folder)
    assert words in call.fails(*args)
    assert names(folder) == before


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
