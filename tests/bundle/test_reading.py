"""Bundles: what is missing, damaged or foreign is refused, with a reason."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgecodec.bundle.embedded import default_bundle_path
from edgecodec.bundle.manifest import MANIFEST, ArtefactEntry, Manifest
from edgecodec.bundle.parts import SUFFIX
from edgecodec.bundle.reading import TABLES, Bundle, short_id
from edgecodec.bundle.writing import hash_files, writing_bundle
from edgecodec.codec import Codec
from edgecodec.errors import BundleError
from edgecodec.format.tables import Tables


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the shipped bundle without its graphs, to be damaged."""
    path = tmp_path / "a.bundle"
    ignore = shutil.ignore_patterns("torch", "onnx", "openvino", "tflite")
    shutil.copytree(default_bundle_path(), path, ignore=ignore)
    return path


def pack(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return target


def change_manifest(path: Path, **values: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **values}))


def test_shipped_bundle_is_whole(shipped: Bundle) -> None:
    """Every file is there, unchanged, listed; every artefact has both stages."""
    manifest = shipped.manifest
    stored = hash_files(shipped.root)
    in_parts = {name.removesuffix(SUFFIX) for name in stored if name.endswith(SUFFIX)}
    assert manifest.files.keys() == stored.keys() | in_parts
    assert stored.items() <= manifest.files.items()
    for name in manifest.files:
        assert shipped.file(name).is_file()
    assert short_id(shipped.tables()) == manifest.tables_id
    parsed = Tables.from_bytes(shipped.tables())
    assert parsed.latent_channels == manifest.latent_channels
    assert parsed.hyper_channels == manifest.hyper_channels
    kinds = {(e.target, e.precision) for e in manifest.artefacts}
    assert {(e.stage, e.target, e.precision) for e in manifest.artefacts} == {
        (stage, *kind) for stage in ("analysis", "synthesis") for kind in kinds
    }
    assert all(shipped.artefact_file(e).is_file() for e in manifest.artefacts)


def test_golden_file_decodes_to_the_golden_latents(shipped: Bundle) -> None:
    golden = shipped.golden()
    for coder in ("c", "numpy"):
        with Codec(shipped, entropy_coder=coder) as codec:
            y_hat = codec.decode_latents(golden["file"].tobytes())
            assert (y_hat == golden["y_hat"]).all()


def test_manifest_round_trip(shipped: Bundle) -> None:
    text = shipped.manifest.to_json()
    again = Manifest.from_json(text, "x")
    assert again == shipped.manifest
    assert all(isinstance(entry, ArtefactEntry) for entry in again.artefacts)


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="neither a folder nor a zip file"):
        Bundle(tmp_path / "pipe")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": 1}',
        '{"format": 2}',
        '{"format": "1"}',
        '{"format": 1, "artefacts": 3}',
        '{"format": 1, "artefacts": [{}]}',
        "\ufffd",
        pytest.param("[" * 200_000, id="deep"),
    ],
)
def test_manifest_that_is_none(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"a\.bundle") as caught:
        Bundle(copy)
    assert "\n" not in str(caught.value)


def test_manifest_that_is_not_text(copy: Path) -> None:
    (copy / MANIFEST).write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle(copy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 3),
        ("tables_id", None),
        ("latent_channels", "128"),
        ("latent_channels", 0),
        ("hyper_channels", 1.5),
        ("latent_stride", 17),
        ("hyper_stride", 64),
        ("hyper_stride", True),
        ("analysis_halo", 65),
        ("analysis_halo", -32),
        ("synthesis_halo", -1),
        ("artefacts", None),
        ("calibration", []),
        ("files", ["a"]),
        ("files", {"tables.bin": None}),
        ("something_new", 1),
    ],
)
def test_manifest_with_impossible_values(copy: Path, name: str, value: Any) -> None:
    change_manifest(copy, **{name: value})
    with pytest.raises(BundleError, match="manifest"):
        Bundle(copy)


@pytest.mark.parametrize("field", ["stage", "path", "bytes", "exact", "operators"])
def test_artefact_entry_of_wrong_kind(copy: Path, field: str) -> None:
    entries = json.loads((copy / MANIFEST).read_text())["artefacts"]
    entries[0][field] = [1]
    change_manifest(copy, artefacts=entries)
    with pytest.raises(BundleError, match=field):
        Bundle(copy)


