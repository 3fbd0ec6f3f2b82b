"""TensorFlow Lite: LiteRT, or tflite-runtime on boards that have only that."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from edgecodec.arrays import Float32Array
from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.forks import tell_of_fork
from edgecodec.runtimes.backends.checked_session import CheckedLendingSession, Dims, loading
from edgecodec.runtimes.base import Artefact, Availability, Session, SessionOptions
from edgecodec.runtimes.device.probe import usable_cores
from edgecodec.runtimes.layers.base import Layer
from edgecodec.runtimes.vendor import BROKEN, import_vendor, one_line, version_of

MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
DISTRIBUTIONS = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}


class TfliteBackend:
    """Loads `.tflite` files; the XNNPACK delegate is used by default on every CPU."""

    name = "tflite"
    target = "tflite"

    def probe(self) -> Availability:
        """Say which interpreter is there."""
        try:
            module = _import()
        except BackendUnavailableError as exc:
            return Availability(False, exc.args[0].partition(": ")[2])
        except Exception as exc:  # a probe never raises
            return Availability(False, f"{BROKEN} answer: {one_line(exc)}")
        package = module.__name__.partition(".")[0]
        version = version_of(module, DISTRIBUTIONS.get(package, package))
        return Availability(True, f"{package} found, with XNNPACK", version, devices=("XNNPACK",))

    def load(self, artefact: Artefact, options: SessionOptions) -> Session:
        """Load a `.tflite` file.

        Raises:
            BackendUnavailableError: no interpreter is installed or it does not load.
            BackendError: it refuses the file.
        """
        module = _import()
        # The interpreter's own default is a single thread, unlike that of the other runtimes.
        threads = options.threads or usable_cores()
        with loading(self.name, artefact):
            interpreter = module.Interpreter(model_path=str(artefact.path), num_threads=threads)
            return TfliteSession(artefact, interpreter)

    def profile_layers(
        self,
        artefact: Artefact,
        options: SessionOptions,
        inputs: Mapping[str, Float32Array],
        runs: int,
    ) -> list[Layer]:
        """See LayerProfiler. Only LiteRT has a profiler, and reports XNNPACK's operators."""
        from edgecodec.runtimes.layers.tflite_layers import convolutions_of, profile_file

        module = _import()
        if not module.__name__.startswith("ai_edge_litert"):
            raise BackendUnavailableError(self.name, "only ai-edge-litert has a profiler")
        with loading(self.name, artefact):
            plain = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            interpreter = module.Interpreter(
                model_path=str(artefact.path), experimental_op_resolver_type=plain
            )
            takes, gives = _signature(interpreter)
            for name, value in inputs.items():
                interpreter.resize_tensor_input(int(takes[name]["index"]), value.shape)
            interpreter.allocate_tensors()
            shapes = {d["index"]: d["shape"] for d in interpreter.get_tensor_details()}
            outputs = [tuple(map(int, shapes[d["index"]])) for d in gives.values()]
            operators = convolutions_of(interpreter)
        threads = options.threads or usable_cores()
        return profile_file(artefact, inputs, outputs, operators, threads, runs)


class TfliteSession(CheckedLendingSession):
    """One interpreter, which must be used by one thread at a time: a lock sees to that."""

    def __init__(self, artefact: Artefact, interpreter: Any) -> None:
        takes, gives = _signature(interpreter)
        inputs: dict[str, Dims] = {
            # Older files give the size they were traced with; every stage takes any.
            name: (1, None, None, int(details["shape"][-1]))
            for name, details in takes.items()
        }
        super().__init__(TfliteBackend.name, artefact, inputs)
        self._interpreter = interpreter
        self._takes = {name: int(details["index"]) for name, details in takes.items()}
        self._gives = {name: int(details["index"]) for name, details in gives.items()}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def _results(self, inputs: dict[str, Float32Array]) -> Iterator[dict[str, Float32Array]]:
        with self._lock:
            interpreter = self._interpreter
            if interpreter is None:
                raise BackendError(self.backend, "the session is closed")
            shapes = {name: value.shape for name, value in inputs.items()}
            if shapes != self._shapes:
                self._shapes = {}  # unknown, should the next lines fail
                for name, shape in shapes.items():
                    interpreter.resize_tensor_input(self._takes[name], shape)
                with _greeting.held_back():
                    interpreter.allocate_tensors()
                self._shapes = shapes
            for name, value in inputs.items():
                interpreter.set_tensor(self._takes[name], value)
            interpreter.invoke()
            outputs = {name: interpreter.tensor(at)() for name, at in self._gives.items()}
            try:
                yield outputs
            finally:
                outputs.clear()  # an interpreter does not run as long as somebody sees its memory

    def _release(self) -> None:
        with self._lock:
            self._interpreter = None


def _signature(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return details of inputs and outputs by name, from the signature or the tensors' names."""
    if interpreter.get_signature_list():
        runner = interpreter.get_signature_runner()
        takes, gives = runner.get_input_details(), runner.get_output_details()
        if takes and gives:
            return dict(takes), dict(gives)
    return (
        {_plain(details["name"]): details for details in interpreter.get_input_details()},
        {_plain(details["name"]): details for details in interpreter.get_output_details()},
    )


class _Greeting:
    """The line about XNNPACK that the first allocation of a process writes to stderr.

    It is written by C++ to file descriptor 2, whatever the log levels and environment say
    (https://github.com/google-ai-edge/mediapipe/issues/2354). Other lines are passed on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came = False
        self._stderr: int | None = None
        tell_of_fork(self)

    def after_fork(self) -> None:
        """See `edgecodec.forks`."""
        self._lock = threading.Lock()
        if self._stderr is not None:
            os.dup2(self._stderr, 2)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Keep it off stderr."""
        with self._lock:
            if self._came:
                yield
                return
            try:
                kept = self._stderr = os.dup(2)
            except OSError:  # no stderr, as under pythonw
                yield
                return
            with tempfile.TemporaryFile() as caught:
                os.dup2(caught.fileno(), 2)
                try:
                    yield
                    self._came = True
                finally:
                    os.dup2(kept, 2)
                    self._stderr = None
                    caught.seek(0)
                    for line in caught:
                        if not line.startswith(b"INFO: Created TensorFlow Lite XNNPACK"):
                            os.write(kept, line)
                    os.close(kept)


_greeting = _Greeting()


def _plain(name: str) -> str:
    return name.removeprefix("serving_default_").partition(":")[0]


def _import() -> Any:
    return import_vendor(TfliteBackend.name, MODULES, "tflite")
