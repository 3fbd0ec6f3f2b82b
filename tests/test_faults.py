"""What goes wrong around the codec: disks, pipes, signals, memory. One line, nothing half done."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecodec.arrays import UInt8Array
from edgecodec.bundle.embedded import default_bundle_path
from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.coding.image_files import open_image
from edgecodec.errors import BackendError, BundleError, ConfigError
from edgecodec.files import write_output

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="faults as Linux has them")

FAST = ("--backend", "onnxruntime", "--precision", "fp32", "--threads", "1")
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(tmp_path: Path, small: UInt8Array, small_file: bytes) -> Path:
    """A folder to work in, with a photo and a file."""
    path = tmp_path / "place"
    path.mkdir()
    Image.fromarray(small).save(path / "photo.png")
    (path / "good.ecx").write_bytes(small_file)
    return path


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    path = tmp_path / "tmp"
    path.mkdir()
    return path


@pytest.fixture
def variables(environment: dict[str, str], temporary: Path, tmp_path: Path) -> dict[str, str]:
    """Of a process whose temporary files and cache are its own, so that leftovers show."""
    cache = str(tmp_path / "cache")
    return {**environment, "TMPDIR": str(temporary), "EDGECODEC_CACHE": cache}


@pytest.fixture
def cli(place: Path, variables: dict[str, str]) -> Cli:
    """Run a command in `place`, in a process of its own; files may stand for its streams."""

    def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": variables, **options}
        command = [sys.executable, "-m", "edgecodec", *map(str, args)]
        return subprocess.run(command, cwd=place, text=True, check=False, timeout=300, **given)  # type: ignore[call-overload, no-any-return]

    return run


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system without a free byte."""
    with mounted(tmp_path / "full") as path:
        fill(path / "filler")
        yield path


@pytest.fixture
def nearly_full(tmp_path: Path) -> Iterator[Path]:
    """One where small files find room, as Python demands of a folder for temporary ones."""
    with mounted(tmp_path / "full") as path:
        (path / "filler").write_bytes(bytes(32 << 10))
        yield path


def fill(path: Path) -> None:
    with path.open("wb", 0) as handle:
        try:
            while True:
                handle.write(bytes(4096))
        except OSError as exc:
            assert exc.errno == errno.ENOSPC  # noqa: PT017 - however often it takes


