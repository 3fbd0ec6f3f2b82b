"""Where OpenVINO finds no kernel for the processor it answers with nothing, and crashes later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecodec.device_tests.kit import kit_model
from edgecodec.errors import BackendError
from edgecodec.runtimes import openvino_backend
from edgecodec.runtimes.base import Artefact
from edgecodec.runtimes.device import probe_device
from edgecodec.runtimes.openvino_backend import OpenVinoSession

ARTEFACT = Artefact("synthesis", "openvino", "fp16", Path("synthesis.fp16.xml"))
LATENTS = {"y_hat": np.zeros((1, 2, 3, 16), np.float32)}


class Compiled:
    """A model that answers with an empty map, or with an error."""

    inputs = ()

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.outputs = (self,)
        self.data = np.zeros((1, 0, 0, 3), np.float32)

    def get_any_name(self) -> str:
        return "x_hat"

    def create_infer_request(self) -> Compiled:
        return self

    def infer(self, *_: object, **__: object) -> None:
        if self.error is not None:
            raise self.error

    def get_tensor(self, _: str) -> Compiled:
        return self


@pytest.mark.parametrize("error", [None, RuntimeError("no kernel")])
def test_model_that_failed_is_kept_until_the_end(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(openvino_backend, "_failed", kept)
    compiled = Compiled(error)
    session = OpenVinoSession(ARTEFACT, compiled)
    monkeypatch.setattr(session, "inputs", {"y_hat": (1, None, None, 16)})
    for _ in range(2):
        with pytest.raises(BackendError, match="empty result" if error is None else "no kernel"):
            session.run(LATENTS)
    session.close()
    assert kept == [compiled]


SCRIPT = """
from edgecodec.bundle import Bundle
from edgecodec.codec import Codec
from edgecodec.errors import BackendError

with Bundle({model!r}) as bundle:
    for precision in ("fp16", "fp32", "int8"):
        with Codec(bundle, "openvino", precision, 1) as codec:
            try:
                codec.choice("synthesis")
            except BackendError as exc:
                print(precision, exc)
print("alive")
"""


def test_processor_kept_from_its_instructions_crashes_nothing(tmp_path: Path) -> None:
    """oneDNN, told to do without AVX-512, has no bfloat16, which OpenVINO takes all the same."""
    pytest.importorskip("openvino")
    if "avx512_bf16" not in probe_device().features:
        pytest.skip("this processor has no bfloat16")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "EDGECODEC_CACHE": ""}
    command = [sys.executable, "-c", SCRIPT.format(model=str(kit_model()))]
    result = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    *told, last = result.stdout.decode().splitlines()
    assert last == "alive"
    assert [line.split()[0] for line in told] in ([], ["fp16"])
