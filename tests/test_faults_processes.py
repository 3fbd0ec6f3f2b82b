"""Processes that are killed, interrupted or held short, several at once, and many threads.

No partial file, no corrupt cache, no wrong picture. Faults of files and folders: test_faults.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecodec.codec import Codec
from tests.tiny_codec import write_tiny_codec

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")

Start = Callable[..., subprocess.Popen[bytes]]
THREADS = 32


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
def start(made: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start a process in a folder of its own; `-m edgecodec` is for the caller to say."""
    started: list[subprocess.Popen[bytes]] = []
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    variables = {
        **environment,
        "TMPDIR": str(tmp_path / "temporary"),
        "EDGECODEC_CACHE": str(tmp_path / "cache"),
        "MADE": str(made),
        "OMP_NUM_THREADS": "1",
    }

    def run(*args: object, **options: Any) -> subprocess.Popen[bytes]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(
            [sys.executable, *map(str, args)], cwd=tmp_path / "work", env=variables, **options
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with process:  # closes its pipes
            process.kill()


def left_behind(folder: Path) -> list[Path]:
    """Return temporary folders of ours: runtimes keep files of their own there."""
    return list((folder / "temporary").glob("edgecodec-*"))


def encode(made: Path, output: str = "x.ecx", *more: object) -> tuple[object, ...]:
    """Return a command line that encodes."""
    options = ("--bundle", made / "tiny.bundle", "--backend", "onnxruntime", *more)
    return ("-m", "edgecodec", "encode", made / "in.png", output, *options)


def check_cache(folder: Path) -> int:
    """Return how many verdicts are kept, all of them whole."""
    kept = list(folder.glob("verdict-*"))
    for path in kept:
        assert set(json.loads(path.read_bytes())) == {"key", "verdict"}
    return len(kept)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


# -- killed and interrupted ------------------------------------------------------------------------

SLOW_ENCODE = """
import sys, time
from pathlib import Path
import edgecodec.encoding
from edgecodec.cli import entry_point
plain = edgecodec.encoding.TileEncoder.encode
def slow(self, pixels):
    found = plain(self, pixels)
    Path("../middle").touch()
    time.sleep(60)
    return found
edgecodec.encoding.TileEncoder.encode = slow
entry_point()
"""


def in_the_middle(start: Start, made: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Return a process that is encoding, over a file that is there."""
    (folder / "work" / "x.ecx").write_bytes(b"there")
    process = start("-c", SLOW_ENCODE, *encode(made, "x.ecx", "-f")[2:])
    wait_for((folder / "middle").exists, process)
    return process


def test_encode_killed_in_the_middle_leaves_nothing(
    start: Start, made: Path, tmp_path: Path
) -> None:
    """What it had in the temporary folder goes with the next process that needs one."""
    process = in_the_middle(start, made, tmp_path)
    assert left_behind(tmp_path)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["x.ecx"]
    assert (tmp_path / "work" / "x.ecx").read_bytes() == b"there"
    check_cache(tmp_path / "cache")
    again = start(*encode(made, "x.ecx", "-f"))
    assert again.wait() == 0
    assert (tmp_path / "work" / "x.ecx").read_bytes() == (made / "in.ecx").read_bytes()
    assert not left_behind(tmp_path)
    assert not list((tmp_path / "cache").glob("trial-*"))


def test_interrupted_encode_says_so_and_leaves_nothing(
    start: Start, made: Path, tmp_path: Path
) -> None:
    process = in_the_middle(start, made, tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (1, b"", b"edgecodec: interrupted\n")
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["x.ecx"]
    assert (tmp_path / "work" / "x.ecx").read_bytes() == b"there"
    assert not left_behind(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_encode_stopped_at_any_moment(
    start: Start, made: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """With the choice of a backend in it: the next process has nothing to suffer from."""
    out = tmp_path / "work"
    command = [arg for arg in encode(made) if arg not in ("--backend", "onnxruntime")]
    begin = time.monotonic()
    assert start(*command).wait() == 0
    whole_s, expected = time.monotonic() - begin, (out / "x.ecx").read_bytes()
    for moment in np.linspace(0.1, 1.0, 12):
        (out / "x.ecx").unlink(missing_ok=True)
        for path in (tmp_path / "cache").glob("*"):
            path.unlink()
        process = start(*command)
        time.sleep(float(moment) * whole_s)
        process.send_signal(number)
        process.communicate(timeout=120)
        left = {path.name for path in out.iterdir()}
        assert left <= {"x.ecx"}, moment
        if left:
            assert (out / "x.ecx").read_bytes() == expected
        check_cache(tmp_path / "cache")
        again = start(*command, "-f")
        assert again.wait() == 0
        assert (out / "x.ecx").read_bytes() == expected
    assert not left_behind(tmp_path)


def test_killed_while_it_writes_leaves_what_was_there(start: Start, tmp_path: Path) -> None:
    """At worst a hidden file lies beside it, never half of one under its name."""
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom edgecodec.files import replacing\n"
        "with replacing(Path('x')) as temporary:\n    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "work" / "x").write_bytes(b"there")
    assert start("-c", code).wait() == -signal.SIGKILL
    assert (tmp_path / "work" / "x").read_bytes() == b"there"
    assert all(p.name == "x" or p.name.startswith(".x.") for p in (tmp_path / "work").iterdir())


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_closed_pipe_is_an_exit_code_and_nothing_else(
    start: Start, made: Path, tmp_path: Path, command: str
) -> None:
    read, write = os.pipe()
    os.close(read)
    source = made / ("in.png" if command == "encode" else "in.ecx")
    options = ("--bundle", made / "tiny.bundle", "--backend", "onnxruntime")
    process = start("-m", "edgecodec", command, source, "-", *options, stdout=write)
    os.close(write)
    assert process.communicate()[1] == b""
    assert process.returncode == 1
    assert not left_behind(tmp_path)


# -- several at once -------------------------------------------------------------------------------


def test_processes_that_warm_the_cache_at_once(start: Start, made: Path, tmp_path: Path) -> None:
    command = [arg for arg in encode(made, "-") if arg not in ("--backend", "onnxruntime")]
    processes = [start(*command) for _ in range(3)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {out for out, _ in results} == {(made / "in.ecx").read_bytes()}
    assert check_cache(tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name[:6] in ("trial-", ".verdi")]
    assert not left_behind(tmp_path)


def test_many_threads_share_a_codec(made: Path) -> None:
    """From the first call on, with pictures of several sizes and of one and many tiles."""
    rng = np.random.default_rng(3)
    shapes = [(1, 1), (33, 70), (64, 96), (96, 64), (130, 200), (200, 130), (31, 257), (160, 160)]
    pictures = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]

    def work(codec: Codec, number: int) -> tuple[bytes, bytes]:
        pixels = pictures[number % len(pictures)]
        data = codec.encode(pixels, 1 + 7 * number % 100, tile=(64, 1536)[number % 2])
        return data, np.asarray(codec.decode(data)).tobytes()

    with Codec(made / "tiny.bundle", "onnxruntime", threads=1) as alone:
        expected = [work(alone, number) for number in range(THREADS)]
    together = threading.Barrier(THREADS)

    def wait_and_work(number: int) -> list[tuple[bytes, bytes]]:
        together.wait()
        return [work(codec, (number + k) % THREADS) for k in range(4)]

    with (
        Codec(made / "tiny.bundle", "onnxruntime", threads=1) as codec,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for number, found in enumerate(pool.map(wait_and_work, range(THREADS))):
            assert found == [expected[(number + k) % THREADS] for k in range(4)]


# -- limits ----------------------------------------------------------------------------------------


def limited(kind: str, value: int, command: Sequence[object]) -> list[object]:
    """Return a command line under a limit of the system."""
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.{kind}, ({value}, resource.RLIM_INFINITY))\n"
        "from edgecodec.cli import entry_point\nentry_point()\n"
    )
    return ["-c", code, *command[2:]]


def test_limit_of_file_sizes_is_a_full_disk(start: Start, made: Path, tmp_path: Path) -> None:
    picture = tmp_path / "work" / "x.png"
    command = ("-m", "edgecodec", "decode", made / "in.ecx", picture, "--bundle",
               made / "tiny.bundle", "--backend", "onnxruntime")  # fmt: skip
    for limit, words in ((16 << 10, b"x.png: cannot be written"), (2 << 10, b"let TMPDIR name")):
        process = start(*limited("RLIMIT_FSIZE", limit, command))
        out, err = process.communicate()
        assert (process.returncode, out, err.count(b"\n")) == (1, b"", 1)
        assert words in err
        assert b"File too large" in err
    assert not list((tmp_path / "work").iterdir())
    assert not left_behind(tmp_path)


MEMORY = """
import hashlib, os, resource, sys
from pathlib import Path
import numpy as np
from edgecodec.codec import Codec
from edgecodec.device_tests.large_photo import textured
from edgecodec.errors import EdgeCodecError

def used():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0])