@contextmanager
def mounted(path: Path) -> Iterator[Path]:
    """Mount a file system of 64 kB, where one may."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def listing(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def one_line(result: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("edgecodec: ")
    for word in words:
        assert word in result.stderr


# -- full disks ------------------------------------------------------------------------------------

WRITING = {
    "encode": ("encode", "photo.png", "{}/out.ecx", *FAST),
    "decode": ("decode", "good.ecx", "{}/out.png", *FAST),
    "eval --json": ("eval", "photo.png", "--qualities", "50", "--against", "jpeg",
                    "--json", "{}/out.json", *FAST),
    "eval --csv": ("eval", "photo.png", "--qualities", "50", "--against", "jpeg",
                   "--csv", "{}/out.csv", *FAST),
    "eval --cache": ("eval", "photo.png", "--qualities", "50", "--against", "jpeg",
                     "--cache", "{}/out.cache", *FAST),
    "bench --json": ("bench", "photo.png", "--backends", "onnxruntime:fp32", "--runs", "3",
                     "--seconds", "0", "--cold-starts", "0", "--json", "{}/out.json"),
}  # fmt: skip


@pytest.mark.parametrize("command", WRITING.values(), ids=WRITING)
def test_full_disk_is_told_and_holds_nothing_new(
    cli: Cli, full: Path, command: tuple[str, ...]
) -> None:
    result = cli(*(word.format(full) for word in command))
    one_line(result, "out.", "No space left on device")
    assert listing(full) == ["filler"]


def test_file_that_is_to_be_replaced_survives_a_full_disk(cli: Cli, full: Path) -> None:
    (full / "filler").write_bytes(bytes(32768))
    (full / "out.ecx").write_bytes(b"precious")
    fill(full / "more")
    result = cli("encode", "photo.png", full / "out.ecx", "-f", *FAST)
    one_line(result, "out.ecx: cannot be written", "No space left on device")
    assert (full / "out.ecx").read_bytes() == b"precious"
    assert listing(full) == ["filler", "more", "out.ecx"]


def test_limit_of_file_size_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.ecx"
    path.write_bytes(b"precious")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ConfigError, match="cannot be written"):
            write_output(str(path), bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"precious"
    assert listing(tmp_path) == ["out.ecx"]


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
def test_full_temporary_folder_is_told_with_what_to_do(
    cli: Cli,
    place: Path,
    nearly_full: Path,
    variables: dict[str, str],
    tmp_path: Path,
    backend: str,
) -> None:
    """Nothing is said against the bundle, and nothing is remembered."""
    before = listing(place)
    result = cli(
        "encode", "photo.png", "out.ecx", "--backend", backend,
        env={**variables, "TMPDIR": str(nearly_full)},
    )  # fmt: skip
    one_line(result, "temporary files cannot be written", str(nearly_full), "No space", "TMPDIR")
    assert listing(place) == before
    assert listing(nearly_full) == ["filler"]
    assert not list(tmp_path.glob("cache/verdict-*"))


def test_full_temporary_folder_is_no_damage_of_a_zip_file(
    cli: Cli, place: Path, nearly_full: Path, variables: dict[str, str]
) -> None:
    shutil.make_archive(str(place / "model"), "zip", default_bundle_path())
    command = ("encode", "photo.png", "out.ecx", "--bundle", "model.zip", *FAST)
    result = cli(*command, env={**variables, "TMPDIR": str(nearly_full)})
    one_line(result, "temporary files cannot be written", "TMPDIR")
    assert listing(nearly_full) == ["filler"]
    assert cli(*command).returncode == 0


def test_choice_that_finds_no_room_is_not_forgotten(
    cli: Cli, nearly_full: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    command = ("encode", "photo.png", "out.ecx", "-f", *FAST)
    assert cli(*command).returncode == 0
    kept = {p.name: p.read_bytes() for p in tmp_path.glob("cache/*")}
    assert kept
    one_line(cli(*command, env={**variables, "TMPDIR": str(nearly_full)}), "TMPDIR")
    assert {p.name: p.read_bytes() for p in tmp_path.glob("cache/*")} == kept


@pytest.mark.parametrize("cache", ["{full}", "{full}/folder", "/proc/cache", "/dev/null/cache"])
def test_cache_that_cannot_be_kept_costs_nothing(
    cli: Cli, place: Path, full: Path, variables: dict[str, str], cache: str
) -> None:
    elsewhere = {**variables, "EDGECODEC_CACHE": cache.format(full=full), "HOME": "/proc"}
    result = cli("encode", "photo.png", "out.ecx", *FAST, env=elsewhere)
    assert result.returncode == 0
    assert result.stderr.count("\n") == 1
    assert [p for p in full.rglob("*") if p.is_file() and p.stat().st_size] == [full / "filler"]


# -- pipes and streams -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("encode", "photo.png", "-", *FAST), ("decode", "good.ecx", "-", *FAST), ("info", "good.ecx")],
    ids=lambda c: c[0],
)
def test_full_standard_output_is_one_line(cli: Cli, command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as out:
        one_line(cli(*command, stdout=out), "No space left on device")


def begin_and_leave(pipe: int) -> None:
    os.read(pipe, 10)
    os.close(pipe)


@pytest.mark.parametrize("command", [("encode", "photo.png"), ("decode", "good.ecx")])
def test_reader_that_goes_away_in_the_middle_is_no_traceback(
    cli: Cli, place: Path, photo: UInt8Array, codec: Codec, command: tuple[str, str]
) -> None:
    """More than a pipe holds, of which the first bytes are read."""
    large = np.tile(photo, (2, 2, 1))
    Image.fromarray(large).save(place / "photo.png", compress_level=1)
    (place / "good.ecx").write_bytes(codec.encode(large, 100))
    read, write = os.pipe()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(begin_and_leave, read)
        result = cli(*command, "-", "-q", "100", *FAST, stdout=write) if command[0] == "encode" \
            else cli(*command, "-", *FAST, stdout=write)  # fmt: skip
        os.close(write)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "ignored" not in result.stderr


def test_messages_that_nobody_can_take_spoil_nothing(cli: Cli, place: Path) -> None:
    with Path("/dev/full").open("wb") as err:
        assert cli("encode", "photo.png", "out.ecx", *FAST, stderr=err).returncode == 0
        assert cli("decode", "out.ecx", "out.png", *FAST, stderr=err).returncode == 0
        assert cli("encode", "absent.png", "x.ecx", *FAST, stderr=err).returncode == 1
    assert (place / "out.png").is_file()


# -- names of files --------------------------------------------------------------------------------


def test_input_is_not_replaced_by_its_result(cli: Cli, place: Path) -> None:
    before = (place / "photo.png").read_bytes()
    (place / "link.png").symlink_to("photo.png")
    for name in ("photo.png", "./photo.png", "link.png"):
        one_line(cli("encode", "photo.png", name, "-f", *FAST), "is the input")
    (place / "same.png").write_bytes((place / "good.ecx").read_bytes())
    one_line(cli("decode", "same.png", "same.png", "-f", *FAST), "is the input")
    assert (place / "photo.png").read_bytes() == before


@pytest.mark.parametrize("name", ["y" * 251 + ".ecx", "\u00e9" * 125 + ".ecx", "-out.ecx"])
def test_any_name_of_a_file_will_do(tmp_path: Path, name: str) -> None:
    write_output(str(tmp_path / name), b"data")
    assert (tmp_path / name).read_bytes() == b"data"
    assert listing(tmp_path) == [name]


def test_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "there.ecx").write_bytes(b"old")
    for target in ("there.ecx", "new.ecx"):
        link = tmp_path / f"to-{target}"
        link.symlink_to(far / target)
        write_output(str(link), b"data")
        assert link.is_symlink()
        assert (far / target).read_bytes() == b"data"
    broken = tmp_path / "broken.ecx"
    broken.symlink_to(tmp_path / "nowhere" / "x.ecx")
    with pytest.raises(ConfigError, match=r"broken\.ecx: cannot be written"):
        write_output(str(broken), b"data")
    assert listing(far) == ["new.ecx", "there.ecx"]


def test_output_may_lie_on_another_file_system(cli: Cli, full: Path, small_file: bytes) -> None:
    (full / "filler").unlink()
    assert cli("encode", "photo.png", full / "out.ecx", *FAST).returncode == 0
    assert listing(full) == ["out.ecx"]


def test_folder_is_no_output_whoever_writes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is a folder"):
        write_output(str(tmp_path), b"data")


# -- devices ---------------------------------------------------------------------------------------

DEVICE = "is a device, not a file; give the name of a file"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("encode /dev/zero out.ecx", DEVICE),
        ("decode /dev/zero out.png", DEVICE),
        ("info /dev/zero", DEVICE),
        ("bench --compare /dev/zero /dev/zero", DEVICE),
        ("bench /dev/zero", "neither a file nor a folder"),
        ("eval photo.png --cache /dev/zero", DEVICE),
        ("eval photo.png --bundle /dev/zero", "neither a folder nor a zip file"),
        ("convert /dev/zero -o x.bundle", "not a file"),
        ("device-test --host nowhere --bundle /dev/zero", DEVICE),
    ],
)
def test_what_has_no_end_is_refused(cli: Cli, place: Path, command: str, words: str) -> None:
    def limit() -> None:  # of what would read it all the same
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    before = listing(place)
    result = cli(*command.split(), preexec_fn=limit)
    assert result.returncode == 1
    assert result.stderr == f"edgecodec: /dev/zero: {words}\n"
    assert listing(place) == before


# -- signals ---------------------------------------------------------------------------------------


@pytest.fixture
def at_work(
    place: Path, variables: dict[str, str], photo: UInt8Array
) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start an encode that takes long, and return once it works."""
    Image.fromarray(np.tile(photo, (6, 6, 1))).save(place / "large.png", compress_level=1)
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edgecodec", "encode", "large.png", "out.ecx", "-e", "9"]
        # What a shell starts in the background ignores SIGINT, and so would this process.
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(
                [*command, *FAST], cwd=place, env=variables, text=True, stderr=subprocess.PIPE
            )
        finally:
            signal.signal(signal.SIGINT, inherited)
        started.append(process)
        end = time.monotonic() + 60
        while not list(Path(variables["TMPDIR"]).glob("edgecodec-*/graphs/onnx/*")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.2)  # it loads and codes for longer than that
        assert process.poll() is None
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_kill_in_the_middle_leaves_nothing_that_matters(
    at_work: Callable[[], subprocess.Popen[str]],
    cli: Cli,
    place: Path,
    temporary: Path,
    small_file: bytes,
) -> None:
    before = listing(place)
    process = at_work()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert listing(place) == before
    assert cli("decode", "good.ecx", "out.png", *FAST).returncode == 0
    assert listing(temporary) == []  # the next one cleaned up
    with Image.open(place / "out.png") as image:
        assert image.size == (61, 50)