@pytest.mark.parametrize("name", [TABLES, "golden.npz"])
def test_damaged_file_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    bundle = Bundle(copy)
    with pytest.raises(BundleError, match=rf"{name} is damaged"):
        bundle.file(name)
    if name == TABLES:
        with pytest.raises(BundleError, match="damaged"):
            Codec(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match="missing"):
        bundle.file(name)


def test_missing_graph_is_named(copy: Path) -> None:
    bundle = Bundle(copy)
    with pytest.raises(BundleError, match="is missing"):
        bundle.artefact_file(bundle.manifest.artefacts[0])


def test_tables_of_another_model_are_refused(copy: Path) -> None:
    change_manifest(copy, tables_id="0123456789abcdef")
    with pytest.raises(BundleError, match="not the one the manifest names"):
        Codec(copy)


def test_channels_that_disagree_with_the_tables_are_refused(copy: Path, shipped: Bundle) -> None:
    change_manifest(copy, latent_channels=shipped.manifest.latent_channels + 1)
    with pytest.raises(BundleError, match="channels"):
        Codec(copy)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "absent", "", MANIFEST])
def test_only_listed_files_are_given_out(copy: Path, name: str) -> None:
    with pytest.raises(BundleError, match="lists no file"):
        Bundle(copy).file(name)


def test_manifest_cannot_list_files_outside(copy: Path) -> None:
    (copy.parent / "secret").write_bytes(b"x")
    files = {"../secret": "0" * 64, str(copy.parent / "secret"): "0" * 64}
    change_manifest(copy, files=files)
    for name in files:
        with pytest.raises(BundleError, match="lists no file"):
            Bundle(copy).file(name)


def test_zip_is_as_good_as_a_folder(copy: Path, scratch: Path, shipped: Bundle) -> None:
    with Bundle(pack(copy, copy.with_suffix(".zip"))) as bundle:
        assert bundle.manifest == shipped.manifest
        assert bundle.tables() == shipped.tables()
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())


def test_codec_closes_what_it_opened_and_nothing_else(copy: Path, scratch: Path) -> None:
    path = pack(copy, copy.with_suffix(".zip"))
    with Bundle(path) as bundle:
        with Codec(bundle):
            pass
        assert bundle.file("golden.npz").is_file()
    with Codec(path):
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())


