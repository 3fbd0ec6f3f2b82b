"""Files stored in parts: what comes back, and what is refused."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import re
import struct
import tempfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecodec.bundle.embedded import default_bundle_path
from edgecodec.bundle.manifest import MANIFEST, ArtefactEntry
from edgecodec.bundle.parts import SUFFIX, Parts, Slice, to_planes
from edgecodec.bundle.reading import WEIGHTS, Bundle
from edgecodec.bundle.writing import hash_files
from edgecodec.errors import BundleError, ScratchError

WEIGHT = np.arange(2 * 3 * 4 * 5, dtype="<u2").reshape(2, 3, 4, 5)
PLANES = to_planes(WEIGHT.tobytes(), 2)
PIECE = Slice(3, 8, 2, WEIGHT.shape, (0, 2, 3, 1))
WHOLE = b"abc" + WEIGHT.transpose(0, 2, 3, 1).tobytes() + b"tail"
ENTRY = ArtefactEntry("synthesis", "openvino", "fp32", "openvino/synthesis.fp32.xml", 0)
BIN = "openvino/synthesis.fp32.bin"


def write(
    folder: Path,
    parts: Parts | bytes,
    weights: bytes = bytes(8) + PLANES,
    whole: bytes = WHOLE,
    **more: bytes,
) -> Path:
    """Write a bundle with a graph of two files, one of them in parts; `more` is by stem."""
    path = folder / "p.bundle"
    (path / "openvino").mkdir(parents=True, exist_ok=True)
    (path / ENTRY.path).write_bytes(b"<xml/>")
    content = parts.to_bytes() if isinstance(parts, Parts) else parts
    (path / (BIN + SUFFIX)).write_bytes(content)
    (path / WEIGHTS).write_bytes(weights)
    for stem, content in more.items():
        (path / f"{stem}.bin").write_bytes(content)
    with Bundle(default_bundle_path()) as shipped:
        manifest = shipped.manifest
    files = {**hash_files(path), BIN: hashlib.sha256(whole).hexdigest()}
    manifest = replace(manifest, artefacts=(ENTRY,), files=files)
    (path / MANIFEST).write_text(manifest.to_json())
    return path


GOOD = Parts((PIECE,), b"abctail")


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, Parts, bytes]:
    """A file, its parts, and `weights.bin`."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights, whole, literals, slices = b"", b"", b"", []
    for _ in range(draw(st.integers(0, 4))):
        item = draw(st.sampled_from((1, 2, 4, 8)))
        shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=8)))
        axes = tuple(draw(st.permutations(range(len(shape)))))
        array = rng.integers(0, 256, (*shape, item), np.uint8)
        literal = rng.bytes(draw(st.integers(0, 9)))
        slices.append(Slice(len(literal), len(weights), item, shape, axes))
        weights += array.reshape(-1, item).T.tobytes()
        literals += literal
        whole += literal + array.transpose(*axes, len(shape)).tobytes()
    rest = rng.bytes(draw(st.integers(0, 9)))
    return whole + rest, Parts(tuple(slices), literals + rest), weights


@given(files())
def test_parts_make_the_file(drawn: tuple[bytes, Parts, bytes]) -> None:
    whole, parts, weights = drawn
    again = Parts.from_bytes(parts.to_bytes(), "x")
    assert again == parts
    assert b"".join(again.chunks(io.BytesIO(weights))) == whole
    assert again.size == len(whole)


