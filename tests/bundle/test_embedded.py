"""Bundles by name, and files that name the bundle they need."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import edgecodec
from edgecodec import codec as codec_module
from edgecodec.bundle.embedded import (
    bundles_with_tables,
    default_bundle_path,
    embedded_bundles,
    find_bundle,
)
from edgecodec.bundle.manifest import MANIFEST
from edgecodec.bundle.reading import Bundle
from edgecodec.cli import main
from edgecodec.codec import Codec
from edgecodec.errors import BundleError, ConfigError, ModelMismatchError
from edgecodec.format.container import read_header

FAST = ("--backend", "onnxruntime", "--threads", "1")
UInt8Array = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, other_bundle: Path) -> Path:
    """A folder of embedded bundles: the shipped one, one with other tables, and a broken one."""
    folder = tmp_path_factory.mktemp("data")
    ignore = shutil.ignore_patterns("torch", "openvino", "tflite")
    shutil.copytree(default_bundle_path(), folder / "default.bundle", ignore=ignore)
    shutil.copytree(other_bundle, folder / "other.bundle", ignore=ignore)
    (folder / "broken.bundle").mkdir()
    (folder / "broken.bundle" / MANIFEST).write_text("{")
    (folder / "no-bundle").mkdir()
    return folder


@pytest.fixture(scope="module")
def other_file(data: Path, small: UInt8Array) -> bytes:
    with Codec(data / "other.bundle", "onnxruntime", "fp32", 1) as other:
        return other.encode(small, 50)


@pytest.fixture
def only_data(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in place of the package's, and a working folder."""
    monkeypatch.setattr("edgecodec.bundle.embedded.EMBEDDED", data)
    monkeypatch.chdir(tmp_path)
    return data


def test_default_is_embedded_and_first() -> None:
    assert next(iter(embedded_bundles())) == "default"
    with Bundle() as first, Bundle("default") as second:
        assert first.path == second.path == default_bundle_path()


def test_names_are_those_of_the_folder(only_data: Path) -> None:
    assert list(embedded_bundles()) == ["default", "broken", "other"]
    with Bundle("other") as bundle:
        assert bundle.path == only_data / "other.bundle"
    with Bundle() as bundle:
        assert bundle.path == only_data / "default.bundle"


def test_path_that_exists_comes_before_a_name(only_data: Path) -> None:
    shutil.copytree(only_data / "default.bundle", "other")
    assert find_bundle("other") == Path("other")
    assert find_bundle("default") == only_data / "default.bundle"


@pytest.mark.parametrize("name", ["absent", "./default", "../default", "default/", "", "n" * 999])
def test_unknown_name_lists_those_there_are(only_data: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"no such bundle.*: default, broken, other$") as caught:
        Bundle(name or "a\0b")
    assert "\n" not in str(caught.value)


def test_folder_without_bundles_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecodec.bundle.embedded.EMBEDDED", tmp_path)
    with pytest.raises(BundleError, match=r"none$"):
        Bundle("default")
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle()
    assert not bundles_with_tables("0" * 16)


def test_tables_are_found_by_their_manifest(only_data: Path) -> None:
    """And a broken bundle beside them does no harm."""
    for name in ("default", "other"):
        with Bundle(name) as bundle:
            found = bundles_with_tables(bundle.manifest.tables_id)
            assert found == {name: bundle.manifest}
    assert not bundles_with_tables("0" * 16)


def test_decode_takes_the_bundle_that_the_file_names(
    only_data: Path, other_file: bytes, small_file: bytes
) -> None:
    with Codec(None, "onnxruntime", "fp32", 1) as codec:
        assert codec.for_file(small_file) is codec
        assert codec.decode_latents(other_file).dtype == np.int16
        other = codec.for_file(other_file)
        assert other is not codec
        assert other is codec.for_file(other_file)
        assert (other.backend, other.precision, other.threads) == ("onnxruntime", "fp32", 1)
        assert other.bundle.path == only_data / "other.bundle"
        assert not codec._runners
        assert not other._runners
        with Codec("other", "onnxruntime", "fp32", 1) as named:
            assert named.for_file(other_file) is named
            expected = np.asarray(named.decode(other_file))
        assert (np.asarray(codec.decode(other_file)) == expected).all()
        assert not codec._runners  # no graph of the default bundle was loaded
    with pytest.raises(ConfigError, match="closed"):
        codec.decode(other_file)
    with pytest.raises(ConfigError, match="closed"):
        other.decode(other_file)