def test_damaged_zip_is_refused_and_leaves_nothing(copy: Path, scratch: Path) -> None:
    good = pack(copy, copy.with_suffix(".zip")).read_bytes()
    target = copy.with_name("bad.zip")
    cases = [b"", b"not a zip", good[: len(good) // 2], good[:-10]]
    for at in range(0, len(good), max(1, len(good) // 40)):
        cases.append(good[:at] + b"\xa5\x5a\x33" + good[at + 3 :])
    messages = []
    for data in cases:
        target.write_bytes(data)
        try:
            with Codec(target) as codec:
                codec.bundle.golden()
        except BundleError as exc:
            messages.append(str(exc))
        assert not list(scratch.iterdir())
    assert len(messages) > 30
    assert not [m for m in messages if "\n" in m]


def test_zip_without_manifest_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle(tmp_path / "x.zip")
    assert not list(scratch.iterdir())


def test_zip_cannot_write_outside(copy: Path, scratch: Path) -> None:
    path = pack(copy, copy.with_suffix(".zip"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped", "x")
    with Bundle(path):
        assert not list(copy.parent.parent.rglob("escaped"))[1:]
        assert not (scratch.parent / "escaped").exists()


def test_only_listed_files_of_a_zip_are_unpacked(copy: Path, scratch: Path) -> None:
    (copy / "unlisted").write_bytes(bytes(1000))
    with Bundle(pack(copy, copy.with_suffix(".zip"))) as bundle:
        files = [p for p in bundle.root.rglob("*") if p.is_file()]
        found = {p.relative_to(bundle.root).as_posix() for p in files}
        assert found == {MANIFEST} | {n for n in bundle.manifest.files if (copy / n).exists()}


def test_zip_of_zeros_is_refused_before_it_is_unpacked(
    copy: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(copy, copy.with_suffix(".zip"))
    monkeypatch.setattr("edgecodec.bundle.reading.UNPACKED_LIMIT", (copy / TABLES).stat().st_size)
    with pytest.raises(BundleError, match="unpack it into a folder"):
        Bundle(path)
    (copy / MANIFEST).write_bytes(b" " * (2 << 20))
    path.unlink()
    with pytest.raises(BundleError, match=r"manifest\.json is too large"):
        Bundle(pack(copy, path))
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("suffix", ["bundle", "zip"])
def test_writing_bundle_appears_whole_or_not_at_all(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / "deep" / f"b.{suffix}"
    target.parent.mkdir()

    def fail() -> None:
        with writing_bundle(target) as folder:
            (folder / "x").write_text("x")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert list(target.parent.iterdir()) == []
    for content in ("first", "second"):
        with writing_bundle(target, force=content == "second") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "x").write_text(content)
            (folder / MANIFEST).write_text("{}")
        assert list(target.parent.iterdir()) == [target]
    if suffix == "bundle":
        assert (target / "sub" / "x").read_text() == "second"
    else:
        with zipfile.ZipFile(target) as archive:
            assert archive.read("sub/x") == b"second"


def begin_writing(target: Path, force: bool) -> None:
    with writing_bundle(target, force=force):
        raise AssertionError("must not get here")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos", "not a bundle"),
        ("photos/holiday.jpg", "not a bundle"),
        ("photos/holiday.jpg/x", "no such folder"),
        ("absent/x", "no such folder"),
        ("other.zip", "not a zipped bundle"),
        ("text.zip", "not a zipped bundle"),
        ("folder.zip", "not a zipped bundle"),
        ("n" * 300, "cannot be written"),
        ("loop", "leads to itself"),
    ],
)
def test_writing_bundle_refuses_what_it_could_spoil_or_not_write(
    tmp_path: Path, name: str, message: str, force: bool
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("x")
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "text.zip").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(BundleError, match=message) as caught:
        begin_writing(tmp_path / name, force)
    assert "\n" not in str(caught.value)
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_writing_bundle_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.zip")
    with pytest.raises(BundleError, match="not a zipped bundle"):
        begin_writing(tmp_path / "b.zip", force=True)


def test_writing_bundle_keeps_a_link_and_replaces_what_it_leads_to(copy: Path) -> None:
    link = copy.with_name("link")
    link.symlink_to(copy)
    with writing_bundle(link, force=True) as folder:
        (folder / MANIFEST).write_text("{}")
    assert link.is_symlink()
    assert (copy / MANIFEST).read_text() == "{}"
    assert sorted(copy.parent.iterdir()) == sorted([copy, link])


def test_writing_bundle_replaces_a_bundle_only_when_forced(copy: Path) -> None:
    for target in (copy, pack(copy, copy.with_suffix(".zip"))):
        with pytest.raises(BundleError, match="--force"):
            begin_writing(target, force=False)
        with Bundle(target):
            pass
        with writing_bundle(target, force=True) as folder:
            (folder / MANIFEST).write_text("{}")
        with pytest.raises(BundleError, match="format"):
            Bundle(target)


def test_writing_bundle_takes_an_empty_folder_and_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with writing_bundle(Path()) as folder:
        (folder / MANIFEST).write_text("{}")
    assert (empty / MANIFEST).is_file()
    assert list(tmp_path.iterdir()) == [empty]


@pytest.mark.parametrize(
    ("exception", "failure", "message"),
    [
        (OSError(28, "No space left"), BundleError, "cannot be written.*No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_writing_bundle_tells_what_the_system_refuses(
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    exception: BaseException,
    failure: type[BaseException],
    message: str | None,
) -> None:
    """And an earlier bundle is still there, also after an interruption."""
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "bundle":
            raise exception
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(failure, match=message):  # noqa: SIM117
        with writing_bundle(copy, force=True) as folder:
            (folder / MANIFEST).write_text("{}")
    assert Bundle(copy).tables()
    assert list(copy.parent.iterdir()) == [copy]
