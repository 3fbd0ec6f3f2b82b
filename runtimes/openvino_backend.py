"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.runtimes.base import Artefact, Availability, Float32Array, Session, SessionOptions
from edgecodec.runtimes.checked_session import CheckedSession, Dims, load_error
from edgecodec.runtimes.layers import Layer
from edgecodec.runtimes.vendor import BROKEN, import_vendor, one_line, version_of

DEVICE = "CPU"

PRECISION_HINTS = {"fp32": "f32", "fp16": "f16", "int8": "f32"}
"""What may be computed in. Without `f32` OpenVINO takes bfloat16 where the CPU has it, and pixels
move by several levels. `f16` means half precision or bfloat16, whichever the CPU has, or float32.
"""

KERNEL_CACHE = "64"
"""Kernels kept per model. Each picture size compiles about 20 of them and the default keeps 5000:
after 400 sizes the process holds 680 MB, with 64 kernels 320 MB, and is not slower.
"""


class OpenVinoBackend:
    """Loads OpenVINO IR (`.xml` with its `.bin`)."""

    name = "openvino"
    target = "openvino"

    def __init__(self) -> None:
        self._core: Any = None

    def probe(self) -> Availability:
        """Say whether OpenVINO is there and has its CPU plugin."""
        try:
            openvino = _import()
            core = self._get_core()
            devices = core.available_devices
            named = tuple(f"{d}: {core.get_property(d, 'FULL_DEVICE_NAME')}" for d in devices)
            version = version_of(openvino, "openvino").partition("-")[0]
            if DEVICE not in devices:
                return Availability(False, "has no CPU plugin", version, devices=named)
            kinds = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
        except BackendUnavailableError as exc:
            return Availability(False, exc.args[0].partition(": ")[2])
        except Exception as exc:  # a probe never raises
            return Availability(False, f"{BROKEN} answer: {one_line(exc)}")
        numbers = [kind for kind in kinds if kind in ("FP32", "BF16", "FP16", "INT8")]
        reason = f"CPU plugin found ({', '.join(sorted(numbers))})"
        return Availability(True, reason, version, devices=named)

    def load(self, artefact: Artefact, options: SessionOptions) -> Session:
        """Load an `.xml` file with dynamic height and width.

        Raises:
            BackendUnavailableError: OpenVINO is not installed or does not load.
            BackendError: it refuses the file.
        """
        try:
            return OpenVinoSession(artefact, self._compile(artefact, options))
        except Exception as exc:
            raise load_error(self.name, artefact, exc) from exc

    def profile_layers(
        self,
        artefact: Artefact,
        options: SessionOptions,
        inputs: Mapping[str, Float32Array],
        runs: int,
    ) -> list[Layer]:
        """See LayerProfiler."""
        from edgecodec.runtimes.openvino_layers import profile_model

        try:
            compiled = self._compile(artefact, options, PERF_COUNT="YES")
            return profile_model(compiled, inputs, runs)
        except BackendError:
            raise
        except Exception as exc:
            raise load_error(self.name, artefact, exc) from exc

    def _compile(self, artefact: Artefact, options: SessionOptions, **more: str) -> Any:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS.get(artefact.precision, "f32"),
            **more,
        }
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(options.threads)
        core = self._get_core()
        model = core.read_model(str(artefact.path))
        try:
            return core.compile_model(
                model, DEVICE, {**settings, "CPU_RUNTIME_CACHE_CAPACITY": KERNEL_CACHE}
            )
        except RuntimeError:  # that option is not public: a later release may not know it
            return core.compile_model(model, DEVICE, settings)

    def _get_core(self) -> Any:
        if self._core is None:
            self._core = _import().Core()
        return self._core


class OpenVinoSession(CheckedSession):
    """One compiled model. Each call has a request of its own, so that threads do not meet."""

    def __init__(self, artefact: Artefact, compiled: Any) -> None:
        inputs: dict[str, Dims] = {
            port.get_any_name(): tuple(
                dim.get_length() if dim.is_static else None for dim in port.get_partial_shape()
            )
            for port in compiled.inputs
        }
        super().__init__(OpenVinoBackend.name, artefact, inputs)
        self._compiled = compiled
        self._outputs = [port.get_any_name() for port in compiled.outputs]

    def _infer(self, inputs: dict[str, Float32Array]) -> dict[str, Float32Array]:
        compiled = self._compiled
        if compiled is None:
            raise BackendError(self.backend, "the session is closed")
        request = compiled.create_infer_request()
        request.infer(inputs, share_inputs=True)
        # The request's memory goes with it, so the results are copied; its inputs are not.
        return {name: np.array(request.get_tensor(name).data) for name in self._outputs}

    def _release(self) -> None:
        self._compiled = None


def _import() -> Any:
    return import_vendor(OpenVinoBackend.name, ("openvino",), "openvino")
