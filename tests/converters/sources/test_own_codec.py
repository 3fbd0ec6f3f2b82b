"""Codecs that were trained elsewhere: what is taken, and what is refused with one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgecodec.cli import main
from edgecodec.converters.sources import source
from edgecodec.converters.sources.own_codec import load_own_codec, names_function
from edgecodec.converters.sources.source import Source, read_source
from edgecodec.errors import ConversionError, UnsupportedOpError
from edgecodec.format.tables import Tables
from edgecodec.model.channel_tables import channel_tables, steps_between

CHANNELS = 6


class Lambda(nn.Module):
    """A module of one function; its inner module makes weights of its own."""

    def __init__(self, function: Callable[[Tensor], object], inner: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, inner

    def forward(self, x: Tensor) -> object:
        return self.function(self.inner(x))


def tables() -> Tables:
    rng = np.random.default_rng(1)
    return channel_tables(rng.normal(0, 8, (500, CHANNELS)), steps_between(16.0, 1.0))


def analysis(channels: int = CHANNELS, stride: int = 16) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, stride, stride=stride))


def synthesis(channels: int = CHANNELS) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 768, 3, padding=1), nn.PixelShuffle(16))


class WithHyper(nn.Module):
    """Results y and z."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.g_a, self.h_a = analysis(), nn.Conv2d(CHANNELS, channels, 2, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.g_a(x)
        return y, self.h_a(y)


def codec(**parts: Any) -> SimpleNamespace:
    own = {"analysis": analysis(), "synthesis": synthesis(), "tables": tables()}
    return SimpleNamespace(**{**own, **parts})


def read(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> Source:
    monkeypatch.setattr(source, "load_own_codec", lambda text: codec(**parts))
    return read_source("own.py:load")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("codec.py:load", True),
        ("/a/b c/codec.py:load_codec", True),
        ("package.module:load", True),
        ("C:\\codecs\\codec.py:load", True),
        ("codec.pt", False),
        ("C:\\codecs\\codec.pt", False),
        ("codec.py:", False),
        (":load", False),
    ],
)
def test_function_is_told_from_a_file(text: str, expected: bool) -> None:
    assert names_function(text) is expected


def test_file_of_such_a_name_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "codec:load"
    path.write_bytes(b"")
    assert not names_function(str(path))


def test_function_of_a_file_is_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "beside.py").write_text("PARTS = {'analysis': 1, 'synthesis': 2, 'tables': 3}\n")
    (tmp_path / "codec.py").write_text(
        "from dataclasses import dataclass\n"
        "from types import SimpleNamespace\n"
        "import beside\n"
        "@dataclass\n"
        "class Options:\n"
        "    name: str = 'x'\n"
        "def load():\n"
        "    print('loading')\n"
        "    return SimpleNamespace(**beside.PARTS, name=Options().name)\n"
    )
    before = list(sys.path)
    found: Any = load_own_codec(f"{tmp_path / 'codec.py'}:load")
    assert (found.analysis, found.synthesis, found.tables, found.name) == (1, 2, 3, "x")
    assert sys.path == before
    assert capsys.readouterr() == ("", "loading\n")


def test_function_of_a_module_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "owned"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "codec.py").write_text("class load:\n    analysis = synthesis = tables = 7\n")
    monkeypatch.chdir(tmp_path)
    found: Any = load_own_codec("owned.codec:load")
    assert found.tables == 7


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def load():\n    return 1/0\n", r"raised ZeroDivisionError: .*\(codec\.py, line 2\)"),
        (
            "import torch\nnet = torch.nn.Conv2d(1, 1, 1)\n"
            "state = torch.nn.DataParallel(net).state_dict()\n"
            "def load():\n    net.load_state_dict(state)\n",
            r"raised RuntimeError: .*torch.nn.DataParallel put 'module.' before .*line 5\)",
        ),
        ("def load():\n    raise KeyError\n", r"raised KeyError \(codec\.py, line 2\)"),
        ("def load():\n    exit(3)\n", "raised SystemExit: 3"),
        ("def load(path):\n    return path\n", "raised TypeError: .*argument: 'path'"),
        ("def other():\n    pass\n", "codec.py: has no function load$"),
        ("load = 3\n", "codec.py: has no function load$"),
        ("import absent_package\n", r"imported, ModuleNotFoundError: .*'absent_package'.*line 1"),
        ("def load(:\n", "cannot be imported, SyntaxError: .*line 1"),
        ("def load():\n    return {}\n", "gives a dict without analysis, synthesis, tables"),
        (
            "class load:\n    analysis = tables = 1\n",
            r"gives a load without synthesis \(docs/own-codec\.md\)",
        ),
        (
            "class load:\n    analysis = synthesis = 1\n"
            "    @property\n    def tables(self):\n        raise ValueError('no\\nscales')\n",
            r"raised ValueError: no scales \(codec\.py, line 5\)",
        ),
    ],
)
def test_what_goes_wrong_in_code_is_told_in_one_line(tmp_path: Path, code: str, said: str) -> None:
    (tmp_path / "codec.py").write_text(code)
    with pytest.raises(ConversionError, match=said) as caught:
        load_own_codec(f"{tmp_path / 'codec.py'}:load")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "codec.py") in str(caught.value)


