"""What a system can do to a process: no partial file, no corrupt cache, no wrong picture.

Faults of files and folders, on the command line in this process. Processes that are killed, several
at once, and limits of the system are in test_faults_processes.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.bundle import Bundle, short_id
from edgecodec.cli import main
from edgecodec.codec import Codec
from edgecodec.errors import BundleError, EdgeCodecError, ScratchError
from edgecodec.files import write_output
from edgecodec.runtimes import environment, select
from tests.tiny_codec import write_tiny_codec

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="faults of POSIX")

Fails = Callable[..., str]
OUTPUTS = [("encode", "in.png", "x.ecx"), ("decode", "in.ecx", "x.png")]
REPORTS = [
    ("eval", "in.png", "--qualities", "50", "--against", "jpeg"),
    ("bench", "in.png", "--backends", "onnxruntime", "--runs", "3", "--seconds", "0",
     "--cold-starts", "0"),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, a picture and a file."""
    folder = tmp_path_factory.mktemp("made")
    tiny = write_tiny_codec(folder)
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(picture).save(folder / "in.png")
    with Codec(tiny, "onnxruntime") as codec:
        (folder / "in.ecx").write_bytes(codec.encode(picture))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    for name in ("in.png", "in.ecx"):
        shutil.copy(made / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(made: Path, capfd: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail with one line, and return it."""

    def run(*args: object) -> str:
        options = ["--bundle", str(made / "tiny.bundle")]
        if args[0] not in ("bench", "info"):
            options += ["--backend", "onnxruntime"]
        capfd.readouterr()
        assert main([*map(str, args), *options]) == 1
        err = capfd.readouterr().err
        assert err.startswith("edgecodec: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount small disks; skipped where that is not allowed."""
    mounted: list[Path] = []

    def mount(size: str, options: str = "rw") -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            pytest.skip(f"no disk can be mounted here: {exc}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)  # an error may hold files open


def fill(path: Path) -> Path:
    """Leave no room on a disk."""
    with contextlib.suppress(OSError), (path / "filler").open("wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))
    return path


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[None]:
    """Have temporary folders made elsewhere, for no longer than pytest itself needs none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(path))
        yield


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", OUTPUTS, ids=lambda a: a[0])
def test_full_disk_leaves_nothing_and_what_was_there(
    folder: Path, fails: Fails, disk: Callable[..., Path], args: tuple[str, str, str]
) -> None:
    full = disk("64k")
    there = full / f"there{Path(args[2]).suffix}"
    there.write_bytes(b"there")
    fill(full)
    before = names(full)
    for output, more in ((full / args[2], ()), (there, ("-f",))):
        assert "No space left on device" in fails(*args[:2], output, *more)
    assert names(full) == before
    assert there.read_bytes() == b"there"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_device_is_told(folder: Path, fails: Fails) -> None:
    assert "No space left on device" in fails("encode", "in.png", "/dev/full")
    with pytest.raises(EdgeCodecError, match="No space left"):
        write_output("/dev/full", b"x")


@pytest.mark.parametrize("args", OUTPUTS, ids=lambda a: a[0])
def test_output_in_a_folder_that_cannot_be_written_is_refused_before_work(
    folder: Path,
    fails: Fails,
    disk: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, str, str],
) -> None:
    monkeypatch.setattr(Codec, "__init__", lambda *_, **__: pytest.fail("it works"))
    read_only = disk("64k", "ro")
    assert "cannot be written; choose another" in fails(*args[:2], read_only / args[2])
    assert "no such folder" in fails(*args[:2], folder / "none" / args[2])
    assert "no such folder" in fails(*args[:2], folder / "in.png" / args[2])
    (folder / "x").mkdir()
    for more in ((), ("-f",)):
        assert "is a folder" in fails(*args[:2], folder / "x", *more)
    assert names(folder) == {"in.png", "in.ecx", "x", read_only.name}


@pytest.mark.parametrize("args", REPORTS, ids=lambda a: a[0])
def test_report_that_cannot_be_written_is_refused_before_work(
    folder: Path, fails: Fails, disk: Callable[..., Path], args: tuple[str, ...]
) -> None:
    read_only = disk("64k", "ro")
    assert "choose another" in fails(*args, "--json", read_only / "x.json")
    assert "is a folder" in fails(*args, "--json", folder)


@pytest.mark.parametrize("args", REPORTS, ids=lambda a: a[0])
def test_report_on_a_full_disk_is_still_printed(
    folder: Path,
    made: Path,
    disk: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    args: tuple[str, ...],
) -> None:
    full = fill(disk("64k"))
    options = ["--bundle", str(made / "tiny.bundle"), "--json", str(full / "x.json")]
    assert main([*args, *options]) == 1
    out, err = capfd.readouterr()
    assert out.count("\n") > 3
    assert err.splitlines()[-1].endswith("cannot be written (No space left on device)")
    assert names(full) == {"filler"}


@pytest.mark.parametrize("args", OUTPUTS, ids=lambda a: a[0])
def test_the_input_is_never_replaced(
    folder: Path, fails: Fails, args: tuple[str, str, str]
) -> None:
    """By no name that leads to it, even when asked to."""
    content = (folder / args[1]).read_bytes()
    name = f"same{Path(args[2]).suffix}"
    shutil.move(folder / args[1], folder / name)
    (folder / f"link-{name}").symlink_to(name)
    for output in (name, f"./{name}", folder / name, f"link-{name}"):
        assert "is the input" in fails(args[0], name, output, "-f")
    assert (folder / name).read_bytes() == content


def test_link_as_output(folder: Path, made: Path, fails: Fails) -> None:
    """A link that leads nowhere is not replaced unasked; through one to a file it is written."""
    options = ["--bundle", str(made / "tiny.bundle"), "--backend", "onnxruntime"]
    link = folder / "x.ecx"
    link.symlink_to("gone")
    assert "leads nowhere" in fails("encode", "in.png", link)
    assert link.readlink() == Path("gone")
    (folder / "loop").symlink_to("loop")
    assert "leads nowhere" in fails("encode", "in.png", "loop")
    (folder / "gone").write_bytes(b"old")
    assert "exists already" in fails("encode", "in.png", link)
    assert main(["encode", "in.png", str(link), "-f", *options]) == 0
    assert link.is_symlink()
    assert (folder / "gone").read_bytes() == (folder / "in.ecx").read_bytes()


# -- temporary folder ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_full_temporary_folder_is_told_in_one_line_and_not_held_against_a_backend(
    folder: Path,
    disk: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    backend: str,
) -> None:
    cache = folder / "cache"
    monkeypatch.setenv(environment.CACHE, str(cache))
    small = disk("64k")
    select.clear_cache()
    with temporary_folder(small):
        assert main(["encode", "in.png", "x.ecx", "--backend", backend]) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "no room for" in err
    assert "No space left on device" in err
    assert "let TMPDIR name another" in err
    assert not list(cache.glob("*"))
    assert not list(small.iterdir())


def test_temporary_folder_that_cannot_be_written(folder: Path, made: Path) -> None:
    told = pytest.raises(ScratchError, match=r"no temporary folder can be made .*TMPDIR")
    made_codec = Codec(made / "tiny.bundle", "onnxruntime")
    with made_codec as codec, told, temporary_folder(folder / "none"):
        codec.encode(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("size", ["2m", "7m"])
def test_room_for_some_backends_alone_is_not_held_against_the_others(
    folder: Path, disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """Their trials in another process need room as well."""
    cache = folder / "cache"
    monkeypatch.setenv(environment.CACHE, str(cache))
    select.clear_cache()
    told = pytest.raises(ScratchError, match=r"no room for .*let TMPDIR name another")
    with Codec() as codec, told, temporary_folder(disk(size)):
        codec.encode(np.zeros((8, 8, 3), np.uint8))
    assert not list(cache.glob("verdict-*"))


def test_zip_of_a_bundle_is_not_called_damaged_where_the_disk_is_full(
    made: Path, tmp_path: Path, disk: Callable[..., Path]
) -> None:
    with Bundle(made / "tiny.bundle") as bundle:
        archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", bundle.path)
    Bundle(archive).close()
    small = disk("32k")
    told = pytest.raises(ScratchError, match=r"no room for its content .*No space left")
    with told, temporary_folder(small):
        Bundle(archive)
    assert not list(small.iterdir())


# -- cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "read-only", "a file", "nowhere"])
def test_cache_that_cannot_be_kept_costs_nothing(
    folder: Path,
    made: Path,
    disk: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    if kind == "full":
        cache = disk("64k")
        (cache / "edgecodec").mkdir()
        cache = fill(cache) / "edgecodec"
    elif kind == "read-only":
        cache = disk("64k", "ro") / "edgecodec"
    else:
        cache = folder / "in.png" if kind == "a file" else Path("/proc/none/edgecodec")
    monkeypatch.setenv(environment.CACHE, str(cache))
    select.clear_cache()
    options = ["--bundle", str(made / "tiny.bundle")]
    assert main(["encode", "in.png", "x.ecx", *options]) == 0
    assert capfd.readouterr().err.count("\n") == 1
    assert (folder / "x.ecx").read_bytes() == (folder / "in.ecx").read_bytes()
    if cache.is_dir():
        assert not list(cache.iterdir())


def test_cache_cut_anywhere_is_measured_anew(
    folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk that was full, or power that went, may leave it."""
    cache = folder / "cache"
    monkeypatch.setenv(environment.CACHE, str(cache))
    with Bundle(made / "tiny.bundle") as bundle:
        select.clear_cache()
        first = select.choose(bundle, stages=("analysis",), threads=1)
        (path,) = cache.glob("verdict-*")
        whole = path.read_bytes()
        for length in range(0, len(whole), 97):
            path.write_bytes(whole[:length])
            select.clear_cache()
            again = select.choose(bundle, stages=("analysis",), threads=1)
            assert again.stages[0].best.backend == first.stages[0].best.backend
            assert json.loads(path.read_bytes())["key"] == json.loads(whole)["key"]


# -- bundles that are replaced ---------------------------------------------------------------------


def other_model(made: Path, path: Path) -> Path:
    """Write another bundle: its files have the same names and other content."""
    shutil.copytree(made / "tiny.bundle", path)
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (path / name).read_bytes() + b"\n"
        (path / name).write_bytes(data)
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
    manifest["tables_id"] = short_id((path / "tables.bin").read_bytes())
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize("opened", [(), ("analysis",), ("analysis", "synthesis")])
@pytest.mark.parametrize("replaced", ["all", "removed", "graphs"])
def test_bundle_replaced_while_in_use_gives_the_same_results_or_an_error(
    folder: Path, made: Path, opened: tuple[str, ...], replaced: str
) -> None:
    """Never those of half the one and half the other."""
    path = folder / "tiny.bundle"
    shutil.copytree(made / "tiny.bundle", path)
    other = other_model(made, folder / "other.bundle")
    pixels = np.asarray(Image.open(folder / "in.png"))
    data = (folder / "in.ecx").read_bytes()
    with Codec(made / "tiny.bundle", "onnxruntime") as untouched:
        shown = np.asarray(untouched.decode(data))
    with Codec(path, "onnxruntime") as codec:
        results: dict[str, tuple[Callable[[], bytes], bytes]] = {
            "analysis": (lambda: codec.encode(pixels), data),
            "synthesis": (lambda: np.asarray(codec.decode(data)).tobytes(), shown.tobytes()),
        }
        for stage in opened:
            results[stage][0]()
        if replaced == "graphs":
            shutil.copytree(other / "onnx", path / "onnx", dirs_exist_ok=True)
        else:
            shutil.rmtree(path)
            if replaced == "all":
                shutil.copytree(other, path)
        for stage, (work, expected) in results.items():
            if stage in opened:
                assert work() == expected
            else:
                with pytest.raises(BundleError, match=r"tiny\.bundle"):
                    work()
