"""Golden files hold: where one of these tests fails, the format is broken, not the test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.device_tests.conformance.kit import (
    BREAK,
    BUNDLE,
    INDEX,
    KIT,
    check_kit,
    digest_of,
    open_pictures,
)
from edgecodec.errors import EdgeCodecError
from edgecodec.format.coder import LatentCoder
from edgecodec.format.container import read_container
from edgecodec.runtimes.registry import backend_names
from edgecodec.runtimes.selection.selector import shared
from tests.support.make_kit import KIT_TILE


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The model and three files of the kit, to be changed."""
    index = json.loads((KIT / INDEX).read_text())
    index["files"] = {name: index["files"][name] for name in ("one", "grey", "xmp")}
    (tmp_path / INDEX).write_text(json.dumps(index))
    for name in (BUNDLE, *(f"{f}{s}" for f in index["files"] for s in (".ecx", ".png"))):
        shutil.copy(KIT / name, tmp_path / name)
    return tmp_path


def change(folder: Path, name: str, key: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["files"][name][key] = "0" * 64
    (folder / INDEX).write_text(json.dumps(index))


def test_golden_files_still_hold() -> None:
    """Every file, every coder, every backend and precision that works here."""
    report = check_kit(threads=1)
    assert report.passed, report.text()
    assert report.files == len(list(KIT.glob("*.ecx"))) >= 24
    working = {label.split()[0] for label in report.worst}
    refused = {label.split()[0] for label in report.skipped}
    assert working | refused >= set(backend_names())
    assert report.text().endswith("kit passed")


def test_kit_covers_the_container() -> None:
    files = [read_container(path.read_bytes()) for path in KIT.glob("*.ecx")]
    assert {f.header.mode for f in files} == {"RGB", "L"}
    assert {f.header.quality for f in files} >= {1, 100}
    assert {k for f in files for k in f.metadata} == {"icc_profile", "exif", "xmp"}
    assert max(f.header.tile_count for f in files) > 1
    assert any((f.header.width, f.header.height) == (1, 1) for f in files)
    assert any(f.header.width % 32 and f.header.height % 32 for f in files)
    assert any(b"kitX" in path.read_bytes() for path in KIT.glob("*.ecx"))


def test_kit_does_not_depend_on_the_shipped_models() -> None:
    index = json.loads((KIT / INDEX).read_text())
    with Bundle(KIT / BUNDLE) as own, Bundle() as shipped:
        assert own.manifest.tables_id == index["tables_id"] != shipped.manifest.tables_id
        made_with = {read_container(p.read_bytes()).header.tables_id for p in KIT.glob("*.ecx")}
        assert made_with == {own.manifest.tables_id}


def test_kit_is_small() -> None:
    assert sum(path.stat().st_size for path in KIT.iterdir()) < 400_000


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("sha256", "is not the file that was made"),
        ("latents", "other latents, coder numpy"),
        ("int8_pixels", "other int8 pixels, onnxruntime int8"),
    ],
)
def test_changed_hash_is_a_format_break(copy: Path, key: str, what: str) -> None:
    change(copy, "grey", key)
    report = check_kit(copy, ["onnxruntime"], threads=1)
    assert not report.passed
    assert f"{BREAK}: grey.ecx" in report.text()
    assert what in report.text()
    assert report.text().endswith("kit FAILED")


def wrong_latents(self: LatentCoder, *args: Any) -> Any:
    z, y_hat = decode(self, *args)
    return z, y_hat + np.int16(16)


def wrong_bytes(self: LatentCoder, *args: Any) -> bytes:
    return encode(self, *args) + b"\0"


def refuse(self: LatentCoder, *args: Any) -> Any:
    raise EdgeCodecError("no such thing")


decode, encode = LatentCoder.decode, LatentCoder.encode


@pytest.mark.parametrize(
    ("method", "broken", "what"),
    [
        ("decode", wrong_latents, "other latents"),
        ("decode", refuse, "one.ecx: no such thing"),
        ("encode", wrong_bytes, "its latents make other bytes"),
        ("encode", wrong_bytes, "makes other bytes of the same analysis"),
    ],
)
def test_code_that_changes_the_format_is_told(
    copy: Path, monkeypatch: pytest.MonkeyPatch, method: str, broken: Callable[..., Any], what: str
) -> None:
    monkeypatch.setattr(LatentCoder, method, broken)
    report = check_kit(copy, ["onnxruntime"], threads=1)
    assert not report.passed
    assert BREAK in report.text()
    assert what in report.text()


def test_pixels_of_float_graphs_are_compared_with_the_reference(copy: Path) -> None:
    with Image.open(copy / "xmp.png") as image:
        pixels = np.array(image)
    pixels[5, 0, 1] ^= 2
    Image.fromarray(pixels).save(copy / "xmp.png")
    report = check_kit(copy, ["onnxruntime"], threads=1)
    assert any("xmp.ecx: pixels off by" in line for line in report.problems)


def test_refused_backend_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime whose int8 answers are wrong is told, and float32 checked all the same."""
    shared.clear()  # what has been proven is not proven again
    right = Bundle.golden

    def golden(self: Bundle) -> dict[str, npt.NDArray[Any]]:
        arrays = right(self)
        return {**arrays, "x_hat_int8": arrays["x_hat_int8"] ^ np.uint8(1)}

    monkeypatch.setattr(Bundle, "golden", golden)
    report = check_kit(copy, ["onnxruntime"], threads=1)
    assert set(report.worst) == {"onnxruntime fp32", "onnxruntime fp16"}
    assert "onnxruntime int8 synthesis: not used" in report.text()
    assert "differs from the reference by up to 1 levels" in report.text()
    assert report.passed


def test_missing_kit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EdgeCodecError, match="no conformance kit"):
        check_kit(tmp_path)


def test_digest_sees_shape_and_type() -> None:
    values = np.arange(6, dtype=np.int16)
    digests = {digest_of(a) for a in (values, values.reshape(2, 3), values.astype(np.int32))}
    assert len(digests) == 3
    assert digest_of(values.astype(">i2")) == digest_of(values)


def test_pictures_never_change() -> None:
    """Integer arithmetic alone, so that every machine compares the same files."""
    pictures = open_pictures()
    assert digest_of(pictures["noise"])[:16] == "e79ba55118653438"
    assert pictures["one"].shape == (1, 1, 3)
    assert pictures["grey"].ndim == 2


def test_files_are_of_the_pictures() -> None:
    """The golden `one` is that picture encoded: pictures, model and files belong together."""
    with Codec(KIT / BUNDLE, "onnxruntime", "fp32", threads=1) as codec:
        for name, quality in (("one", 50), ("black", 1), ("grey", 60)):
            data = codec.encode(open_pictures()[name], quality, tile=KIT_TILE)
            assert data == (KIT / f"{name}.ecx").read_bytes()
