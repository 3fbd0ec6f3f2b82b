"""The classical codecs through Pillow, and the reading of pictures."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from edgecodec.arrays import UInt8Array
from edgecodec.coding.image_files import Plugin
from edgecodec.errors import (
    BackendUnavailableError,
    BitstreamError,
    ConfigError,
    UnknownPluginError,
)
from edgecodec.evaluation.classical import (
    AVIF,
    CLASSICAL,
    JPEG,
    JXL,
    ClassicalCodec,
    classical_codec,
)
from edgecodec.evaluation.metrics import psnr_rgb

DEMO = Path(__file__).parents[2] / "edgecodec" / "data" / "demo.png"


@pytest.fixture(scope="module")
def photo() -> UInt8Array:
    with Image.open(DEMO) as image:
        return np.asarray(image.convert("RGB"))[100:240, 150:310]


@pytest.fixture(params=list(CLASSICAL))
def codec(request: pytest.FixtureRequest) -> ClassicalCodec:
    found = CLASSICAL[request.param]
    if not found.available():
        pytest.skip(f"this Pillow lacks {found.name}")
    return found


def test_encode_makes_a_file_that_decode_reads(codec: ClassicalCodec, photo: UInt8Array) -> None:
    data = codec.encode(photo, 80)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == codec.name.upper()
    decoded = codec.decode(data)
    assert decoded.dtype == np.uint8
    assert decoded.shape == photo.shape
    assert psnr_rgb(photo, decoded) > 28
    assert codec.encode(photo, 80) == data


def test_sweep_rises_in_rate_and_quality(codec: ClassicalCodec, photo: UInt8Array) -> None:
    assert len(codec.qualities) >= 12
    assert list(codec.qualities) == sorted(set(codec.qualities))
    files = [codec.encode(photo, quality) for quality in codec.qualities[::4]]
    assert [len(f) for f in files] == sorted(len(f) for f in files)
    quality = [psnr_rgb(photo, codec.decode(f)) for f in files]
    assert quality == sorted(quality)


def test_settings_name_library_and_options(codec: ClassicalCodec) -> None:
    assert codec.settings.startswith(codec.name)
    assert "Pillow" in codec.settings
    assert f"{codec.options[0][0]}={codec.options[0][1]}" in codec.settings
    assert "unknown" not in codec.settings


def test_decode_refuses_damaged_data(codec: ClassicalCodec, photo: UInt8Array) -> None:
    data = codec.encode(photo, 50)
    for damaged in (b"", b"not an image", data[:20], data[: len(data) // 3]):
        with pytest.raises(BitstreamError, match=codec.name):
            codec.decode(damaged)


def test_encode_refuses_what_is_no_rgb_image(codec: ClassicalCodec, photo: UInt8Array) -> None:
    with pytest.raises(ConfigError):
        codec.encode(photo[..., 0], 50)


def test_avif_never_encodes_with_one_thread(
    monkeypatch: pytest.MonkeyPatch, photo: UInt8Array
) -> None:
    if not AVIF.available():
        pytest.skip("this Pillow lacks avif")
    expected = AVIF.encode(photo, 20)
    for cpus in (1, 3, None):
        monkeypatch.setattr("os.cpu_count", lambda cpus=cpus: cpus)
        assert AVIF.encode(photo, 20) == expected


def test_classical_codec_tells_unknown_from_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert classical_codec("jpeg") is JPEG
    with pytest.raises(UnknownPluginError, match="jpeg, webp, avif"):
        classical_codec("heic")
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(BackendUnavailableError, match="Pillow"):
        classical_codec("avif")
    with pytest.raises(BackendUnavailableError):
        JPEG.decode(b"")


def test_plugin_that_is_missing_or_broken_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugin = replace(JXL, plugin=Plugin("edgecodec_no_such_plugin", "no-such-plugin"))
    assert not plugin.available()
    with pytest.raises(BackendUnavailableError, match="pip install no-such-plugin"):
        plugin.encode(np.zeros((8, 8, 3), np.uint8), 50)
    (tmp_path / "edgecodec_broken_plugin.py").write_text("raise OSError('no library')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not replace(JXL, plugin=Plugin("edgecodec_broken_plugin", "x")).available()


def test_device_side_modules_import_no_heavy_package() -> None:
    code = (
        "import sys, edgecodec.evaluation.page\n"
        "heavy = {'torch', 'scipy', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