codec = Codec(Path(os.environ["MADE"]) / "tiny.bundle", sys.argv[1], threads=1)
pixels = textured(1200, 1600)
def work():
    data = codec.encode(pixels, 60, tile=512)
    shown = np.asarray(codec.decode(data))
    return hashlib.sha256(data + shown.tobytes()).hexdigest()

codec.encode(pixels[:64, :64])
codec.decode(codec.encode(pixels[:64, :64]))
for megabytes in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256):
    resource.setrlimit(resource.RLIMIT_AS, (used() + (megabytes << 20), resource.RLIM_INFINITY))
    try:
        print(work())
    except (MemoryError, EdgeCodecError) as exc:
        print(type(exc).__name__)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert not [n for n in os.listdir(".")]
print(work())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_memory_that_ends_in_a_large_picture_is_an_error_and_the_codec_lives_on(
    start: Start, tmp_path: Path
) -> None:
    process = start("-c", MEMORY, "onnxruntime")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    *limited_ones, right = out.decode().split()
    assert len(right) == 64
    assert set(limited_ones) <= {right, "MemoryError", "BackendError"}
    assert limited_ones[0] != right
    assert limited_ones[-1] == right
    assert not left_behind(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino", "tflite"])
def test_command_with_too_little_memory_ends_in_one_line(
    start: Start, tmp_path: Path, backend: str
) -> None:
    """A right file or none, where the start succeeds but little is left for the picture.

    With less, system libraries may abort while a runtime is loaded: no file, no harm to the cache.
    """
    from edgecodec.device_tests.large_photo import textured

    Image.fromarray(textured(1000, 1500)).save(tmp_path / "big.png", compress_level=1)
    command = ("-m", "edgecodec", "encode", tmp_path / "big.png", "x.ecx", "--threads", "1",
               "--backend", backend, "--precision", "fp32")  # fmt: skip
    assert start(*command).wait() == 0
    output = tmp_path / "work" / "x.ecx"
    right = hashlib.sha256(output.read_bytes()).hexdigest()
    codes = set()
    for megabytes in (350, 400, 450, 500, 600, 700, 900, 1200, 4000):
        output.unlink(missing_ok=True)
        process = start(*limited("RLIMIT_AS", megabytes << 20, command))
        _, err = process.communicate(timeout=300)
        codes.add(process.returncode)
        told = err.decode(errors="replace")
        assert "Traceback" not in told, (megabytes, told)
        if process.returncode == 0:
            assert hashlib.sha256(output.read_bytes()).hexdigest() == right
            continue
        assert not list((tmp_path / "work").iterdir())
        if process.returncode == 1:
            assert told.splitlines()[-1].startswith("edgecodec: "), (megabytes, told)
        else:  # of a library, as it says
            assert process.returncode in (-signal.SIGABRT, 127), (megabytes, told)
    assert 0 in codes
    check_cache(tmp_path / "cache")
    assert start(*command, "-f").wait() == 0
    assert hashlib.sha256(output.read_bytes()).hexdigest() == right
