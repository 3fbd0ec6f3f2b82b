"""Artefacts as functions of photos and latents, run as a device would run them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from edgecodec.arrays import Float32Array, Int16Array, UInt8Array
from edgecodec.coding.pixels import as_picture
from edgecodec.runtimes.base import Artefact, Session, SessionOptions
from edgecodec.runtimes.registry import get_backend

Analyse = Callable[[UInt8Array], tuple[Float32Array, Float32Array]]
"""(H, W, 3) to y and z, (h, w, C) each."""
Synthesise = Callable[[Int16Array], Float32Array]
"""y_hat (h, w, M) to (H, W, 3), neither clipped nor rounded."""


@contextlib.contextmanager
def running(artefact: Artefact, backend: str, threads: int | None = None) -> Iterator[Session]:
    """Load an artefact, and close its session in the end.

    Raises:
        BackendError: the runtime is not there or refuses it.
    """
    session = get_backend(backend).load(artefact, SessionOptions(threads))
    try:
        yield session
    finally:
        session.close()


def analyser(session: Session) -> Analyse:
    """Return an analysis as a function."""

    def analyse(photo: UInt8Array) -> tuple[Float32Array, Float32Array]:
        found = session.run({"x": photo[None].astype(np.float32)})
        return found["y"][0], found["z"][0]

    return analyse


def synthesiser(session: Session) -> Synthesise:
    """Return a synthesis as a function."""

    def synthesise(y_hat: Int16Array) -> Float32Array:
        return as_picture(session.run({"y_hat": y_hat[None].astype(np.float32)})["x_hat"][0])

    return synthesise