@pytest.mark.parametrize(
    ("number", "words", "code"),
    [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)],
)
def test_interruption_has_its_exit_code_and_leaves_nothing(
    at_work: Callable[[], subprocess.Popen[str]],
    place: Path,
    temporary: Path,
    number: signal.Signals,
    words: str,
    code: int,
) -> None:
    before = listing(place)
    process = at_work()
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == code
    assert told == f"edgecodec: {words}\n"
    assert listing(place) == before
    assert listing(temporary) == []


def test_a_program_that_is_terminated_cleans_up_however_often_it_is_told(
    place: Path, variables: dict[str, str]
) -> None:
    """As by `timeout`, which tells a process and then all of its group."""
    before = listing(place)
    program = """
import os, signal
from edgecodec.bundle.writing import Path, writing_bundle
from edgecodec.cli import entry_point, info_command

def run(args):
    with writing_bundle(Path(args.file)) as folder:
        (folder / "begun").touch()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("not reached")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

info_command.run = run
entry_point()
"""
    result = subprocess.run(
        [sys.executable, "-c", program, "info", "x.bundle"],
        cwd=place,
        env=variables,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (143, "edgecodec: terminated\n")
    assert listing(place) == before


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
@pytest.mark.parametrize("megabytes", [700, 1000, 1600])
def test_memory_that_runs_out_gives_the_right_file_or_none(
    cli: Cli, place: Path, photo: UInt8Array, backend: str, megabytes: int
) -> None:
    large = np.tile(photo, (4, 4, 1))
    Image.fromarray(large).save(place / "large.png", compress_level=1)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    before = listing(place)
    options = ("--backend", backend, "--precision", "fp32", "--threads", "1")
    result = cli("encode", "large.png", "out.ecx", *options, preexec_fn=limit)
    assert "Traceback" not in result.stderr
    if result.returncode == 0:
        with Codec(None, backend, "fp32", 1) as codec:
            assert (place / "out.ecx").read_bytes() == codec.encode(large)
    else:
        assert result.returncode == 1, result.stderr
        assert listing(place) == before


def test_memory_that_runs_out_is_no_damage_of_a_picture(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MemoryError):
        open_image((place / "photo.png").read_bytes(), "photo.png")


# -- others at the same time -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite", "torch"])
def test_32_threads_share_a_codec(shipped: Bundle, photo: UInt8Array, backend: str) -> None:
    """Pictures of several sizes and qualities, all at once, are what they are one by one."""
    crops = [np.ascontiguousarray(photo[:h, :w]) for h, w in ((1, 1), (33, 50), (64, 64), (70, 31))]
    jobs = [(n, crops[n % len(crops)], 10 + 20 * (n % 5)) for n in range(32)]

    with Codec(shipped, backend, "fp32", threads=1) as codec:

        def work(job: tuple[int, UInt8Array, int]) -> tuple[bytes, bytes]:
            data = codec.encode(job[1], job[2], tile=32)
            return data, np.asarray(codec.decode(data)).tobytes()

        with ThreadPoolExecutor(32) as pool:
            together = list(pool.map(work, jobs))  # the sessions open under them
        assert together == [work(job) for job in jobs]


def test_bundle_that_is_replaced_in_use_gives_no_wrong_picture(
    tmp_path: Path, other_bundle: Path, small: UInt8Array, codec: Codec
) -> None:
    path = tmp_path / "model.bundle"
    shutil.copytree(default_bundle_path(), path)
    expected = codec.encode(small, 50)
    with Codec(path, "onnxruntime", "fp32", threads=1) as used:
        assert used.encode(small, 50) == expected
        path.rename(tmp_path / "old.bundle")
        shutil.copytree(other_bundle, path)
        for name in ("weights.bin", "golden.npz"):
            (path / name).write_bytes(bytes(1000))
        assert used.encode(small, 50) == expected  # what is loaded stays
        with pytest.raises(BundleError, match="damaged"):
            used.decode(expected)  # its network is not there any more
        shutil.rmtree(path)
        with pytest.raises(BundleError, match=r"missing|cannot be read"):
            used.decode(expected)
        (tmp_path / "old.bundle").rename(path)
        assert (np.asarray(used.decode(expected)) == np.asarray(codec.decode(expected))).all()


# -- variables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EDGECODEC_BACKEND", "EDGECODEC_DISABLE", "EDGECODEC_TRUST"])
def test_variable_that_says_nan_is_named(cli: Cli, variables: dict[str, str], name: str) -> None:
    result = cli("encode", "photo.png", "out.ecx", env={**variables, name: "nan"})
    one_line(result, name, "'nan'", "onnxruntime")


@pytest.mark.parametrize("value", ["nan", "-1", "1e400", ""])
def test_odd_values_for_libraries_do_no_harm(
    cli: Cli, variables: dict[str, str], place: Path, small_file: bytes, value: str
) -> None:
    odd = dict.fromkeys(("OMP_NUM_THREADS", "COLUMNS", "OPENBLAS_NUM_THREADS"), value)
    result = cli("decode", "good.ecx", "out.png", *FAST, env={**variables, **odd})
    assert result.returncode == 0, result.stderr


def test_no_runtime_leaves_anything_behind(
    cli: Cli, variables: dict[str, str], temporary: Path, tmp_path: Path
) -> None:
    """Nor reports to its maker, for which ONNX Runtime would keep an identifier in the cache."""
    home = tmp_path / "home"
    home.mkdir()
    own = {**variables, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    own.pop("ORT_DISABLE_TELEMETRY", None)
    assert cli("encode", "photo.png", "out.ecx", *FAST, env=own).returncode == 0
    assert [p for p in home.rglob("*") if p.is_file()] == []
    assert listing(temporary) == []


# -- processes that are forked ---------------------------------------------------------------------

FORKING = """
import gc, os, signal, sys, threading, time
import numpy as np
from edgecodec import Codec

backend, busy = sys.argv[1:]
pixels = np.arange(64 * 96 * 3, dtype=np.uint8).reshape(64, 96, 3)
codec = Codec(None, backend, "fp32", threads=2)
data = codec.encode(pixels)
shown = np.asarray(codec.decode(data))

def work():
    while True:
        codec.decode(codec.encode(pixels))

for _ in range(2 if busy == "busy" else 0):
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.3)

workers = []
for how in ("ends", "closes", "collects", "works", "works"):
    pid = os.fork()
    if not pid:
        if how == "closes":
            codec.close()
        elif how == "collects":
            del codec
            gc.collect()
        elif how == "works":
            assert (np.asarray(codec.decode(data)) == shown).all()
            assert codec.encode(pixels) == data
        sys.exit(0)  # as the end of a program, where everything is destroyed
    workers.append(pid)
end, codes = time.monotonic() + 60, []
for pid in workers:
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.02)
    if found[0] == 0:
        os.kill(pid, signal.SIGKILL)
        found = os.waitpid(pid, 0)
    codes.append(os.waitstatus_to_exitcode(found[1]))
print(codes, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("backend", "busy"),
    [
        *[
            (name, busy)
            for name in ("onnxruntime", "openvino", "tflite")
            for busy in ("idle", "busy")
        ],
        ("torch", "idle"),
    ],
)
def test_forked_process_works_and_ends(variables: dict[str, str], backend: str, busy: str) -> None:
    """As workers of a server do that loads the codec before it forks them."""
    command = [sys.executable, "-c", FORKING, backend, busy]
    result = subprocess.run(
        command, env=variables, text=True, capture_output=True, timeout=120, check=False
    )
    assert result.stdout == "[0, 0, 0, 0, 0]\n", result.stderr


REFORKING = """
import os, signal, sys, time
import numpy as np
from edgecodec import Codec

backend, cache = sys.argv[1:]
pixels = np.arange(64 * 96 * 3, dtype=np.uint8).reshape(64, 96, 3)
large = np.tile(pixels, (8, 8, 1))

def forked(work):
    pid = os.fork()
    if not pid:
        work()
        sys.exit(0)
    end = time.monotonic() + 60
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.02)
    if found[0] == 0:
        os.kill(pid, signal.SIGKILL)
        found = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(found[1]), end=" ", flush=True)

