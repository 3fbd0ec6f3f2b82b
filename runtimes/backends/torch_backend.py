"""Torch on the CPU: the reference the others are judged by, and never the fastest."""

from __future__ import annotations

from typing import Any

from edgecodec.arrays import Float32Array
from edgecodec.errors import BackendError, BackendUnavailableError
from edgecodec.forks import tell_of_fork
from edgecodec.runtimes.backends.checked_session import CheckedSession, Dims, loading
from edgecodec.runtimes.base import Artefact, Availability, Session, SessionOptions
from edgecodec.runtimes.device.probe import threads_of_quota
from edgecodec.runtimes.vendor import BROKEN, import_vendor, one_line, version_of

ANY_MAP: Dims = (1, None, None, None)


class TorchBackend:
    """Loads the `.pt` files that `edgecodec.converters` writes.

    Threads are a setting of the whole process in torch: the session loaded last decides.
    """

    name = "torch"
    target = "torch"

    def __init__(self) -> None:
        self._forked = False
        tell_of_fork(self)

    def after_fork(self) -> None:
        """See `edgecodec.forks`: OpenMP would wait for threads that were its parent's."""
        self._forked = True

    def probe(self) -> Availability:
        """Say whether torch is there; importing it takes seconds."""
        try:
            torch = _import()
            return Availability(True, "reference", version_of(torch, "torch"), devices=_seen(torch))
        except BackendUnavailableError as exc:
            return Availability(False, exc.args[0].partition(": ")[2])
        except Exception as exc:  # a probe never raises
            return Availability(False, f"{BROKEN} answer: {one_line(exc)}")

    def load(self, artefact: Artefact, options: SessionOptions) -> Session:
        """Load a `.pt` file.

        Raises:
            BackendUnavailableError: torch is not installed or does not load.
            BackendError: the file is no graph of ours.
        """
        torch = _import()
        from edgecodec.runtimes.backends.torch_graph import (
            load_torch_graph,  # imports torch at its top
        )

        with loading(self.name, artefact):
            if threads := 1 if self._forked else options.threads or threads_of_quota():
                torch.set_num_threads(threads)
            return TorchSession(artefact, torch, load_torch_graph(artefact.path))


class TorchSession(CheckedSession):
    """One graph in evaluation mode; torch modules without state are safe from several threads."""

    def __init__(self, artefact: Artefact, torch: Any, graph: Any) -> None:
        super().__init__(TorchBackend.name, artefact, dict.fromkeys(graph.inputs, ANY_MAP))
        self._torch = torch
        self._graph = graph

    def _infer(self, inputs: dict[str, Float32Array]) -> dict[str, Float32Array]:
        torch, graph = self._torch, self._graph
        if graph is None:
            raise BackendError(self.backend, "the session is closed")
        with torch.inference_mode():
            given = {name: torch.from_numpy(_writable(value)) for name, value in inputs.items()}
            return {name: value.numpy() for name, value in graph(given).items()}

    def _release(self) -> None:
        self._graph = None


def _writable(value: Float32Array) -> Float32Array:
    """Return an array that torch takes without a warning; a read-only one is copied."""
    return value if value.flags.writeable else value.copy()


def _seen(torch: Any) -> tuple[str, ...]:
    """Return the devices torch knows of; only the CPU is used."""
    cuda = [f"cuda: {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
    return ("cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else []))


def _import() -> Any:
    return import_vendor(TorchBackend.name, ("torch",), "torch")