def test_bundle_that_was_named_is_the_only_one(
    only_data: Path, other_file: bytes, small_file: bytes
) -> None:
    with Bundle(only_data / "default.bundle") as opened:
        for bundle in ("default", only_data / "default.bundle", opened):
            with Codec(bundle, "onnxruntime") as codec:
                with pytest.raises(ModelMismatchError) as caught:
                    codec.decode(other_file)
                assert caught.value.expected == read_header(other_file).tables_id
                assert caught.value.found == read_header(small_file).tables_id
                assert codec.for_file(other_file) is codec


def test_file_that_no_bundle_reads_names_both(data: Path, other_file: bytes) -> None:
    with Codec(None, "onnxruntime") as codec, pytest.raises(ModelMismatchError) as caught:
        codec.decode(other_file)
    assert caught.value.expected == read_header(other_file).tables_id
    assert caught.value.found == codec.bundle.manifest.tables_id


def test_command_line_encodes_by_name_and_decodes_without(
    only_data: Path, small: UInt8Array, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(small).save("photo.png")
    assert main(["encode", "photo.png", "x.ecx", "--bundle", "other", *FAST]) == 0
    with Bundle("other") as other:
        assert read_header(Path("x.ecx").read_bytes()).tables_id == other.manifest.tables_id
    assert main(["decode", "x.ecx", "x.png", *FAST]) == 0
    assert main(["decode", "x.ecx", "y.png", "--bundle", "other", *FAST]) == 0
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()
    capfd.readouterr()
    assert main(["decode", "x.ecx", "z.png", "--bundle", "default", *FAST]) == 1
    with Bundle() as default:
        assert default.manifest.tables_id in capfd.readouterr().err
    assert main(["decode", "x.ecx", "z.png", "--bundle", "absent", *FAST]) == 1
    assert capfd.readouterr().err.splitlines() == [
        "edgecodec: absent: no such bundle; give its path, or the name of an embedded one: "
        "default, broken, other"
    ]


def test_functions_of_the_package_decode_any_embedded_model(
    only_data: Path, other_file: bytes, small: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Codec(None, "onnxruntime", "fp32", 1) as codec:
        monkeypatch.setattr(codec_module, "_default", {"codec": codec})
        assert edgecodec.decode(other_file).size == small.shape[1::-1]


def test_bundles_of_equal_tables_are_named(
    only_data: Path,
    small_file: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("x.ecx").write_bytes(small_file)
    assert main(["info", "x.ecx"]) == 0
    assert "of the embedded bundle default\n" in capfd.readouterr().out
    with Bundle() as default:
        own = default.manifest
    with caplog.at_level("INFO"):
        assert main(["-v", "decode", "x.ecx", "x.png", *FAST]) == 0
    assert f"tables {own.tables_id}, model {own.model_id}" in caplog.text
    assert "same tables" not in capfd.readouterr().err

    data = tmp_path / "data"
    shutil.copytree(only_data / "default.bundle", data / "default.bundle")
    twin = data / "twin.bundle"
    shutil.copytree(only_data / "default.bundle", twin)
    manifest = replace(own, model_id="f" * 16)
    (twin / MANIFEST).write_text(manifest.to_json())
    monkeypatch.setattr("edgecodec.bundle.embedded.EMBEDDED", data)
    assert main(["info", "x.ecx"]) == 0
    assert "of the embedded bundles default, twin; " in capfd.readouterr().out
    assert main(["info", "--json", "x.ecx"]) == 0
    assert json.loads(capfd.readouterr().out)["bundles"] == ["default", "twin"]
    for chosen, other in (("default", "twin"), ("twin", "default")):
        command = ["decode", "-f", "x.ecx", "x.png", "--bundle", chosen, *FAST]
        assert main(command) == 0
        (line,) = [n for n in capfd.readouterr().err.splitlines() if "same tables" in n]
        assert f"decoded with {chosen}; " in line
        assert f"networks: {other} (" in line
