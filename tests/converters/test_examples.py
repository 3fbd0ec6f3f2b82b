"""The examples of docs/own-codec.md, trained for a moment and taken the whole way."""

from __future__ import annotations

import itertools
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgecodec.bundle.reading import Bundle
from edgecodec.cli import main
from edgecodec.codec import Codec
from edgecodec.converters.sources.source import read_source
from edgecodec.errors import ConversionError
from edgecodec.evaluation.metrics import psnr_rgb

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MANUAL = EXAMPLES.parent / "own-codec.md"
OWN_CODEC = EXAMPLES / "own_codec.py"
COMPRESSAI = EXAMPLES / "compressai_relu.py"
RUNTIMES = ("onnxruntime", "tflite", "torch")


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecodec.converters.checks.judge._BUDGET_S", 0.01)
        patch.setattr("edgecodec.converters.checks.judge.SIZE", (64, 96))
        yield
    torch.set_num_threads(threads)


def picture(seed: int, height: int = 64, width: int = 96) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run_example(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Path, list[Any]], None]]:
    """Run an example as a program, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))

        def run(example: Path, arguments: list[Any]) -> None:
            patch.setattr(sys, "argv", [example.name, *map(str, arguments)])
            runpy.run_path(str(example), run_name="__main__")

        yield run


@pytest.fixture(scope="module")
def trained(run_example: Callable[[Path, list[Any]], None], photos: Path) -> Path:
    run_example(OWN_CODEC, ["train", photos, "--steps", 60, "--size", 64])
    return Path("own_codec.pt").resolve()


@pytest.fixture(scope="module")
def bundle(trained: Path, photos: Path) -> Path:
    out = trained.with_name("own.bundle")
    done = main(
        ["convert", f"{OWN_CODEC}:load_codec", "-o", str(out), "--to", "onnx,tflite",
         "--precision", "fp32,int8", "--calibration", str(photos), "--name", "own"]
    )  # fmt: skip
    assert done == 0
    return out


def test_own_codec_is_written_for_each_target_and_precision(bundle: Path) -> None:
    with Bundle(bundle) as opened:
        made = {(e.target, e.precision, e.stage, e.exact) for e in opened.manifest.artefacts}
        assert len(made) == 2 * 2 * 2 + 2
        assert ("tflite", "int8", "synthesis", True) in made
        assert (opened.manifest.latent_channels, opened.manifest.hyper_channels) == (128, 1)
        assert (opened.manifest.analysis_halo, opened.manifest.synthesis_halo) == (32, 1)


def test_own_codec_makes_files_that_all_runtimes_read_alike(bundle: Path) -> None:
    image = np.asarray(picture(9, 70, 180))
    codecs = [
        Codec(bundle, runtime, precision, threads=1)
        for runtime in RUNTIMES
        for precision in ("fp32", "int8")
        if (runtime, precision) != ("torch", "int8")
    ]
    try:
        files = [codec.encode(image, quality=80, tile=64) for codec in codecs]
        for data in files:
            latents = [codec.decode_latents(data) for codec in codecs]
            assert all(np.array_equal(latents[0], other) for other in latents[1:])
            shown = [np.asarray(codec.decode(data)) for codec in codecs]
            assert all(psnr_rgb(image, pixels) > 26 for pixels in shown)
            pairs = zip(shown, codecs, strict=True)
            one, other = (p for p, c in pairs if c.settings.precision == "int8")
            assert np.array_equal(one, other)
        smaller = codecs[0].encode(image, quality=10)
        assert len(smaller) < 0.7 * len(files[0])
    finally:
        for codec in codecs:
            codec.close()


def test_tiles_of_own_codec_do_not_show(bundle: Path) -> None:
    """The overlap, found from the graphs, is enough."""
    with Codec(bundle, "onnxruntime", "fp32", threads=1) as codec:
        whole, tiled = (codec.encode(picture(6, 128, 192), 70, tile=n) for n in (192, 64))
        latents = [codec.decode_latents(data) for data in (whole, tiled)]
        # Runtimes may add in another order in a picture of another size.
        assert np.mean(latents[0] != latents[1]) < 1e-3
        shown = [np.asarray(codec.decode(data)).astype(int) for data in (whole, tiled)]
        assert np.mean(shown[0] != shown[1]) < 1e-2


def test_own_codec_round_trips_by_the_command_line(bundle: Path, tmp_path: Path) -> None:
    picture(8).save(tmp_path / "photo.png")
    encoded, decoded = tmp_path / "photo.ecx", tmp_path / "decoded.png"
    chosen = ["--bundle", str(bundle), "--backend"]
    assert main(["encode", str(tmp_path / "photo.png"), str(encoded), *chosen, "tflite"]) == 0
    assert main(["decode", str(encoded), str(decoded), *chosen, "onnxruntime"]) == 0
    with Image.open(decoded) as shown:
        assert psnr_rgb(np.asarray(picture(8)), np.asarray(shown)) > 26


def test_hyperprior_is_learned_around_own_codec(
    trained: Path, photos: Path, run_example: Callable[[Path, list[Any]], None]
) -> None:
    run_example(OWN_CODEC, ["fit", photos, "--fit-steps", 3, "--size", 64])
    out = trained.with_name("fitted.bundle")
    code = f"{OWN_CODEC}:load_fitted"
    assert main(["convert", code, "-o", str(out), "--to", "torch"]) == 0
    with Codec(out, "torch", threads=1) as codec:
        assert codec.bundle.manifest.hyper_channels == 24
        data = codec.encode(picture(7), quality=90)
        assert psnr_rgb(np.asarray(picture(7)), np.asarray(codec.decode(data))) > 26


def test_code_of_the_manual_runs(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_research.py").write_text(
        "from torch import nn\n"
        "def Encoder():\n    return nn.Conv2d(3, 7, 16, stride=16)\n"
        "def Decoder():\n    return nn.ConvTranspose2d(7, 3, 16, stride=16)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    first, second = re.findall("```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    networks = {"encoder": nn.Conv2d(3, 7, 16), "decoder": nn.ConvTranspose2d(7, 3, 16)}
    states = {name: network.state_dict() for name, network in networks.items()}
    torch.save({**states, "latents": torch.randn(99, 7)}, "my.pt")
    (tmp_path / "my_codec.py").write_text(first)
    assert read_source("my_codec.py:load_codec").parsed_tables.latent_channels == 7
    assert "192,  # channels" in second
    quick = second.replace("192,", "7,").replace("steps=1000", "size=64, steps=1")
    Path("photos").symlink_to(photos)
    names: dict[str, Any] = {}
    exec(f"{first}\nencoder, decoder = Encoder(), Decoder()\n{quick}", names)
    assert Path("fitted.pt").is_file()
    assert names["codec"].tables.latent_channels == 7


def compressai_state(n: int, m: int) -> dict[str, torch.Tensor]:
    """Entries as a factorized-relu model of CompressAI has them, and some of its prior."""
    state = {"entropy_bottleneck.quantiles": torch.zeros(m, 1, 3)}
    for name, widths in (("g_a", (3, n, n, n, m)), ("g_s", (m, n, n, n, 3))):
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            shape = (after, before) if name == "g_a" else (before, after)
            scale = 0.3 if name == "g_s" else 0.1
            state[f"{name}.{2 * i}.weight"] = torch.randn(*shape, 5, 5) * scale
            state[f"{name}.{2 * i}.bias"] = torch.randn(after)
    return state


def test_compressai_state_becomes_a_source(
    photos: Path,
    run_example: Callable[[Path, list[Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(2)
    state = compressai_state(8, 12)
    torch.save({"state_dict": state}, "model.pth.tar")
    run_example(COMPRESSAI, ["model.pth.tar", photos, "fitted.pt", "--steps", 2, "--size", 64])
    monkeypatch.setenv("FITTED", "fitted.pt")
    source = read_source(f"{COMPRESSAI}:load_codec")
    assert (source.analysis_field, source.synthesis_halo) == (64, 2)
    assert source.parsed_tables.latent_channels == 12
    x = torch.rand(1, 3, 64, 96) * 255
    with torch.inference_mode():
        y = x / 255
        for i in (0, 2, 4, 6):
            y = torch.relu(y) if i else y
            weight, bias = state[f"g_a.{i}.weight"], state[f"g_a.{i}.bias"]
            y = torch.conv2d(y, weight, bias, stride=2, padding=2)
        found, _ = source.modules["analysis"](x)
    unit = torch.load("fitted.pt", weights_only=True)["fitted"]["unit"]
    assert torch.allclose(found, y * unit, rtol=1e-3, atol=1e-4)


def test_compressai_with_gdn_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = {**compressai_state(4, 4), "g_a.1.beta": torch.ones(4), "g_a.1.gamma": torch.eye(4)}
    torch.save({"state": state, "lambda": 0.01, "fitted": {}}, tmp_path / "gdn.pt")
    monkeypatch.setenv("FITTED", str(tmp_path / "gdn.pt"))
    with pytest.raises(ConversionError, match=r"ValueError: .* with ReLU between: g_a\.1\.beta"):
        read_source(f"{COMPRESSAI}:load_codec")
