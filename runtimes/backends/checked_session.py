"""What all sessions share: inputs are checked before a runtime sees them, errors are wrapped.

Vendors report a wrong shape in many ways, some by computing something else; this gives one.
"""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgecodec.arrays import Float32Array
from edgecodec.bundle.manifest import Manifest
from edgecodec.coding.pixels import as_picture, square_side
from edgecodec.errors import BackendError
from edgecodec.forks import keep_for_ever, tell_of_fork
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE
from edgecodec.runtimes.base import Artefact, StageName
from edgecodec.runtimes.vendor import one_line

_Result = TypeVar("_Result")
Dims = tuple[int | None, ...]
"""Shape of an input; None where any size goes."""


def _text(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def check_input(
    backend: str, name: str, value: npt.NDArray[Any], dims: Dims, multiple: int
) -> Float32Array:
    """Return `value` in C order, without a copy where it already is.

    Raises:
        BackendError: no float32 array, or its shape does not fit `dims` or `multiple`.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise BackendError(backend, f"input {name} must be a float32 array, this is {kind}")
    fits = value.ndim == len(dims) and all(
        size > 0 and (want is None or size == want)
        for size, want in zip(value.shape, dims, strict=True)
    )
    if not fits:
        raise BackendError(
            backend, f"input {name} must be {_text(dims)}, this is {_text(value.shape)}"
        )
    if value.ndim == 4 and (value.shape[1] % multiple or value.shape[2] % multiple):
        raise BackendError(
            backend,
            f"input {name} is {_text(value.shape)}; "
            f"its height and width must be multiples of {multiple}",
        )
    return np.ascontiguousarray(value)


def checked_inputs(
    backend: str, stage: StageName, dims: Mapping[str, Dims], inputs: Mapping[str, Float32Array]
) -> dict[str, Float32Array]:
    """Return the inputs of a stage in C order.

    Raises:
        BackendError: one is missing, unknown or of wrong shape or type.
    """
    if set(inputs) != set(dims):
        want, got = ", ".join(sorted(dims)), ", ".join(sorted(inputs)) or "none"
        raise BackendError(backend, f"{stage} takes {want}; given: {got}")
    multiple = HYPER_STRIDE if stage == "analysis" else 1
    return {n: check_input(backend, n, inputs[n], dims[n], multiple) for n in dims}


def stage_inputs(stage: StageName, manifest: Manifest) -> dict[str, Dims]:
    """Return the shapes of what a stage takes."""
    if stage == "analysis":
        return {"x": (1, None, None, 3)}
    return {"y_hat": (1, None, None, manifest.latent_channels)}


def stage_outputs(
    stage: StageName, given: tuple[int, ...], manifest: Manifest
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a stage gives for an input of a shape, x_hat as pixels."""
    _, height, width, _ = given
    if stage == "synthesis":
        return {"x_hat": (1, LATENT_STRIDE * height, LATENT_STRIDE * width, 3)}
    latents = (height // LATENT_STRIDE, width // LATENT_STRIDE)
    hyper = (height // HYPER_STRIDE, width // HYPER_STRIDE)
    return {
        "y": (1, *latents, manifest.latent_channels),
        "z": (1, *hyper, manifest.hyper_channels),
    }


def fits(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether an output has the shape that `stage_outputs` gives for it.

    x_hat may come in squares of any side that divides LATENT_STRIDE.
    """
    if name != "x_hat" or len(found) != len(expected):
        return found == expected
    side = square_side(found[-1])
    if not side or LATENT_STRIDE % side:
        return False
    return (found[0], found[1] * side, found[2] * side, 3) == expected


def in_pixels(outputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Return the outputs of a stage, an x_hat in squares as pixels."""
    return {n: as_picture(value) if n == "x_hat" else value for n, value in outputs.items()}


class CheckedSession(ABC):
    """A session that checks its inputs and reports failures as `BackendError`.

    Args:
        backend: name of the backend, for errors.
        artefact: what was loaded.
        inputs: shape of each input.
    """

    def __init__(self, backend: str, artefact: Artefact, inputs: Mapping[str, Dims]) -> None:
        self.backend = backend
        self.artefact = artefact
        self.inputs = dict(inputs)
        self._closed = False
        tell_of_fork(self)

    def after_fork(self) -> None:
        """See `edgecodec.forks`: what the vendor made is neither used nor destroyed here."""
        keep_for_ever(dict(vars(self)))
        self._closed = True

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Map named arrays to named arrays; the results belong to the caller.

        Args:
            inputs: float32, one array per input of the stage.

        Raises:
            BackendError: closed, an input is missing, unknown or of wrong shape or type, or the
                runtime failed.
        """
        arrays = self._checked(inputs)
        return self._guarded(lambda: self._infer(arrays))

    def _checked(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        if self._closed:
            raise BackendError(self.backend, "the session is closed")
        return checked_inputs(self.backend, self.artefact.stage, self.inputs, inputs)

    def _guarded(self, work: Callable[[], _Result]) -> _Result:
        try:
            return work()
        except BackendError:
            raise
        except Exception as exc:  # each vendor has its own hierarchy, some raise RuntimeError
            raise BackendError(
                self.backend, f"{self.artefact.path.name} failed: {one_line(exc)}"
            ) from exc

    def close(self) -> None:
        """Release what the session holds; a call in flight ends first or undisturbed."""
        if not self._closed:
            self._closed = True
            self._release()

    @abstractmethod
    def _infer(self, inputs: dict[str, Float32Array]) -> dict[str, Float32Array]:
        """Run on checked inputs; any exception is reported as `BackendError`."""

    @abstractmethod
    def _release(self) -> None:
        """Drop the vendor's objects."""


class CheckedLendingSession(CheckedSession):
    """One whose results lie in memory that the runtime uses again; see `LendingSession`."""

    def lend(
        self,
        inputs: Mapping[str, Float32Array],
        use: Callable[[Mapping[str, Float32Array]], _Result],
    ) -> _Result:
        """See `LendingSession`."""
        arrays = self._checked(inputs)
        handled = sys.exception()  # by the caller, who may have come here from there
        with ExitStack() as held:
            outputs = self._guarded(lambda: held.enter_context(self._results(arrays)))
            try:
                return use(outputs)
            except BaseException as exc:
                _forget_locals(exc, handled)
                raise

    def _infer(self, inputs: dict[str, Float32Array]) -> dict[str, Float32Array]:
        with self._results(inputs) as outputs:
            return {name: np.array(value) for name, value in outputs.items()}

    @abstractmethod
    def _results(
        self, inputs: dict[str, Float32Array]
    ) -> AbstractContextManager[dict[str, Float32Array]]:
        """Run on checked inputs; results are good as long as the context lasts."""


def _forget_locals(exc: BaseException, older: BaseException | None) -> None:
    """Let go of what the frames behind an exception hold, as long as somebody may keep it.

    Among it is the runtime's memory, and TensorFlow Lite does not run while anybody sees that.

    Args:
        exc: the exception.
        older: one that was there before, and is none of our business.
    """
    seen: list[BaseException] = []
    link: BaseException | None = exc
    while link is not None and link is not older and not any(link is one for one in seen):
        seen.append(link)
        traceback.clear_frames(link.__traceback__)
        link = link.__context__


@contextmanager
def loading(backend: str, artefact: Artefact) -> Iterator[None]:
    """Report as `BackendError` whatever keeps a runtime from loading an artefact."""
    try:
        yield
    except BackendError:
        raise
    except Exception as exc:  # each vendor has its own hierarchy
        path = artefact.path
        reason = f"{path.name} does not load: {one_line(exc)}"
        raise BackendError(
            backend, reason if path.exists() else f"{path}: no such artefact"
        ) from exc
