"""What a runtime must offer: the Backend and Session protocols.

Every artefact of a stage has the same interface whatever the target, so that a session needs no
layout code: float32 arrays, batch of one, channels last.

    analysis    x      (1, H, W, 3)      levels 0..255, H and W multiples of 32
             -> y      (1, H/16, W/16, M)  latents in their natural unit
                z      (1, H/32, W/32, Z)  hyper-latents before the gain of a quality
    synthesis   y_hat  (1, h, w, M)      integers in units of 1/16, as `decode_latents` gives them
             -> x_hat  (1, 16h/r, 16w/r, 3 r^2)  nominally levels 0..255, neither clipped nor
                rounded, in squares of r x r pixels (edgecodec.coding.pixels); r is 1, 2, 4, 8 or 16
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from edgecodec.arrays import Float32Array

StageName = Literal["analysis", "synthesis"]
STAGES: tuple[StageName, ...] = ("analysis", "synthesis")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can be used here.

    Attributes:
        ok: it can.
        reason: one line: why not, or what was found.
        version: of the runtime, empty when absent.
        accelerator: what it would run on, such as `cpu`.
        devices: what the runtime itself reports, ours to use or not: execution providers,
            plugins with the names of their devices, delegates.
    """

    ok: bool
    reason: str
    version: str = ""
    accelerator: str = "cpu"
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Artefact:
    """One stage compiled for one target in one precision.

    Attributes:
        stage: `analysis` or `synthesis`.
        target: `onnx`, `openvino`, `tflite` or `torch`.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        path: the file to load; files that belong to it lie beside it.
    """

    stage: StageName
    target: str
    precision: str
    path: Path


@dataclass(frozen=True)
class SessionOptions:
    """How to run.

    Attributes:
        threads: worker threads of the runtime; None leaves the choice to it.
    """

    threads: int | None = None


class Session(Protocol):
    """A loaded artefact. Owns its buffers; safe to call from several threads."""

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Map named arrays to named arrays; any height and width the stage allows.

        The results belong to the caller: a later call does not change them.

        Raises:
            BackendError: the runtime failed, or an input is missing or has the wrong shape.
        """
        ...

    def close(self) -> None:
        """Release what the session holds; further calls of `run` are errors."""
        ...


class LendingSession(Session, Protocol):
    """A session that can show its results without copying them."""

    def lend(
        self,
        inputs: Mapping[str, Float32Array],
        use: Callable[[Mapping[str, Float32Array]], _Result],
    ) -> _Result:
        """Do what `run` does, but call `use` with the results and return what it returns.

        The arrays are the runtime's own memory: valid until `use` returns, not to be written to nor
        kept, views of them included. Other calls of the session may have to wait for it.

        Raises:
            BackendError: as of `run`; what `use` raises is passed on.
        """
        ...


def lend(
    session: Session,
    inputs: Mapping[str, Float32Array],
    use: Callable[[Mapping[str, Float32Array]], _Result],
) -> _Result:
    """Do what `LendingSession.lend` does, with any session."""
    lending: LendingSession | None = session if hasattr(session, "lend") else None  # type: ignore[assignment]
    return use(session.run(inputs)) if lending is None else lending.lend(inputs, use)


class Backend(Protocol):
    """A runtime. Registered through the entry-point group `edgecodec.backends`.

    Attributes:
        name: what `--backend` calls it.
        target: the kind of artefact it loads.
    """

    name: str
    target: str

    def probe(self) -> Availability:
        """Say whether this runtime works here, without raising and without loading a model."""
        ...

    def load(self, artefact: Artefact, options: SessionOptions) -> Session:
        """Load an artefact.

        Raises:
            BackendUnavailableError: the runtime is not there.
            BackendError: it refuses the artefact.
        """
        ...
