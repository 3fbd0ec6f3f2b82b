"""A bundle from anyone is data: nothing in it runs, leaves its folder, or is used unchecked."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgecodec.bundle.manifest import MANIFEST, ArtefactEntry, Manifest
from edgecodec.bundle.reading import GOLDEN, TABLES, Bundle, short_id
from edgecodec.codec import Codec
from edgecodec.errors import BackendError, BundleError, ConversionError, EdgeCodecError
from edgecodec.model.checkpoint import FORMAT as CHECKPOINT_FORMAT
from edgecodec.model.checkpoint import load_checkpoint
from edgecodec.runtimes.backends.onnx_references import refers_to_files
from edgecodec.runtimes.backends.torch_graph import FORMAT as GRAPH_FORMAT
from edgecodec.runtimes.base import Artefact, SessionOptions
from edgecodec.runtimes.registry import get_backend
from tests.runtimes.conftest import SUFFIX, Tiny, write_tiny_bundle

TINY_INPUT = {"y_hat": np.zeros((1, 2, 2, 4), np.float32)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with graphs of every target."""
    return write_tiny_bundle(tmp_path_factory.mktemp("made"))


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def write(path: Path, files: dict[str, bytes], listed: dict[str, bytes] | None = None) -> Path:
    """Write a folder of files whose manifest lists them, and `listed` beside, by right hashes."""
    manifest = json.loads(files[MANIFEST])
    hashed = {**files, **(listed or {})}
    manifest["files"] = {n: sha256(d).hexdigest() for n, d in hashed.items() if n != MANIFEST}
    for name, data in {**files, MANIFEST: json.dumps(manifest).encode()}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def entry_of(bundle: Bundle, target: str, stage: str = "synthesis") -> ArtefactEntry:
    return next(e for e in bundle.manifest.artefacts if (e.target, e.stage) == (target, stage))


def load(bundle: Bundle, target: str) -> Any:
    backend = get_backend({"onnx": "onnxruntime"}.get(target, target))
    entry = entry_of(bundle, target)
    artefact = Artefact("synthesis", target, "fp32", bundle.artefact_file(entry))
    return backend.load(artefact, SessionOptions(1))


# -- nothing runs ----------------------------------------------------------------------------------


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


def traps(mark: Path) -> dict[str, bytes]:
    """Files that would run code if they were unpickled, as torch would find it."""
    found = {"pickle": pickle.dumps(Trap(mark)), "old pickle": pickle.dumps(Trap(mark), 0)}
    for name, new_format in (("torch", True), ("old torch", False)):
        for key, wrapped in (
            ("alone", Trap(mark)),
            ("graph", {"format": GRAPH_FORMAT, "stage": Trap(mark), "nodes": [Trap(mark)]}),
            ("weights", {"format": CHECKPOINT_FORMAT, "config": {}, "weights": {"a": Trap(mark)}}),
        ):
            out = io.BytesIO()
            torch.save(wrapped, out, _use_new_zipfile_serialization=new_format)
            found[f"{name} {key}"] = out.getvalue()
    return found


def test_no_pickle_of_a_bundle_or_checkpoint_runs(tmp_path: Path, made: Path) -> None:
    from edgecodec.converters.sources.source import read_source

    mark = tmp_path / "mark"
    files = contents(made)
    for number, (name, trap) in enumerate(traps(mark).items()):
        path = tmp_path / "trap.pt"
        path.write_bytes(trap)
        with pytest.raises(ValueError, match="checkpoint"):
            load_checkpoint(path)
        with pytest.raises(ConversionError):
            read_source(path)
        everywhere = {n: data if n == MANIFEST else trap for n, data in files.items()}
        with Bundle(write(tmp_path / f"{number}.bundle", everywhere)) as bundle:
            for target in SUFFIX:
                with pytest.raises(BackendError):
                    load(bundle, target)
            with pytest.raises(BundleError):
                bundle.golden()
            with pytest.raises(EdgeCodecError):
                Codec(bundle)
        assert not mark.exists(), name
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # the trap works


# -- nothing leaves its folder ---------------------------------------------------------------------

ESCAPES = [
    "../out",
    "../../out",
    "/tmp/edgecodec-out",
    "a/../../out",
    "..\\out",
    "c:\\out",
    "x/../../../out",
]


