"""The check that runs on a device: it passes here, and fails when something is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecodec.bundle import Bundle
from edgecodec.codec import Codec
from edgecodec.container import Header, write_container
from edgecodec.device_tests.conformance import (
    Pair,
    _same_bytes,
    check_conformance,
    open_backends,
)
from edgecodec.entropy import LatentCoder
from edgecodec.errors import ConfigError, UnknownPluginError
from edgecodec.runtimes.registry import backend_names
from tests.streams import symbols


@pytest.fixture
def photo_file(tmp_path: Path, small: npt.NDArray[np.uint8]) -> Path:
    Image.fromarray(small).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_this_machine_conforms(shipped: Bundle, photo_file: Path) -> None:
    report = check_conformance([photo_file], [5, 95], bundle=shipped, tile=32, threads=1)
    assert report.passed, report.text()
    working = set(backend_names()) - set(report.skipped)
    assert {(p.encoder, p.decoder) for p in report.pairs} == {
        (a, b) for a in working for b in working
    }
    assert all(p.files == 2 and p.latents > 0 for p in report.pairs)
    assert report.coder_files == 2 * len(working)
    assert report.to_dict()["passed"] is True
    assert report.text().endswith("passed")


def test_backends_that_are_not_here_are_told(
    shipped: Bundle, photo_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.errors import BackendUnavailableError

    choice = Codec.choice

    def absent(self: Codec, stage: Any) -> Any:
        if self.backend == "openvino":
            raise BackendUnavailableError("openvino", "not installed")
        return choice(self, stage)

    monkeypatch.setattr(Codec, "choice", absent)
    report = check_conformance(
        [photo_file], [50], bundle=shipped, backends=["onnxruntime", "openvino"]
    )
    assert report.passed
    assert report.skipped == {"openvino": "openvino: not installed"}
    assert "openvino: not here (openvino: not installed)" in report.text()


def test_no_backend_at_all_does_not_pass(
    shipped: Bundle, photo_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.errors import BackendError

    def broken(self: Codec, stage: Any) -> Any:
        raise BackendError(self.backend, "broken")

    monkeypatch.setattr(Codec, "choice", broken)
    report = check_conformance([photo_file], [50], bundle=shipped)
    assert not report.passed
    assert report.text().endswith("FAILED")


def test_unknown_backend_is_no_backend_that_is_missing(shipped: Bundle) -> None:
    with pytest.raises(UnknownPluginError):
        open_backends(shipped, ["cuda"])


def test_file_that_is_no_image_is_a_config_error(shipped: Bundle, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"x\.png"):
        check_conformance(
            [tmp_path / "x.png"], [50], bundle=shipped, backends=["onnxruntime"], threads=1
        )


def test_a_latent_that_differs_fails(
    shipped: Bundle, photo_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_latents = Codec.decode_latents

    def wrong(self: Codec, data: bytes) -> npt.NDArray[np.int16]:
        latents = decode_latents(self, data)
        if self.backend == "onnxruntime":
            latents[0, 0, 0] += 1
        return latents

    monkeypatch.setattr(Codec, "decode_latents", wrong)
    report = check_conformance(
        [photo_file], [50], bundle=shipped, backends=["onnxruntime"], threads=1
    )
    assert not report.passed
    assert report.pairs[0].latent_mismatches == 1
    assert "FAILED" in report.text()


def test_pixels_off_by_two_fail() -> None:
    assert Pair("a", "b", 1, 10, 0, 1, 0.5).passed
    assert not Pair("a", "b", 1, 10, 0, 2, 0.1).passed
    assert not Pair("a", "b", 1, 10, 1, 0, 0.0).passed


def test_entropy_coders_that_differ_fail(
    shipped: Bundle, photo_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = LatentCoder.encode

    def wrong(self: LatentCoder, *args: Any) -> bytes:
        data = encode(self, *args)
        return data + b"\0" if self.implementation == "numpy" else data

    monkeypatch.setattr(LatentCoder, "encode", wrong)
    report = check_conformance(
        [photo_file], [50], bundle=shipped, backends=["onnxruntime"], threads=1
    )
    assert report.coder_mismatches == 1
    assert not report.passed


def test_symbols_are_found_again_from_latents(core: LatentCoder, twin: LatentCoder) -> None:
    """Context included: each symbol is found with the mu that the ones before it make."""
    header = Header(64, 96, "RGB", 60, 64, "00" * 8)
    parts = [symbols(core, seed, 60, rows, 2, 0.0) for seed, rows in ((1, 2), (2, 1))]
    good = [part.encode(core) for part in parts]
    assert _same_bytes([core, twin], write_container(header, good))
    other = replace(header, quality=61)
    assert not _same_bytes([core, twin], write_container(other, good))


def test_golden_file_that_decodes_otherwise_fails(
    shipped: Bundle, photo_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = shipped.golden()
    golden["y_hat"] = golden["y_hat"] + np.int16(1)
    monkeypatch.setattr(shipped, "golden", lambda: golden)
    report = check_conformance(
        [photo_file], [50], bundle=shipped, backends=["onnxruntime"], threads=1
    )
    assert report.golden_mismatches == golden["y_hat"].size
    assert not report.passed
