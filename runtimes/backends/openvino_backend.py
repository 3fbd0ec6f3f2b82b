"""OpenVINO on the CPU."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from edgecodec.arrays import Float32Array
from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.forks import keep_for_ever, prepare_for_fork
from edgecodec.runtimes.backends.checked_session import CheckedLendingSession, Dims, loading
from edgecodec.runtimes.base import Artefact, Availability, Session, SessionOptions
from edgecodec.runtimes.device.probe import threads_of_quota, usable_cores
from edgecodec.runtimes.layers.base import Layer
from edgecodec.runtimes.vendor import BROKEN, import_vendor, one_line, version_of

DEVICE = "CPU"

PRECISION_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""What may be computed in. Without `f32` OpenVINO takes bfloat16 where the CPU has it, and pixels
move by several levels. See `precision_hint` for CPUs that lack one.
"""

KERNEL_CACHE = "64"
"""Kernels kept per model. Each picture size compiles about 20 of them and the default keeps 5000:
after 400 sizes the process holds 680 MB, with 64 kernels 320 MB, and is not slower.
"""

_failed: list[Any] = []
"""Models whose inference failed, kept until the process ends. OpenVINO 2026.4 gives empty results,
without an error, where it finds no kernel for the processor (`ONEDNN_MAX_CPU_ISA=AVX2` on one with
bfloat16; an emulated Cortex-A72); once such a model is released, the next one to run crashes."""


FORKED = (
    "its threads do not survive the fork of a process that was forked itself; "
    "start such processes with spawn or forkserver, or take another runtime"
)


def precision_hint(core: Any, precision: str) -> str:
    """Return the INFERENCE_PRECISION_HINT for an artefact on this CPU.

    OpenVINO answers a hint it cannot keep with something else: `f16` with bfloat16 where the CPU
    has that and no half precision, which keeps 8 bits instead of 11, and `bf16` with float32. What
    bfloat16 costs was judged for bf16 artefacts alone, so fp16 ones are computed in float32 there.

    Args:
        core: of OpenVINO.
        precision: of the artefact.

    Raises:
        BackendUnavailableError: it is bf16 and the CPU has no bfloat16.
    """
    hint = PRECISION_HINTS.get(precision, "f32")
    listed = _numbers(core)
    if hint == "f16" and "FP16" not in listed:
        return "f32"
    if hint == "bf16" and "BF16" not in listed:
        raise BackendUnavailableError(
            OpenVinoBackend.name,
            f"bf16 needs a CPU with bfloat16; OpenVINO lists {', '.join(listed)} for this one",
        )
    return hint


def _numbers(core: Any) -> list[str]:
    """Return the arithmetic that OpenVINO lists for this CPU, sorted."""
    kinds = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return sorted(kind for kind in kinds if kind in ("FP32", "BF16", "FP16", "INT8"))


def _cause(exc: Exception) -> str:
    """Return an error of OpenVINO on one line, without where in its sources each step failed.

    The cause comes last, and is what `is_transient` looks for.
    """
    lines = [line for line in str(exc).splitlines() if not line.startswith("Exception from ")]
    return " ".join(" ".join(lines).split())[-300:] or one_line(exc)