def test_the_page_of_the_format_is_kept() -> None:
    """docs/FORMAT.md, by hand."""
    expected = b"\x89ECP\r\n\x1a\n" + struct.pack("<H", 1)
    expected += struct.pack("<IIBB4I4B", 3, 8, 2, 4, 2, 3, 4, 5, 0, 2, 3, 1) + b"abctail"
    assert GOOD.to_bytes() == expected
    assert bytes(range(120)) + bytes(120) == PLANES
    assert b"".join(GOOD.chunks(io.BytesIO(bytes(8) + PLANES))) == WHOLE


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Cut content short, or change one of its bytes."""
    raw = bytearray(content)
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    return bytes(raw)


@given(st.data())
def test_damaged_parts_are_a_bundle_error_or_bounded(data: st.DataObject) -> None:
    """Cut or changed anywhere: refused, or a file whose size was known before it was made."""
    raw = damaged(data, GOOD.to_bytes())
    message = ""
    try:
        parts = Parts.from_bytes(raw, "x")
        assert len(b"".join(parts.chunks(io.BytesIO(bytes(8) + PLANES)))) == parts.size
    except ValueError as exc:
        message = str(exc)
    assert re.fullmatch(r"|x is not a list of parts .*|a slice ends at byte .*", message)


def test_file_is_put_together_beside_its_companion(tmp_path: Path, scratch: Path) -> None:
    path = write(tmp_path, GOOD)
    with Bundle(path) as bundle:
        assert list(scratch.iterdir()) == []
        found = bundle.artefact_file(ENTRY)
        assert found.read_bytes() == b"<xml/>"
        assert found.with_suffix(".bin").read_bytes() == WHOLE
        assert bundle.artefact_file(ENTRY) == found
        assert bundle.file(BIN) == found.with_suffix(".bin")
        assert {p.name for p in found.parent.iterdir()} == {p.name for p in (found, Path(BIN))}
    assert list(scratch.iterdir()) == []
    assert not (path / BIN).exists()


def test_zip_holds_parts_too(tmp_path: Path, scratch: Path) -> None:
    path = write(tmp_path, GOOD)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for file in path.rglob("*.*"):
            archive.write(file, file.relative_to(path).as_posix())
    with Bundle(tmp_path / "p.zip") as bundle:
        assert bundle.artefact_file(ENTRY).with_suffix(".bin").read_bytes() == WHOLE
    assert list(scratch.iterdir()) == []


def test_forgotten_bundle_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    bundle = Bundle(write(tmp_path, GOOD))
    bundle.file(BIN)
    assert list(scratch.iterdir())
    del bundle
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_many_threads_get_one_file(tmp_path: Path, scratch: Path) -> None:
    bundle, found = Bundle(write(tmp_path, GOOD)), []
    start = threading.Barrier(8)

    def use() -> None:
        start.wait()
        path = bundle.artefact_file(ENTRY)
        found.append((path, path.with_suffix(".bin").read_bytes()))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert {data for _, data in found} == {WHOLE}
    assert len({path for path, _ in found}) == 1
    bundle.close()


HOSTILE = {
    "beyond the end": replace(PIECE, offset=9),
    "far away": replace(PIECE, offset=2**32 - 1),
    "huge": replace(PIECE, shape=(2**32 - 1,) * 4),
    "no numbers": replace(PIECE, shape=(2, 3, 0, 5)),
    "axis twice": replace(PIECE, axes=(0, 2, 2, 1)),
    "axis too many": replace(PIECE, axes=(0, 2, 4, 1)),
    "odd item": replace(PIECE, item=3),
    "no item": replace(PIECE, item=0),
    "no axes": replace(PIECE, shape=(), axes=()),
    "too many axes": replace(PIECE, shape=(1,) * 9, axes=tuple(range(9))),
    "more literals than there are": replace(PIECE, literal=8),
    "another order": replace(PIECE, axes=(0, 1, 2, 3)),
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_parts_are_refused_in_one_line(tmp_path: Path, scratch: Path, piece: Slice) -> None:
    with Bundle(write(tmp_path, Parts((piece,), b"abctail"))) as bundle:
        for _ in range(2):
            with pytest.raises(BundleError, match=r"p\.bundle: .*synthesis\.fp32\.bin") as caught:
                bundle.artefact_file(ENTRY)
            assert "\n" not in str(caught.value)
    assert list(scratch.iterdir()) == []


def test_all_files_together_are_bounded(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same few bytes of `weights.bin` again and again, and a second file."""
    path = write(tmp_path, Parts((replace(PIECE, literal=0),) * 65535, b""))
    monkeypatch.setattr("edgecodec.bundle.reading.UNPACKED_LIMIT", 8 << 20)
    with Bundle(path) as bundle, pytest.raises(BundleError, match="would have 15 MB"):
        bundle.file(BIN)
    path = write(tmp_path, GOOD)
    values = json.loads((path / MANIFEST).read_text())
    values["files"] |= {name: values["files"][BIN] for name in ("second", "openvino/third")}
    for name in ("second", "openvino/third"):
        (path / (name + SUFFIX)).write_bytes(GOOD.to_bytes())
        values["files"][name + SUFFIX] = values["files"][BIN + SUFFIX]
    (path / MANIFEST).write_text(json.dumps(values))
    monkeypatch.setattr("edgecodec.bundle.reading.UNPACKED_LIMIT", 2 * len(WHOLE) + 1)
    with Bundle(path) as bundle:
        bundle.file(BIN)
        bundle.file("second")
        bundle.file(BIN)
        with pytest.raises(BundleError, match="third would have"):
            bundle.file("openvino/third")