def anew():
    with Codec(None, backend, "fp32", threads=2) as codec:
        assert codec.encode(pixels) == data

def measured():
    os.environ["EDGECODEC_CACHE"] = cache
    with Codec(None, backend, "fp32") as codec:
        codec.encode(pixels)

with Codec(None, backend, "fp32", threads=2) as codec:
    data = codec.encode(pixels)
forked(anew)  # its session was closed
anew()
codec = Codec(None, backend, "fp32", threads=2)
codec.encode(pixels)
forked(anew)  # a session is open
codec.close()
forked(anew)  # one that was open over a fork was closed
forked(measured)
codec = Codec(None, backend, "fp32")
codec.encode(pixels)
forked(lambda: codec.encode(large))  # of another size, for which nothing was measured
codec = Codec(None)
codec.encode(pixels)
forked(lambda: codec.encode(large))
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_forked_process_loads_anew_what_its_parent_had_closed(
    variables: dict[str, str], tmp_path: Path, backend: str
) -> None:
    """Also where nothing was measured before, of all runtimes."""
    command = [sys.executable, "-c", REFORKING, backend, str(tmp_path / "other")]
    alone = {**variables, "EDGECODEC_DISABLE": "torch"}
    result = subprocess.run(
        command, env=alone, text=True, capture_output=True, timeout=400, check=False
    )
    assert result.stdout.strip() == "0 0 0 0 0 0", result.stderr