class OpenVinoBackend:
    """Loads OpenVINO IR (`.xml` with its `.bin`)."""

    name = "openvino"
    target = "openvino"

    def __init__(self) -> None:
        self._core: Any = None
        # Models are made and closed under it, so that no executor becomes idle while one forks.
        self._changing = threading.RLock()
        self._may_idle = False  # an executor that was made in this process
        self._left_idle = False  # likewise, while one forks
        self._inherited = False
        self._lost = False
        prepare_for_fork(self)

    def before_fork(self) -> None:
        """See `edgecodec.forks`.

        OpenVINO keeps the executors of closed models for the next ones. In a fork they have no
        threads, and the next model would wait for them for ever. They are destroyed with any plugin
        of the CPU, and those in use are not kept any more then. But in a process that was forked
        itself that ends it: among the threads to wait for are some that it never had.
        """
        self._changing.acquire()
        if self._core is None or not self._may_idle:
            return
        self._left_idle = True
        if self._inherited:
            return
        with contextlib.suppress(Exception):  # a fork that lacks OpenVINO is better than none
            _import().Core().get_property(DEVICE, "FULL_DEVICE_NAME")
            self._may_idle = self._left_idle = False

    def after_fork_in_parent(self) -> None:
        """See `edgecodec.forks`."""
        self._left_idle = False
        self._changing.release()

    def after_fork(self) -> None:
        """See `edgecodec.forks`.

        The core stays in use: with a second one executors of the process that are idle would be
        destroyed.
        """
        keep_for_ever(self._core)
        keep_for_ever(_failed)
        self._changing = threading.RLock()
        self._lost = self._lost or self._left_idle
        self._inherited = self._core is not None
        self._may_idle = self._left_idle = False

    def probe(self) -> Availability:
        """Say whether OpenVINO is there and has its CPU plugin."""
        if self._lost:
            return Availability(False, FORKED)
        try:
            openvino = _import()
            core = self._get_core()
            devices = core.available_devices
            named = tuple(f"{d}: {core.get_property(d, 'FULL_DEVICE_NAME')}" for d in devices)
            version = version_of(openvino, "openvino").partition("-")[0]
            try:
                numbers = _numbers(core)
            except Exception as exc:
                if DEVICE in devices:
                    raise
                # A list without it does not tell a want of threads, say, from its absence.
                reason = f"has no CPU plugin: {_cause(exc)}"
                return Availability(False, reason, version, devices=named)
        except BackendUnavailableError as exc:
            return Availability(False, exc.args[0].partition(": ")[2])
        except Exception as exc:  # a probe never raises
            return Availability(False, f"{BROKEN} answer: {_cause(exc)}")
        reason = f"CPU plugin found ({', '.join(numbers)})"
        return Availability(True, reason, version, devices=named)

    def lacks(self, precision: str) -> str:
        """Return why artefacts of a precision cannot be computed here, empty where they can."""
        try:
            precision_hint(self._get_core(), precision)
        except BackendUnavailableError as exc:
            return str(exc).removeprefix(f"{self.name}: ")
        except Exception as exc:  # of OpenVINO, which may have no CPU plugin
            return f"{BROKEN} answer: {_cause(exc)}"
        return ""

    def load(self, artefact: Artefact, options: SessionOptions) -> Session:
        """Load an `.xml` file with dynamic height and width.

        Raises:
            BackendUnavailableError: OpenVINO is not installed or does not load, the CPU lacks
                what the artefact is computed in, or OpenVINO cannot be used after a fork.
            BackendError: it refuses the file.
        """
        with loading(self.name, artefact):
            return OpenVinoSession(artefact, self._compile(artefact, options), self._changing)

    def profile_layers(
        self,
        artefact: Artefact,
        options: SessionOptions,
        inputs: Mapping[str, Float32Array],
        runs: int,
    ) -> list[Layer]:
        """See LayerProfiler."""
        from edgecodec.runtimes.layers.openvino_layers import profile_model

        with loading(self.name, artefact):
            compiled = self._compile(artefact, options, PERF_COUNT="YES")
            return profile_model(compiled, inputs, runs)

    def _compile(self, artefact: Artefact, options: SessionOptions, **more: str) -> Any:
        if self._lost:
            raise BackendUnavailableError(self.name, FORKED)
        core = self._get_core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision_hint(core, artefact.precision),
            **more,
        }
        if threads := options.threads or threads_of_quota():
            settings["INFERENCE_NUM_THREADS"] = str(threads)
            if options.threads and threads < usable_cores():
                # Else the threads of every model, here and in other processes, are pinned to the
                # same first cores: two models with a thread each took turns on one of them.
                settings["ENABLE_CPU_PINNING"] = "NO"
        model = core.read_model(str(artefact.path))
        with self._changing:
            self._may_idle = True
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


class OpenVinoSession(CheckedLendingSession):
    """One compiled model. Each call has a request to itself, so that threads do not meet.

    A request that is done is kept for the next call, with the memory of its results; one is enough
    as long as calls do not overlap.

    Args:
        artefact: what was compiled.
        compiled: the model.
        changing: entered while the model is released.
    """

    def __init__(
        self, artefact: Artefact, compiled: Any, changing: contextlib.AbstractContextManager[Any]
    ) -> None:
        inputs: dict[str, Dims] = {
            port.get_any_name(): tuple(
                dim.get_length() if dim.is_static else None for dim in port.get_partial_shape()
            )
            for port in compiled.inputs
        }
        super().__init__(OpenVinoBackend.name, artefact, inputs)
        self._compiled = compiled
        self._changing = changing
        self._outputs = [port.get_any_name() for port in compiled.outputs]
        self._idle: deque[Any] = deque(maxlen=1)

    @contextlib.contextmanager
    def _results(self, inputs: dict[str, Float32Array]) -> Iterator[dict[str, Float32Array]]:
        compiled = self._compiled
        if compiled is None:
            raise BackendError(self.backend, "the session is closed")
        try:
            request = self._request(compiled)
            request.infer(inputs, share_inputs=True)
            results = {name: request.get_tensor(name).data for name in self._outputs}
            if not all(value.size for value in results.values()):
                raise BackendError(self.backend, "gives an empty result")
        except Exception:
            if not any(kept is compiled for kept in _failed):
                _failed.append(compiled)
            raise
        try:
            yield results
        finally:
            if self._compiled is not None:
                self._idle.append(request)

    def _request(self, compiled: Any) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return compiled.create_infer_request()

    def _release(self) -> None:
        with self._changing:
            self._compiled = None
            self._idle.clear()


def _import() -> Any:
    return import_vendor(OpenVinoBackend.name, ("openvino",), "openvino")
