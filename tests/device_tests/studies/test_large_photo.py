from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from edgecodec.device_tests.studies.large_photo import textured


def test_textured_is_reproducible_and_has_detail() -> None:
    a, b = textured(300, 200), textured(300, 200)
    assert a.shape == (300, 200, 3)
    assert np.array_equal(a, b)
    assert a.std() > 20


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_a_photo_of_24_megapixels_stays_below_the_memory_bound(backend: str) -> None:
    """Memory is the requirement; the ratio has slack, because CI machines are shared."""
    run = subprocess.run(
        [sys.executable, "-m", "edgecodec.device_tests.studies.large_photo", "--backend", backend],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(run.stdout)
    assert result["size"] == [6000, 4000]
    assert 100e6 < result["peak_bytes"] < 1.2e9
    assert result["encode_ratio"] < 2
    assert result["decode_ratio"] < 2