NESTED = """
import os, signal, sys
import numpy as np
from edgecodec import Codec
from edgecodec.errors import BackendUnavailableError

def encode(backend):
    with Codec(None, backend, "fp32", threads=1) as codec:
        return codec.encode(np.zeros((64, 96, 3), np.uint8))

def ended(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status

encode("openvino")
if pid := os.fork():
    ended(pid)
    print("ended")
elif pid := (encode("openvino"), os.fork())[1]:
    ended(pid)
    encode("openvino")  # it goes on
else:
    signal.alarm(60)
    try:
        encode("openvino")
    except BackendUnavailableError as exc:
        assert "do not survive the fork" in str(exc)
    else:
        sys.exit(1)
    encode("auto")
"""


def test_fork_of_a_fork_is_told_that_it_lacks_openvino(
    variables: dict[str, str], tmp_path: Path
) -> None:
    alone = {**variables, "EDGECODEC_DISABLE": "torch"}
    result = subprocess.run(
        [sys.executable, "-c", NESTED],
        env=alone, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "ended\n"), result.stderr
    kept = [p.read_text() for p in tmp_path.glob("cache/verdict-*")]
    assert kept
    assert not any("survive" in text for text in kept)


POOL = """
import multiprocessing, sys
import numpy as np
from edgecodec import Codec

pixels = np.full((40, 50, 3), 77, np.uint8)
codec = Codec(None, sys.argv[1], "fp32", threads=2)

def work(_):
    return codec.encode(pixels)

if __name__ == "__main__":
    expected = work(0)
    for method in ("fork", "forkserver", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(work, range(4)) == [expected] * 4, method
            pool.close()
            pool.join()
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_pool_of_processes_works_and_ends(
    variables: dict[str, str], tmp_path: Path, backend: str
) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    command = [sys.executable, str(tmp_path / "pool.py"), backend]
    result = subprocess.run(
        command, env=variables, text=True, capture_output=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


# -- temporary files that are cleaned away ---------------------------------------------------------


@pytest.mark.parametrize("gone", ["files", "folder"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_graphs_cleaned_away_in_use_are_unpacked_again(
    tmp_path: Path, scratch: Path, small: UInt8Array, packed: bool, gone: str
) -> None:
    """As by systemd-tmpfiles, in a process that runs for days."""
    path = default_bundle_path()
    if packed:
        path = Path(shutil.make_archive(str(tmp_path / "model"), "zip", path))
    with Codec(path, "onnxruntime", "fp32", threads=1) as codec:
        data = codec.encode(small)
        (folder,) = scratch.glob("edgecodec-*")
        if gone == "folder":
            shutil.rmtree(folder)
            folder.mkdir()  # by whoever knows its name
        else:
            for file in [p for p in folder.rglob("*") if p.is_file() and p.name != "lock"]:
                file.unlink()
        assert codec.decode(data).size == (61, 50)  # its network was not loaded yet
        assert gone == "files" or listing(folder) == []


def test_folder_in_use_is_passed_by_of_who_asks_its_lock(scratch: Path) -> None:
    """As systemd-tmpfiles does of each folder."""
    with Bundle() as bundle:
        bundle.artefact_file(bundle.manifest.artefacts[0])
        (folder,) = scratch.glob("edgecodec-*")
        handle = os.open(folder, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)


# -- too few threads -------------------------------------------------------------------------------


FEW_THREADS = """
import sys
import numpy as np
from edgecodec import Codec
from edgecodec.errors import BackendError

