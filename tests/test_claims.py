"""What a hundred bytes cost that claim to be a picture of gigapixels, as the system counts it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.format.container import MAGIC

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# The first call pays for imports, with a file that claims nothing; the second is measured.
_CHILD = """
import json, sys, time
from edgecodec.codec import Codec
from edgecodec.device_tests.measuring.process import peak_bytes
from edgecodec.errors import BitstreamError
from edgecodec.cli.info_command import describe
small, large = (bytes.fromhex(text) for text in sys.argv[2:4])
codec = Codec(None, "onnxruntime", "fp32", 1)
work = {
    "decode": codec.decode,
    "keep going": lambda data: codec.decode(data, keep_going=True),
    "latents": codec.decode_latents,
    "info": describe,
}[sys.argv[1]]
spent = []
for data in (small, large):
    before, begin = peak_bytes(), time.process_time()
    try:
        work(data)
        refused = False
    except BitstreamError:
        refused = True
    spent.append((time.process_time() - begin, peak_bytes() - before, refused))
print(json.dumps(spent[1]))
"""


def claiming(width: int, height: int, tables_id: str) -> bytes:
    head = struct.pack("<BBBBHHH8s", 1, 0, 50, 0, width, height, 4096, bytes.fromhex(tables_id))
    parts = [b"HEAD" + struct.pack("<I", len(head)) + head, b"TILE" + struct.pack("<I", 40)]
    parts[1] += b"\xff" * 40
    return MAGIC + b"".join(part + struct.pack("<I", zlib.crc32(part)) for part in parts)


@pytest.mark.parametrize("size", [(60000, 60000), (65535, 8192)], ids=str)
@pytest.mark.parametrize("what", ["decode", "keep going", "latents", "info"])
def test_a_claim_costs_under_50_mb_and_50_ms(
    shipped: Bundle, environment: dict[str, str], tmp_path: Path, size: tuple[int, int], what: str
) -> None:
    tables_id = shipped.manifest.tables_id
    small, large = claiming(32, 32, tables_id), claiming(*size, tables_id)
    assert len(large) <= 100
    command = [sys.executable, "-c", _CHILD, what, small.hex(), large.hex()]
    done = subprocess.run(command, capture_output=True, check=True, env=environment, timeout=120)
    seconds, peak, refused = json.loads(done.stdout)
    sys.stdout.write(f"{what} of {size}: {1e3 * seconds:.1f} ms, {peak / 1e6:.1f} MB\n")
    # `info` needs no tiles: it describes what it finds, where the size can be.
    assert refused or (what == "info" and size == (65535, 8192))
    assert seconds < 0.05
    assert peak < 50e6
