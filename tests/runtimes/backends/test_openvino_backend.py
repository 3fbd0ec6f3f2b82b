"""Where OpenVINO finds no kernel for the processor it answers with nothing, and crashes later."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecodec.bundle.manifest import Precision
from edgecodec.bundle.reading import Bundle
from edgecodec.converters.writers.to_openvino import write_openvino
from edgecodec.device_tests.conformance.kit import kit_model
from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.runtimes.backends import openvino_backend
from edgecodec.runtimes.backends.openvino_backend import (
    OpenVinoBackend,
    OpenVinoSession,
    precision_hint,
)
from edgecodec.runtimes.base import Artefact, SessionOptions
from edgecodec.runtimes.device.probe import usable_cores
from edgecodec.runtimes.layers.base import BFLOAT16, FLOAT32
from edgecodec.runtimes.selection.transient import is_transient
from tests.runtimes.conftest import Tiny, with_bf16

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
    session = OpenVinoSession(ARTEFACT, compiled, contextlib.nullcontext())
    monkeypatch.setattr(session, "inputs", {"y_hat": (1, None, None, 16)})
    for _ in range(2):
        with pytest.raises(BackendError, match="empty result" if error is None else "no kernel"):
            session.run(LATENTS)
    session.close()
    assert kept == [compiled]


class Core:
    """What OpenVINO says of a processor."""

    def __init__(self, *numbers: str) -> None:
        self.numbers = numbers

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return ["WINOGRAD", *self.numbers, "EXPORT_IMPORT"]


@pytest.mark.parametrize(
    ("numbers", "hints"),
    [
        (("FP32", "INT8"), {"fp32": "f32", "fp16": "f32", "int8": "f32"}),
        (("INT8", "FP32", "BF16"), {"fp16": "f32", "bf16": "bf16", "int8": "f32"}),
        (("FP32", "FP16"), {"fp32": "f32", "fp16": "f16"}),
        (("FP32", "FP16", "BF16"), {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}),
    ],
)
def test_nothing_is_computed_in_what_was_not_asked_for(
    numbers: tuple[str, ...], hints: dict[str, str]
) -> None:
    core = Core(*numbers)
    assert {precision: precision_hint(core, precision) for precision in hints} == hints
    assert precision_hint(core, "of a later version") == "f32"
    if "BF16" not in numbers:
        listed = ", ".join(sorted(numbers))
        with pytest.raises(BackendUnavailableError, match=f"openvino: bf16 needs .*s {listed} f"):
            precision_hint(core, "bf16")


@pytest.fixture
def artefact(tmp_path: Path) -> Callable[[Precision], Artefact]:
    def write(precision: Precision) -> Artefact:
        path = tmp_path / f"analysis.{precision}.xml"
        write_openvino(Tiny().graph("analysis"), path, precision)
        return Artefact("analysis", "openvino", precision, path)

    return write


def arithmetic(artefact: Artefact) -> set[str]:
    """Return what OpenVINO's convolutions say they compute in."""
    x = np.zeros((1, 64, 64, 3), np.float32)
    layers = OpenVinoBackend().profile_layers(artefact, SessionOptions(1), {"x": x}, 1)
    return {layer.arithmetic for layer in layers if layer.operator.startswith("Convolution")}


def test_convolutions_are_computed_in_the_precision_of_the_artefact(
    artefact: Callable[[Precision], Artefact],
) -> None:
    openvino = pytest.importorskip("openvino")
    numbers = openvino_backend._numbers(openvino.Core())
    if "BF16" not in numbers or "FP16" in numbers:
        pytest.skip("this processor has no bfloat16, or half precision, too")
    assert arithmetic(artefact("fp32")) == {FLOAT32}
    assert arithmetic(artefact("fp16")) == {FLOAT32}
    assert arithmetic(artefact("bf16")) == {BFLOAT16}