try:
    with Codec(None, threads=1) as codec:
        codec.encode(np.zeros((64, 96, 3), np.uint8))
except BackendError as exc:
    print(exc)
"""


@pytest.mark.skipif(
    not shutil.which("setpriv") or os.geteuid() != 0,
    reason="a user without other processes is needed",
)
@pytest.mark.parametrize("limit", [2, 3])
def test_limit_of_threads_is_not_held_against_openvino(
    variables: dict[str, str], tmp_path: Path, temporary: Path, limit: int
) -> None:
    """With 3 a trial has a thread beside its first, with 2 it has none or does not start at all."""
    cache = tmp_path / "cache"
    cache.mkdir()
    user = str(400_000 + os.getpid() % 100_000 + limit)
    for folder in (cache, temporary):
        os.chown(folder, int(user), -1)
    rights = "+dac_override,+dac_read_search"  # the interpreter may be root's alone
    command = [
        "setpriv", "--reuid", user, "--clear-groups", "--inh-caps", rights, "--ambient-caps",
        rights, "prlimit", f"--nproc={limit}", sys.executable, "-c", FEW_THREADS,
    ]  # fmt: skip
    alone = {**variables, "OPENBLAS_NUM_THREADS": "1", "EDGECODEC_DISABLE": "torch"}
    result = subprocess.run(
        command, env=alone, text=True, capture_output=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "crashed" not in result.stdout
    kept = "".join(path.read_text() for path in cache.glob("verdict-*"))
    assert "CPU plugin" not in kept
    assert "Resource temporarily" not in kept


def test_want_of_threads_is_told_and_not_remembered(
    tmp_path: Path, small: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECODEC_CACHE", str(tmp_path / "cache"))

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("edgecodec.runtimes.selection.candidates.usable_cores", lambda: 2)
    with Codec(None, "tflite", "fp32") as codec, monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", start)
        with pytest.raises(BackendError, match=r"cannot start 1 thread .*ulimit -u"):
            codec.choice("analysis")
        assert not list(tmp_path.glob("cache/verdict-*"))
        limited.undo()
        assert codec.choice("analysis").backend == "tflite"
    assert list(tmp_path.glob("cache/verdict-*"))