def test_file_or_module_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConversionError, match=r"absent\.py: no such file"):
        load_own_codec(f"{tmp_path / 'absent.py'}:load")
    for name in ("absent_package", "absent_package.codec"):
        with pytest.raises(ConversionError, match=f"{name}: no such module; a file is named"):
            load_own_codec(f"{name}:load")
    assert main(["convert", "absent_package:load", "-o", str(tmp_path / "b")]) == 1
    assert main(["convert", "codec.pt", "-o", str(tmp_path / "b")]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert sum("no such" in line for line in lines) == 2
    assert not (tmp_path / "b").exists()


def test_codec_without_hyper_latents_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    own = codec()
    monkeypatch.setattr(source, "load_own_codec", lambda text: own)
    read = read_source("own.py:load")
    assert (read.analysis_field, read.synthesis_halo) == (0, 1)
    assert (read.parsed_tables.latent_channels, read.parsed_tables.hyper_channels) == (6, 1)
    photo = np.random.default_rng(2).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    y, z = read.analyse(photo)
    assert (y.shape, z.shape) == ((4, 6, 6), (2, 3, 1))
    assert not z.any()
    x = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        wanted = own.analysis(x)[0].permute(1, 2, 0).numpy()
        assert np.abs(y - wanted).max() < 1e-3
        y_hat = np.rint(y * 16).astype(np.int16)
        given = torch.from_numpy(y_hat / np.float32(16)).permute(2, 0, 1)[None]
        pictures = own.synthesis(given)[0].permute(1, 2, 0).numpy()
    assert np.abs(read.synthesise(y_hat) - pictures).max() < 1e-3


def test_codec_with_hyper_latents_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    source = read(monkeypatch, analysis=WithHyper(), tables=tables().to_bytes())
    _, z = source.analyse(np.full((64, 96, 3), 99, np.uint8))
    assert z.any()
    assert source.tables == tables().to_bytes()


WRONG_NETWORKS: dict[str, tuple[dict[str, Callable[[], Any]], str]] = {
    "function": ({"analysis": lambda: len}, "^analysis: is a builtin_.*, not a torch.nn.Module"),
    "no data": (
        {"synthesis": lambda: synthesis().to("meta")},
        "^synthesis: cannot be moved to the CPU, NotImplementedError: Cannot copy out of meta",
    ),
    "nothing": ({"synthesis": lambda: None}, "^synthesis: is a NoneType, not a torch.nn.Module"),
    "stride": (
        {"analysis": lambda: analysis(stride=8)},
        r"^analysis: y has shape \(1, 6, 8, 12\) for a picture of 64 x 96; the format has one "
        r"per 16 x 16 pixels: \(1, 6, 4, 6\)",
    ),
    "channels": (
        {"analysis": lambda: analysis(channels=7)},
        "^analysis: y has 7 channels, the tables are for 6",
    ),
    "hyper_channels": (
        {"analysis": lambda: WithHyper(2)},
        "^analysis: z has 2 channels, the tables are for 1",
    ),
    "flat": (
        {"analysis": lambda: Lambda(lambda y: y.flatten(1), analysis())},
        r"^analysis: y has shape \(1, 144\)",
    ),
    "dictionary": (
        {"analysis": lambda: Lambda(lambda y: {"y": y}, analysis())},
        "^analysis: returns a dict, no tensor",
    ),
    "three": (
        {"analysis": lambda: Lambda(lambda y: (y, y, y), analysis())},
        "^analysis: returns 3 results, expected y, or y and z",
    ),
    "doubles": (
        {"analysis": lambda: Lambda(lambda y: y.double(), analysis())},
        "^analysis: returns torch.float64, not torch.float32",
    ),
    "refuses": (
        {"synthesis": lambda: synthesis(channels=5)},
        r"^synthesis: fails on float32 of shape \(1, 6, 4, 6\), RuntimeError: .*channels",
    ),
    "picture": (
        {"synthesis": lambda: nn.Sequential(nn.Conv2d(6, 192, 1), nn.PixelShuffle(8))},
        r"^synthesis: makes \(1, 3, 32, 48\) of y_hat \(1, 6, 4, 6\), expected x_hat "
        r"\(1, 3, 64, 96\)",
    ),
}


@pytest.mark.parametrize("name", sorted(WRONG_NETWORKS))
def test_networks_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    parts, said = WRONG_NETWORKS[name]
    with pytest.raises(ConversionError, match=said) as caught:
        read(monkeypatch, **{part: make() for part, make in parts.items()})
    assert "\n" not in str(caught.value)


def test_operation_is_refused_by_name_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(analysis(), nn.Sequential(nn.Sigmoid()))
    with pytest.raises(UnsupportedOpError, match=r"^analysis: operation sigmoid in .*1\.0 \(Sig"):
        read(monkeypatch, analysis=network)


def test_weights_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = synthesis()
    network[0].weight.data[1, 2] = torch.inf
    with pytest.raises(ConversionError, match=r"^synthesis: .*0\.weight is not finite"):
        read(monkeypatch, synthesis=network)
    divided = Lambda(lambda y: y / 0.0, analysis())
    with pytest.raises(ConversionError, match=r"^analysis: .*weight is not finite"):
        read(monkeypatch, analysis=divided)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.to_bytes()[:-1], "^tables: tables.bin is damaged"),
        (lambda t: b"", "^tables: tables.bin is damaged"),
        (
            lambda t: {"w1": t.w1},
            "^tables: a dict, neither edgecodec.format.tables.Tables nor bytes",
        ),
        (lambda t: replace(t, w3=t.w3 * 0.5), "^tables: w3 is float.*, expected int8 of shape"),
        (lambda t: replace(t, b2=t.b2[:3]), r"^tables: b2 is int32 of shape \(3,\), expected"),
        (lambda t: replace(t, index_z=t.index_z * 0), "^tables: .*values of index_z beyond 1..63"),
        (
            lambda t: replace(t, step_y=t.step_y // 20),
            "^tables: a step of 0.0498 is finer than 1/16",
        ),
        (
            lambda t: replace(t, step_y=t.step_y * 0 + 99),
            "^tables: step_y is the same at qualities",
        ),
        (lambda t: replace(t, gain_z=t.gain_z * np.float32(np.nan)), "^tables: gain_z is not fin"),
    ],
)
def test_tables_that_cannot_be_are_refused(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Tables], Any], said: str
) -> None:
    with pytest.raises(ConversionError, match=said) as caught:
        read(monkeypatch, tables=change(tables()))
    assert "\n" not in str(caught.value)


def test_hyper_latents_must_come_from_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    t = tables()
    wide: dict[str, Any] = {
        name: np.repeat(getattr(t, name), 3, 1) for name in ("w1", "step_z", "index_z", "gain_z")
    }
    more = replace(t, **wide)
    with pytest.raises(ConversionError, match=r"^analysis: returns no z, and the tables are for 3"):
        read(monkeypatch, tables=more)


def test_latents_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.full((32, 32, 3), 200, np.uint8)
    network: Any = analysis()
    nn.init.constant_(network[0].weight, 1.0)
    source = read(monkeypatch, analysis=network)
    with pytest.raises(ConversionError, match=r"^analysis: y reaches 153600, y_hat only 2047"):
        source.analyse(photo)
    nn.init.constant_(network[0].weight, 3e38)
    with pytest.raises(ConversionError, match=r"^analysis: gives y or z that is not finite"):
        read(monkeypatch, analysis=network).analyse(photo)
