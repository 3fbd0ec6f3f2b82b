"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecodec.arrays import Float32Array
from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.format.strides import LATENT_STRIDE
from edgecodec.runtimes.backends.checked_session import CheckedSession, Dims, loading
from edgecodec.runtimes.backends.onnx_references import refers_to_files
from edgecodec.runtimes.base import Artefact, Availability, Session, SessionOptions
from edgecodec.runtimes.device.probe import threads_of_quota
from edgecodec.runtimes.layers.base import Layer
from edgecodec.runtimes.vendor import BROKEN, import_vendor, one_line, version_of

PROVIDER = "CPUExecutionProvider"
QUIET = 3
"""Log errors only: warnings about constants that cannot be folded mean nothing to a user."""

SHRINK_ABOVE_PIXELS = 7 << 18
"""Pictures above this size give the arena's memory back after the run.

Otherwise the arena keeps what the largest picture ever took: 320 MB instead of 160 MB after
windows of 1632x1632. Up to here, and so for all that a codec with tiles of its own choice asks for
(1.5 megapixels, before they are padded), page faults would cost more than it brings: encoding 12
megapixels in int8 takes 0.29 s instead of 0.43, for 12 MB.
"""


class OnnxRuntimeBackend:
    """Loads `.onnx` files with onnxruntime's CPU execution provider."""

    name = "onnxruntime"
    target = "onnx"

    def probe(self) -> Availability:
        """Say whether onnxruntime is there and has its CPU provider."""
        try:
            ort = _import()
            found = tuple(ort.get_available_providers())
        except BackendUnavailableError as exc:
            return Availability(False, exc.args[0].partition(": ")[2])
        except Exception as exc:  # a probe never raises
            return Availability(False, f"{BROKEN} answer: {one_line(exc)}")
        version = version_of(ort, "onnxruntime")
        if PROVIDER not in found:
            reason = f"has no {PROVIDER}, only {', '.join(found)}"
            return Availability(False, reason, version, devices=found)
        return Availability(True, f"{PROVIDER} found", version, devices=found)

    def load(self, artefact: Artefact, options: SessionOptions) -> Session:
        """Load an `.onnx` file.

        Raises:
            BackendUnavailableError: onnxruntime is not installed or does not load.
            BackendError: it refuses the file.
        """
        ort = _import()
        with loading(self.name, artefact):
            settings = _settings(ort, options)
            _check_whole(artefact)
            session = ort.InferenceSession(str(artefact.path), settings, providers=[PROVIDER])
        shrinking = ort.RunOptions()
        shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return OnnxRuntimeSession(artefact, session, shrinking)

    def profile_layers(
        self,
        artefact: Artefact,
        options: SessionOptions,
        inputs: Mapping[str, Float32Array],
        runs: int,
    ) -> list[Layer]:
        """See LayerProfiler."""
        from edgecodec.runtimes.layers.onnxruntime_layers import profile_session

        ort = _import()
        with loading(self.name, artefact):
            _check_whole(artefact)
            return profile_session(ort, _settings(ort, options), artefact, inputs, runs)


class OnnxRuntimeSession(CheckedSession):
    """One loaded `.onnx` file. `InferenceSession.run` is safe from several threads."""

    def __init__(self, artefact: Artefact, session: Any, shrinking: Any) -> None:
        inputs: dict[str, Dims] = {
            spec.name: tuple(d if isinstance(d, int) else None for d in spec.shape)
            for spec in session.get_inputs()
        }
        super().__init__(OnnxRuntimeBackend.name, artefact, inputs)
        self._session = session
        self._shrinking = shrinking
        self._outputs = [spec.name for spec in session.get_outputs()]

    def _infer(self, inputs: dict[str, Float32Array]) -> dict[str, Float32Array]:
        session = self._session
        if session is None:
            raise BackendError(self.backend, "the session is closed")
        unit = 1 if self.artefact.stage == "analysis" else LATENT_STRIDE**2
        pixels = max(value.shape[1] * value.shape[2] * unit for value in inputs.values())
        options = self._shrinking if pixels > SHRINK_ABOVE_PIXELS else None
        return dict(zip(self._outputs, session.run(self._outputs, inputs, options), strict=True))

    def _release(self) -> None:
        self._session = None


def _settings(ort: Any, options: SessionOptions) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = QUIET
    settings.intra_op_num_threads = options.threads or threads_of_quota()  # 0: its own choice
    # Stop spinning when a run ends: idle threads would slow whatever runs next.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


def _check_whole(artefact: Artefact) -> None:
    if refers_to_files(artefact.path.read_bytes()):
        raise BackendError(
            OnnxRuntimeBackend.name,
            f"{artefact.path.name} refers to other files, which a bundle's hashes do not cover; "
            "save it whole",
        )


def _import() -> Any:
    return import_vendor(OnnxRuntimeBackend.name, ("onnxruntime",), "onnxruntime")