def test_bf16_is_refused_by_a_processor_without_it(
    artefact: Callable[[Precision], Artefact], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(openvino_backend, "_numbers", lambda core: ["FP32"])
    reason = "bf16 needs a CPU with bfloat16; OpenVINO lists FP32 for this one"
    with pytest.raises(BackendUnavailableError, match=f"^openvino: {reason}$"):
        OpenVinoBackend().load(artefact("bf16"), SessionOptions())
    assert OpenVinoBackend().lacks("bf16") == reason
    assert OpenVinoBackend().lacks("fp16") == ""


def test_openvino_that_does_not_answer_lacks_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises errors of its own where it has no CPU plugin."""

    def numbers(core: object) -> list[str]:
        raise RuntimeError("no device CPU\nsee there")

    monkeypatch.setattr(openvino_backend, "_numbers", numbers)
    monkeypatch.setattr(OpenVinoBackend, "_get_core", lambda self: None)
    assert OpenVinoBackend().lacks("bf16") == (
        "is installed but does not answer: no device CPU see there"
    )
    reason = "openvino is not installed"
    missing = BackendUnavailableError("openvino", reason)
    monkeypatch.setattr(OpenVinoBackend, "_get_core", lambda self: raise_(missing))
    assert OpenVinoBackend().lacks("bf16") == reason


def test_want_of_threads_is_no_lack_of_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of devices is short then; what it says of the CPU by name is what is wrong."""
    pytest.importorskip("openvino")

    class Starved:
        available_devices = ()

        def get_property(self, device: str, name: str) -> list[str]:
            raise RuntimeError(
                "Exception from src/inference/src/cpp/core.cpp:268:\n"
                "Failed to create plugin for device CPU\n"
                "Exception from src/plugins/intel_cpu/src/plugin.cpp:921:\n"
                "Resource temporarily unavailable\n\n"
            )

    monkeypatch.setattr(OpenVinoBackend, "_get_core", lambda self: Starved())
    found = OpenVinoBackend().probe()
    assert not found.ok
    assert found.reason == (
        "has no CPU plugin: Failed to create plugin for device CPU Resource temporarily unavailable"
    )
    assert is_transient(BackendUnavailableError("openvino", found.reason))


def raise_(error: Exception) -> None:
    raise error


SCRIPT = """
from edgecodec.bundle.reading import Bundle
from edgecodec import errors
from edgecodec.runtimes.base import RunSettings
from edgecodec.runtimes.selection.selector import shared

with Bundle({model!r}) as bundle:
    for precision in ("bf16", "fp16", "fp32", "int8"):
        try:
            wanted = RunSettings(1, "openvino", precision)
            session, _ = shared.open_stage(bundle, "synthesis", wanted)
            session.close()
        except errors.BackendError as exc:
            print(precision, exc)
print("alive")
"""


def test_processor_kept_from_its_instructions_crashes_nothing(tmp_path: Path) -> None:
    """oneDNN, told to do without AVX-512, has no bfloat16, which OpenVINO takes all the same."""
    pytest.importorskip("openvino")
    if OpenVinoBackend().lacks("bf16"):
        pytest.skip("this processor has no bfloat16")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "EDGECODEC_CACHE": ""}
    with Bundle(kit_model()) as bundle:
        copy = with_bf16(bundle, tmp_path / "copy.bundle")
    command = [sys.executable, "-c", SCRIPT.format(model=str(copy))]
    result = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    *told, last = result.stdout.decode().splitlines()
    assert last == "alive"
    assert [line.split()[0] for line in told] in ([], ["bf16"])


@pytest.mark.skipif(usable_cores() < 2, reason="one core has no other to be pinned to")
def test_threads_are_not_pinned_where_cores_are_left(
    artefact: Callable[[Precision], Artefact],
) -> None:
    """Else two models of one thread each would share a core."""
    compiled = OpenVinoBackend()._compile(artefact("fp32"), SessionOptions(1))
    assert not compiled.get_property("ENABLE_CPU_PINNING")
