"""The check that runs on a device: it passes here, and fails when something is wrong."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecodec.bundle.manifest import PRECISIONS
from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.device_tests.conformance.kit import kit_model
from edgecodec.device_tests.conformance.matrix import (
    ConformanceReport,
    Pair,
    check_conformance,
    open_backends,
    same_bytes,
)
from edgecodec.errors import UnknownPluginError
from edgecodec.format.coder import LatentCoder, core_available
from edgecodec.format.container import Header, write_container
from edgecodec.runtimes.backends import openvino_backend
from edgecodec.runtimes.backends.openvino_backend import OpenVinoBackend
from edgecodec.runtimes.registry import backend_names
from tests.runtimes.conftest import with_bf16
from tests.support.streams import symbols

Pictures = dict[str, npt.NDArray[np.uint8]]


@pytest.fixture
def pictures(small: npt.NDArray[np.uint8]) -> Pictures:
    return {"photo.png": small}


def test_this_machine_conforms(shipped: Bundle, pictures: Pictures) -> None:
    report = check_conformance(pictures, [5, 95], bundle=shipped, tile=32, threads=1)
    assert report.passed, report.text()
    absent = {skipped.rpartition(" ")[0] for skipped in report.skipped}
    working = {f"{name} fp32" for name in backend_names()} - absent
    assert {(p.encoder, p.decoder) for p in report.pairs} == {
        (a, b) for a in working for b in working
    }
    assert all(p.files == 2 and p.latents > 0 for p in report.pairs)
    assert report.coder_files in range(2, 2 * len(working) + 1)
    assert report.to_dict()["passed"] is True
    assert report.text().endswith("passed")


def test_backends_that_are_not_here_are_told(
    shipped: Bundle, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.errors import BackendUnavailableError

    choice = Codec.choice

    def absent(self: Codec, stage: Any) -> Any:
        if self.settings.backend == "openvino":
            raise BackendUnavailableError("openvino", "not installed")
        return choice(self, stage)

    monkeypatch.setattr(Codec, "choice", absent)
    report = check_conformance(pictures, [50], bundle=shipped, backends=["onnxruntime", "openvino"])
    assert report.passed
    assert report.skipped == {
        f"openvino fp32 {stage}": "openvino: not installed" for stage in ("analysis", "synthesis")
    }
    assert "openvino fp32 analysis: not used (openvino: not installed)" in report.text()


def test_no_backend_at_all_does_not_pass(
    shipped: Bundle, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.errors import BackendError

    def broken(self: Codec, stage: Any) -> Any:
        raise BackendError(self.settings.backend, "broken")

    monkeypatch.setattr(Codec, "choice", broken)
    report = check_conformance(pictures, [50], bundle=shipped)
    assert not report.passed
    assert report.text().endswith("FAILED")


def test_one_entropy_coder_may_do(shipped: Bundle, pictures: Pictures) -> None:
    report = check_conformance(
        pictures, [50], bundle=shipped, backends=["onnxruntime"], threads=1, twin=False
    )
    assert report.passed
    assert report.coder_files is None
    alone = "c" if core_available() else "numpy"
    assert f"entropy coder: {alone} alone" in report.text()


def test_unknown_backend_is_no_backend_that_is_missing(shipped: Bundle) -> None:
    with pytest.raises(UnknownPluginError):
        open_backends(shipped, ExitStack(), ["cuda"])


def test_a_latent_that_differs_fails(
    shipped: Bundle, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_latents = Codec.decode_latents

    def wrong(self: Codec, data: bytes) -> npt.NDArray[np.int16]:
        latents = decode_latents(self, data)
        if self.settings.backend == "onnxruntime":
            latents[0, 0, 0] += 1
        return latents

    monkeypatch.setattr(Codec, "decode_latents", wrong)
    report = check_conformance(pictures, [50], bundle=shipped, backends=["onnxruntime"], threads=1)
    assert not report.passed
    assert report.pairs[0].latent_mismatches == 1
    assert "FAILED" in report.text()
    assert "1/0!" in report.text()


def test_pixels_off_by_two_fail() -> None:
    assert Pair("a", "b", 1, 10, 0, 1, 0.5).passed
    assert not Pair("a", "b", 1, 10, 0, 2, 0.1).passed
    assert not Pair("a", "b", 1, 10, 1, 0, 0.0).passed
    assert not Pair("a", "b", 1, 10, 0, 1, 0.1, allowed=0).passed


def test_entropy_coders_that_differ_fail(
    shipped: Bundle, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = LatentCoder.encode

    def wrong(self: LatentCoder, *args: Any) -> bytes:
        data = encode(self, *args)
        return data + b"\0" if self.implementation == "numpy" else data

    monkeypatch.setattr(LatentCoder, "encode", wrong)
    report = check_conformance(pictures, [50], bundle=shipped, backends=["onnxruntime"], threads=1)
    assert report.coder_mismatches == 1
    assert not report.passed


def test_symbols_are_found_again_from_latents(core: LatentCoder, twin: LatentCoder) -> None:
    """Context included: each symbol is found with the mu that the ones before it make."""
    header = Header(64, 96, "RGB", 60, 64, "00" * 8)
    parts = [symbols(core, seed, 60, rows, 2, 0.0) for seed, rows in ((1, 2), (2, 1))]
    good = [part.encode(core) for part in parts]
    assert same_bytes([core, twin], write_container(header, good))
    other = replace(header, quality=61)
    assert not same_bytes([core, twin], write_container(other, good))


def test_golden_file_that_decodes_otherwise_fails(
    shipped: Bundle, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = shipped.golden()
    golden["y_hat"] = golden["y_hat"] + np.int16(1)
    monkeypatch.setattr(shipped, "golden", lambda: golden)
    report = check_conformance(pictures, [50], bundle=shipped, backends=["onnxruntime"], threads=1)
    assert report.golden_mismatches == golden["y_hat"].size
    assert not report.passed


def test_matrix_holds_every_precision_and_int8_to_the_same_pixels(pictures: Pictures) -> None:
    report = check_conformance(
        pictures, [70], bundle=kit_model(), precisions=PRECISIONS, tile=32, threads=1
    )
    assert report.passed, report.text()
    names = {p.decoder for p in report.pairs}
    assert {f"onnxruntime {precision}" for precision in ("fp32", "fp16", "int8")} <= names
    assert len(report.pairs) == len(names) ** 2
    for pair in report.pairs:
        assert pair.allowed == {"fp32": 1, "fp16": 8, "int8": 0}[pair.decoder.split()[1]]
    header = report.text().splitlines()
    assert any(line.startswith("made on, read on") for line in header)
    assert report.to_dict()["device"]["packages"]["onnxruntime"]


def openvino_matrix(
    pictures: Pictures, folder: Path, precisions: tuple[str, ...]
) -> ConformanceReport:
    """Return the matrix of OpenVINO alone, for the kit's bundle with bf16 beside the rest."""
    with Bundle(kit_model()) as kit, Bundle(with_bf16(kit, folder / "b.bundle")) as bundle:
        return check_conformance(
            pictures,
            [70],
            bundle=bundle,
            backends=["openvino"],
            precisions=precisions,
            tile=32,
            threads=1,
            twin=False,
        )