def zipped(files: dict[str, bytes], *members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for info, data in members:
            archive.writestr(info, data)
    return out.getvalue()


def with_listed(files: dict[str, bytes], extra: dict[str, bytes]) -> dict[str, bytes]:
    """The same files, the manifest listing more."""
    manifest = json.loads(files[MANIFEST])
    manifest["files"] |= {name: sha256(data).hexdigest() for name, data in extra.items()}
    return {**files, MANIFEST: json.dumps(manifest).encode()}


@pytest.mark.parametrize("name", ESCAPES)
def test_zip_member_cannot_leave_even_if_it_is_listed(
    tmp_path: Path, scratch: Path, made: Path, name: str
) -> None:
    files = with_listed(contents(made), {name: b"out"})
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(files, (zipfile.ZipInfo(name), b"out")))
    with Bundle(path) as bundle:
        inside = contents(bundle.root)
        assert inside == files  # not even under another name
        with pytest.raises(BundleError, match="lists no file"):
            bundle.file(name)
    left = {p for p in tmp_path.parent.rglob("*out") if "edgecodec" not in str(p.parent.name)}
    assert not left
    assert not Path("/tmp/edgecodec-out").exists()


def test_links_in_a_zip_are_not_made(tmp_path: Path, scratch: Path, made: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    files = contents(made)
    name = entry_name(made, "onnx")
    del files[name]
    link = zipfile.ZipInfo(name)
    link.external_attr = 0o120777 << 16
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(files, (link, str(tmp_path / "secret").encode())))
    with Bundle(path) as bundle:
        assert not any(p.is_symlink() for p in bundle.root.rglob("*"))
        with pytest.raises(BundleError, match="damaged"):
            bundle.artefact_file(entry_of(bundle, "onnx"))


def entry_name(path: Path, target: str) -> str:
    with Bundle(path) as bundle:
        return entry_of(bundle, target).path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("good_first", [True, False])
def test_member_twice_is_checked_as_it_is_used(
    tmp_path: Path, scratch: Path, made: Path, good_first: bool
) -> None:
    files, name = contents(made), entry_name(made, "onnx")
    good, other = files.pop(name), b"other"
    pair = (good, other) if good_first else (other, good)
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(files, *((zipfile.ZipInfo(name), data) for data in pair)))
    with Bundle(path) as bundle:
        try:
            found = bundle.artefact_file(entry_of(bundle, "onnx")).read_bytes()
        except BundleError as exc:
            assert "damaged" in str(exc)  # noqa: PT017 - either is right
        else:
            assert found == good


@pytest.mark.parametrize(
    "names", [("a.bin", "A.bin"), ("onnx/x", "ONNX/x"), ("\u00e9", "e\u0301"), ("\u00df", "ss")]
)
def test_names_that_collide_where_there_is_no_case_are_refused(
    made: Path, names: tuple[str, str]
) -> None:
    with Bundle(made) as bundle:
        manifest = bundle.manifest
    text = replace(manifest, files=dict.fromkeys(names, "0" * 64)).to_json()
    with pytest.raises(BundleError, match="files cannot be"):
        Manifest.from_json(text, "x")


@pytest.mark.parametrize("name", ESCAPES)
def test_artefact_cannot_be_elsewhere(tmp_path: Path, made: Path, name: str) -> None:
    """Even where the file is there and its hash is right."""
    files = contents(made)
    manifest = json.loads(files[MANIFEST])
    manifest["artefacts"][0]["path"] = name
    outside = (tmp_path / "b.bundle" / name).resolve()
    files[MANIFEST] = json.dumps(manifest).encode()
    path = write(tmp_path / "b.bundle", files, {name: b"out"})
    if outside.is_relative_to(tmp_path):
        outside.write_bytes(b"out")
    with Bundle(path) as bundle, pytest.raises(BundleError, match="lists no file"):
        bundle.artefact_file(bundle.manifest.artefacts[0])


# -- nothing swells --------------------------------------------------------------------------------


def test_member_larger_than_it_says_is_refused(tmp_path: Path, scratch: Path, made: Path) -> None:
    """Ten megabytes behind a member that claims ten bytes."""
    files, name = contents(made), entry_name(made, "onnx")
    files[name] = bytes(10 << 20)
    data = bytearray(zipped(with_listed(files, {name: files[name]})))
    true, small = struct.pack("<I", 10 << 20), struct.pack("<I", 10)
    assert data.count(true) == 2
    path = tmp_path / "x.zip"
    path.write_bytes(bytes(data).replace(true, small))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="neither a folder nor an intact"):
            Bundle(path)
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()
    assert not list(scratch.iterdir())


def test_many_large_members_are_refused_before_they_are_unpacked(
    tmp_path: Path, scratch: Path, made: Path
) -> None:
    big = bytes(40 << 20)
    extra = {f"big{n}": big for n in range(7)}
    path = tmp_path / "x.zip"
    path.write_bytes(zipped({**with_listed(contents(made), extra), **extra}))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match="unpack it into a folder"):
        Bundle(path)
    assert not list(scratch.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="devices, pipes and sparse files of POSIX")