@pytest.mark.parametrize(
    ("victim", "message"),
    [
        (WEIGHTS, r"weights\.bin is damaged"),
        (BIN + SUFFIX, r"bin\.parts is damaged"),
        (ENTRY.path, r"xml is damaged"),
    ],
)
def test_what_is_damaged_or_missing_is_named(tmp_path: Path, victim: str, message: str) -> None:
    path = write(tmp_path, GOOD)
    data = bytearray((path / victim).read_bytes())
    data[-1] ^= 1
    (path / victim).write_bytes(data)
    with Bundle(path) as bundle:
        with pytest.raises(BundleError, match=message):
            bundle.artefact_file(ENTRY)
        (path / victim).unlink()
        with pytest.raises(BundleError, match="is missing"):
            bundle.artefact_file(ENTRY)
        (path / victim).mkdir()
        with pytest.raises(BundleError, match="is missing"):
            bundle.artefact_file(ENTRY)


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "a\\out", "c:out", ""])
def test_parts_cannot_be_put_outside(tmp_path: Path, scratch: Path, name: str) -> None:
    path = write(tmp_path, GOOD)
    values = json.loads((path / MANIFEST).read_text())
    values["files"][name] = values["files"][BIN]
    values["files"][name + SUFFIX] = values["files"][BIN + SUFFIX]
    (path / MANIFEST).write_text(json.dumps(values))
    with Bundle(path) as bundle:
        for wanted in (name, name + SUFFIX):
            with pytest.raises(BundleError, match=r"lists no file|is missing"):
                bundle.file(wanted)
    assert not list(tmp_path.rglob("out*"))


def test_places_that_collide_are_refused(tmp_path: Path, scratch: Path) -> None:
    """A file where another one needs a folder; a name that is too long."""
    path = write(tmp_path, GOOD)
    values = json.loads((path / MANIFEST).read_text())
    long = "n" * 300
    for name in ("openvino", f"{BIN}/x", long):
        values["files"][name] = values["files"][BIN]
        values["files"][name + SUFFIX] = values["files"][BIN + SUFFIX]
    (path / ("openvino" + SUFFIX)).write_bytes(GOOD.to_bytes())
    (path / (BIN)).mkdir()
    (path / f"{BIN}/x{SUFFIX}").write_bytes(GOOD.to_bytes())
    (path / MANIFEST).write_text(json.dumps(values))
    with Bundle(path) as bundle:
        bundle.file(BIN)
        for name in ("openvino", f"{BIN}/x", long):
            with pytest.raises(BundleError, match="cannot be") as caught:
                bundle.file(name)
            assert "\n" not in str(caught.value)


def test_no_temporary_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with (
        Bundle(path) as bundle,
        pytest.raises(ScratchError, match="temporary files cannot be written"),
    ):
        bundle.file(BIN)