def test_matrix_holds_bf16_to_a_bound_of_its_own(pictures: Pictures, tmp_path: Path) -> None:
    """Whatever the order they are named in, pixels are compared with those of fp32."""
    if OpenVinoBackend().lacks("bf16"):
        pytest.skip("this processor has no bfloat16")
    report = openvino_matrix(pictures, tmp_path, ("bf16", "fp32"))
    assert report.passed, report.text()
    found = {p.decoder: (p.latent_mismatches, p.allowed) for p in report.pairs}
    assert found == {"openvino bf16": (0, 8), "openvino fp32": (0, 1)}
    assert {p.max_pixel_difference > 0 for p in report.pairs if "bf16" in p.decoder} == {True}
    assert {p.max_pixel_difference for p in report.pairs if "fp32" in p.decoder} == {0}


def test_matrix_tells_why_bf16_is_not_used(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_backend, "_numbers", lambda core: ["FP32"])
    report = openvino_matrix(pictures, tmp_path, PRECISIONS)
    assert report.passed, report.text()
    assert set(report.skipped) == {"openvino bf16 analysis", "openvino bf16 synthesis"}
    assert "bf16 needs a CPU with bfloat16" in report.text()


def test_int8_pixel_that_differs_fails(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Codec.decode

    def wrong(self: Codec, data: bytes) -> Any:
        image = decode(self, data)
        if (self.settings.backend, self.settings.precision) == ("tflite", "int8"):
            pixels = np.array(image)
            pixels[2, 3, 0] ^= 1
            return Image.fromarray(pixels)
        return image

    monkeypatch.setattr(Codec, "decode", wrong)
    report = check_conformance(
        pictures,
        [70],
        bundle=kit_model(),
        backends=["onnxruntime", "tflite"],
        precisions=["int8"],
        threads=1,
    )
    assert not report.passed
    assert {p.decoder for p in report.pairs if not p.passed} == {"tflite int8"}
    assert "0/1!" in report.text()


def test_backend_that_only_decodes_is_a_column_without_a_row(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecodec.errors import BackendError

    choice = Codec.choice

    def no_analysis(self: Codec, stage: Any) -> Any:
        if (self.settings.precision, stage) == ("int8", "analysis"):
            raise BackendError(self.settings.backend, "wrong answers")
        return choice(self, stage)

    monkeypatch.setattr(Codec, "choice", no_analysis)
    report = check_conformance(
        pictures,
        [70],
        bundle=kit_model(),
        backends=["onnxruntime"],
        precisions=["fp32", "int8"],
        threads=1,
    )
    assert report.passed, report.text()
    assert {p.encoder for p in report.pairs} == {"onnxruntime fp32"}
    assert {p.decoder for p in report.pairs} == {"onnxruntime fp32", "onnxruntime int8"}
    assert "onnxruntime int8 analysis: not used (onnxruntime: wrong answers)" in report.text()