@pytest.mark.parametrize("kind", ["device", "pipe", "sparse"])
def test_manifest_that_never_ends_is_not_read(tmp_path: Path, made: Path, kind: str) -> None:
    """A folder may come out of an archive that holds such things."""
    path = write(tmp_path / "b.bundle", contents(made))
    manifest = path / MANIFEST
    manifest.unlink()
    if kind == "device":
        manifest.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(manifest)
    else:
        with manifest.open("wb") as out:
            out.truncate(1 << 40)
    with pytest.raises(BundleError, match="too large"):
        Bundle(path)


@pytest.mark.parametrize("name", [TABLES, GOLDEN])
def test_file_too_large_to_be_read_is_refused_though_its_hash_is_right(
    tmp_path: Path, made: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file costs who sends it nothing."""
    monkeypatch.setattr("edgecodec.bundle.reading.UNPACKED_LIMIT", 16 << 20)
    path = write(tmp_path / "b.bundle", {**contents(made), name: bytes(17 << 20)})
    with Bundle(path) as bundle, pytest.raises(BundleError, match="more than the 16 MB"):
        bundle.tables() if name == TABLES else bundle.golden()


@pytest.mark.skipif(sys.platform == "win32", reason="links, devices and pipes of POSIX")
@pytest.mark.parametrize("kind", ["device", "pipe", "link"])
def test_file_of_a_folder_that_is_none_is_refused(tmp_path: Path, made: Path, kind: str) -> None:
    """A link out of the bundle is as good as what it leads to: the hash decides."""
    path, name = write(tmp_path / "b.bundle", contents(made)), entry_name(made, "onnx")
    (tmp_path / "secret").write_bytes(b"secret")
    file = path / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "device" else tmp_path / "secret")
    with Bundle(path) as bundle, pytest.raises(BundleError, match=r"missing|damaged"):
        bundle.artefact_file(entry_of(bundle, "onnx"))


def test_many_members_with_the_same_bytes_are_counted_each(
    tmp_path: Path, scratch: Path, made: Path
) -> None:
    """Members may overlap in the archive: a few kilobytes that unpack to gigabytes."""
    names = [f"big{n}" for n in range(300)]
    files = with_listed(contents(made), dict.fromkeys(names, b""))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(names[0], bytes(1 << 20))
        first = archive.getinfo(names[0])
        for name in names[1:]:
            copied = copy(first)
            copied.filename = copied.orig_filename = name
            archive.filelist.append(copied)
    path = tmp_path / "x.zip"
    path.write_bytes(out.getvalue())
    with pytest.raises(BundleError, match="in all, more than"):
        Bundle(path)
    assert not list(scratch.iterdir())


# -- nothing is used unchecked ---------------------------------------------------------------------


@pytest.mark.parametrize("target", SUFFIX)
def test_changed_artefact_is_refused_before_a_runtime_sees_it(
    tmp_path: Path, made: Path, target: str
) -> None:
    files = contents(made)
    path = write(tmp_path / "b.bundle", files)
    names = [n for n in files if n.startswith(f"{target}/synthesis.")]
    assert len(names) == (2 if target == "openvino" else 1)
    for name in names:
        changed = bytearray(files[name])
        changed[len(changed) // 2] ^= 1
        (path / name).write_bytes(changed)
        with Bundle(path) as bundle, pytest.raises(BundleError, match="damaged"):
            load(bundle, target)
        (path / name).write_bytes(files[name])
    with Bundle(path) as bundle:
        load(bundle, target).close()


def test_weights_beside_an_openvino_graph_must_be_listed(tmp_path: Path, made: Path) -> None:
    """The runtime would take any `.bin` that lies beside the `.xml`."""
    files = contents(made)
    name = next(n for n in files if n.startswith("openvino/synthesis.") and n.endswith(".bin"))
    stray = bytes(len(files[name]))
    rest = {n: data for n, data in files.items() if n != name}
    path = write(tmp_path / "b.bundle", rest)
    (path / name).write_bytes(stray)
    with Bundle(path) as bundle:
        found = bundle.artefact_file(entry_of(bundle, "openvino"))
        assert [p.name for p in found.parent.iterdir()] == [found.name]
        with pytest.raises(BackendError):
            load(bundle, "openvino")


def with_external_data(model: bytes, location: str) -> bytes:
    """Return the model with its first tensor's values moved to another file."""
    parsed = onnx.load_from_string(model)
    tensor = parsed.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    data: bytes = parsed.SerializeToString()
    return data


@pytest.mark.parametrize(
    "location", ["weights.data", "synthesis.fp32.data", "../secret", "/etc/hostname"]
)
def test_graph_that_refers_to_other_files_is_refused(
    tmp_path: Path, made: Path, location: str
) -> None:
    """Listed or not, inside or not: no hash of the graph covers them."""
    files, name = contents(made), entry_name(made, "onnx")
    values = onnx.numpy_helper.to_array(onnx.load_from_string(files[name]).graph.initializer[0])
    files[name] = with_external_data(files[name], location)
    listed = {f"onnx/{location}": values.tobytes()} if "/" not in location else {}
    path = write(tmp_path / "b.bundle", {**files, **listed})
    (tmp_path / "b.bundle" / "secret").write_bytes(values.tobytes())
    with Bundle(path) as bundle, pytest.raises(BackendError, match="refers to other files"):
        load(bundle, "onnx")


def test_references_are_found_wherever_a_tensor_can_be() -> None:
    from onnx import TensorProto, helper

    tensor = TensorProto(name="t", data_type=1, dims=[1])
    tensor.external_data.add(key="location", value="x")
    whole = TensorProto(name="t", data_type=1, dims=[1], float_data=[1.0])
    inner = helper.make_graph([], "inner", [], [], [tensor])
    sparse = onnx.SparseTensorProto(values=tensor, dims=[1])

    def model(**what: Any) -> bytes:
        node = helper.make_node("Op", [], ["y"], **what.get("attributes", {}))
        graph = helper.make_graph([node], "g", [], [], what.get("tensors", []))
        graph.sparse_initializer.extend(what.get("sparse", []))
        made = helper.make_model(graph)
        if "function" in what:
            made.functions.add(name="f").node.extend(what["function"])
        data: bytes = made.SerializeToString()
        return data

    hidden = helper.make_node("Op", [], ["y"], value=tensor)
    for made in (
        model(tensors=[tensor]),
        model(tensors=[whole, tensor]),
        model(attributes={"value": tensor}),
        model(attributes={"values": [whole, tensor]}),
        model(attributes={"body": inner}),
        model(attributes={"bodies": [inner]}),
        model(attributes={"value": sparse}),
        model(sparse=[sparse]),
        model(function=[hidden]),
    ):
        assert refers_to_files(made)
    for made in (model(), model(tensors=[whole]), model(attributes={"value": whole, "n": 13})):
        assert not refers_to_files(made)
    for damaged in (b"\xff", b"\x0a\xff", b"\x0b", b"\x80" * 20, model(tensors=[whole])[:-1]):
        with pytest.raises(ValueError, match=r"field|number"):
            refers_to_files(damaged)


def test_graphs_of_a_bundle_are_whole(made: Path) -> None:
    with Bundle(made) as bundle:
        assert not refers_to_files(bundle.artefact_file(entry_of(bundle, "onnx")).read_bytes())
        session = load(bundle, "onnx")
        expected = Tiny().synthesise(TINY_INPUT["y_hat"])["x_hat"]
        assert np.abs(session.run(TINY_INPUT)["x_hat"] - expected).max() < 1e-2
        session.close()


def test_tables_and_golden_vector_are_checked_as_they_are_read(tmp_path: Path, made: Path) -> None:
    """Not only when the bundle is opened."""
    files = {**contents(made), TABLES: b"tables"}
    manifest = {**json.loads(files[MANIFEST]), "tables_id": short_id(b"tables")}
    files[MANIFEST] = json.dumps(manifest).encode()
    path = write(tmp_path / "b.bundle", files)
    with Bundle(path) as bundle:
        assert bundle.tables() == b"tables"
        assert "x" in bundle.golden()
        (path / TABLES).write_bytes(b"others")
        (path / GOLDEN).write_bytes(b"others")
        with pytest.raises(BundleError, match=r"tables\.bin is damaged"):
            bundle.tables()
        with pytest.raises(BundleError, match=r"golden\.npz is damaged"):
            bundle.golden()


# -- nobody is told --------------------------------------------------------------------------------

LOAD_ALL = """
import os, sys
from edgecodec.bundle.reading import Bundle
from edgecodec.runtimes.selection.selector import choose
with Bundle(sys.argv[1]) as bundle:
    for backend in sys.argv[2:]:
        choose(bundle, backend=backend, size=(64, 96), budget_s=0.01)
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
assert "openvino_telemetry" not in sys.modules
"""


@pytest.mark.skipif(sys.platform == "win32", reason="HOME and TMPDIR of POSIX")
def test_runtimes_report_nothing_to_their_makers(
    tmp_path: Path, made: Path, environment: dict[str, str]
) -> None:
    """They would leave an identifier of the machine and of the session behind."""
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    for folder in (home, temporary):
        folder.mkdir()
    variables = {**environment, "HOME": str(home), "TMPDIR": str(temporary), "EDGECODEC_CACHE": ""}
    for name in ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        variables.pop(name, None)
    command = [sys.executable, "-c", LOAD_ALL, str(made), "onnxruntime", "openvino"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [p for folder in (home, temporary) for p in folder.rglob("*") if p.is_file()] == []
