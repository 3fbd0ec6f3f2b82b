"""Exact int8 on x86 processors without VNNI, as oneDNN is told to be one.

Eight-bit weights fail here: pairs of products overflow 16 bits.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from edgecodec.converters.writers.to_openvino import write_openvino
from edgecodec.converters.int8.oracle import run_oracle
from edgecodec.runtimes.base import Artefact, SessionOptions
from edgecodec.runtimes.registry import get_backend
from tests.support.exact_graphs import latents, synthesis_like

path = Path(sys.argv[1])
for seed in range(3):
    graph = synthesis_like(seed)
    write_openvino(graph, path, "int8")
    session = get_backend("openvino").load(
        Artefact("synthesis", "openvino", "int8", path), SessionOptions(threads=1)
    )
    for size in ((6, 9), (1, 1), (12, 16)):
        y_hat = latents(seed, *size)
        found = session.run({"y_hat": y_hat})["x_hat"]
        assert np.array_equal(found, run_oracle(graph, {"y_hat": y_hat})["x_hat"]), (seed, size)
print("exact")
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="about x86")
@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "AVX512_CORE"])
def test_openvino_is_exact_without_vnni(instructions: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "a.xml")],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "exact", done.stderr[-2000:]
