"""What a small file may cost before it is refused, whatever it claims: measured by the system.

`tracemalloc` sees what Python allocates (tests/test_codec.py); this sees all of a process.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from edgecodec.bundle import Bundle
from edgecodec.container import MAGIC
from tests.test_codec import CLAIMS, chunk
from tests.tiny_codec import write_tiny_codec

MOST_BYTES = 50e6
MOST_S = 0.05

MEASURE = """
import contextlib, io, json, sys, time
from pathlib import Path
from edgecodec.bundle import Bundle
from edgecodec.cli import main
from edgecodec.codec import Codec
from edgecodec.errors import BitstreamError

def memory(name):
    return 1024 * int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

def refuse(action, path):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if action == "info":
            return main(["info", path])
        try:
            codec.decode(Path(path).read_bytes(), keep_going=action == "keep going")
        except BitstreamError:
            return 1

codec = Codec(sys.argv[1], "onnxruntime", threads=1)
codec.decode(codec.bundle.golden()["file"].tobytes())  # loads all that is needed
refuse("info", sys.argv[2])
found = []
for path in sys.argv[2:]:
    for action in ("info", "decode", "keep going"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
        before, seconds = memory("VmRSS"), []
        for _ in range(3):
            begin = time.process_time()
            refuse(action, path)
            seconds.append(time.process_time() - begin)
        found.append([path, action, min(seconds), memory("VmHWM") - before])
print(json.dumps(found))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_a_hundred_bytes_cost_a_process_little_before_they_are_refused(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Of the processor, as machines that test are busy; and of memory, at its highest."""
    bundle = write_tiny_codec(tmp_path)
    with Bundle(bundle) as opened:
        tables = bytes.fromhex(opened.manifest.tables_id)
    paths = []
    for name, (width, height, tile) in CLAIMS.items():
        head = struct.pack("<BBBBHHH8s", 1, 0, 50, 0, width, height, tile, tables)
        for tiles in (0, 1):
            path = tmp_path / f"{name} {tiles}.ecx"
            path.write_bytes(MAGIC + chunk(b"HEAD", head) + tiles * chunk(b"TILE", b"\xff" * 50))
            assert path.stat().st_size <= 100
            paths.append(path)
    command = [sys.executable, "-c", MEASURE, str(bundle), *map(str, paths)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 3 * 2 * len(CLAIMS)
    for path, action, seconds, peak in found:
        assert seconds < MOST_S, (path, action)
        assert peak < MOST_BYTES, (path, action)
    print(  # noqa: T201 - for the figures in docs/robustness.md
        f"at most {1e3 * max(f[2] for f in found):.1f} ms, {max(f[3] for f in found) / 1e6:.1f} MB"
    )
