"""Whether a session computes what the reference computed: the gate before any measurement.

A runtime that is fast and wrong is worse than none, and they exist: the same graph gave other
results on processors whose integer instructions saturate. Every artefact therefore runs the
bundle's golden vector once before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.bundle.reading import Bundle
from edgecodec.coding.pixels import as_picture, to_levels
from edgecodec.errors import BundleError
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE
from edgecodec.runtimes.base import Float32Array, StageName
from edgecodec.runtimes.selection.timing import repeated


@dataclass(frozen=True)
class Tolerance:
    """How far results may be from the reference.

    Attributes:
        latents: largest error of y and z, as a share of the largest magnitude in the reference.
        levels: largest error of x_hat in levels, after clipping and rounding to 0..255.
        rms_levels: largest root mean square of that error.
    """

    latents: float
    levels: int
    rms_levels: float


TOLERANCES = {
    # float32 in another order of summation: few values round to the neighbouring level. Half
    # precision would show as an rms of about 0.5.
    "fp32": Tolerance(latents=1e-3, levels=1, rms_levels=0.33),
    # What is computed in half precision, sums too or not, is the runtime's to choose.
    "fp16": Tolerance(latents=3e-2, levels=8, rms_levels=1.0),
    # bfloat16 keeps 8 bits; measured 0.010 (z), 2 levels, 0.55.
    "bf16": Tolerance(latents=3e-2, levels=8, rms_levels=1.0),
    # Only where the bundle holds no integer result of its own to compare with.
    "int8": Tolerance(latents=0.5, levels=64, rms_levels=6.0),
}
"""By precision of the artefact. A precision not listed is held to `fp32`."""

EXACT = Tolerance(latents=0.0, levels=0, rms_levels=0.0)

EXTREME = "_extreme"
"""Ends the names of the second picture's arrays: black, white and full colours. Kernels that sum in
half precision pass on a photo and fail there."""


class Golden:
    """The golden vector of a bundle, as inputs and checks.

    Args:
        arrays: as `Bundle.golden` returns them. Results of an artefact that is exact by
            construction may lie beside the reference's under the name of the precision:
            `x_hat_int8`, `y_int8`, `z_int8`. Latents of a second picture for the synthesis may lie
            there as `y_hat_extreme`.
        source: where they are from, for errors.

    Raises:
        BundleError: it is incomplete.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], source: str) -> None:
        try:
            x, y_hat = arrays["x"], arrays["y_hat"]
            fits = (
                x.ndim == 3
                and y_hat.ndim == 3
                and x.shape[0] % HYPER_STRIDE == 0
                and x.shape[1] % HYPER_STRIDE == 0
                and {"x_hat", "y", "z"} <= set(arrays)
                and (f"y_hat{EXTREME}" in arrays) == (f"x_hat{EXTREME}" in arrays)
            )
        except KeyError:
            fits = False
        if not fits:
            raise BundleError(
                f"{source}: the golden vector lacks an array or has another shape; "
                "convert the checkpoint again"
            )
        self._arrays = arrays
        self._pictures = ("", EXTREME) if f"y_hat{EXTREME}" in arrays else ("",)

    @classmethod
    def of(cls, bundle: Bundle) -> Golden:
        """Return that of a bundle.

        Raises:
            BundleError: it is missing, damaged or incomplete.
        """
        return cls(bundle.golden(), str(bundle.path))

    def _given(self, stage: StageName, picture: str = "") -> tuple[str, Float32Array]:
        name = "x" if stage == "analysis" else "y_hat"
        return name, self._arrays[name + picture][None].astype(np.float32)

    def inputs(self, stage: StageName) -> list[dict[str, Float32Array]]:
        """Return what a session of `stage` is to be given, one call after the other."""
        pictures = self._pictures if stage == "synthesis" else ("",)
        return [dict([self._given(stage, picture)]) for picture in pictures]

    def workload(self, stage: StageName, size: tuple[int, int]) -> dict[str, Float32Array]:
        """Return the golden input repeated to the size of a picture, for timing.

        Args:
            stage: which stage.
            size: height and width in pixels; rounded up to what the stage takes.
        """
        name, value = self._given(stage)
        pixels = [-(-side // HYPER_STRIDE) * HYPER_STRIDE for side in size]
        height, width = (s if stage == "analysis" else s // LATENT_STRIDE for s in pixels)
        return {name: repeated(value, height, width)}

    def problem(
        self,
        stage: StageName,
        outputs: Sequence[Mapping[str, npt.NDArray[Any]]],
        precision: str,
    ) -> str:
        """Return what is wrong with a session's results, empty when nothing is.

        An artefact of any precision is held to the tolerance of its own precision: what it costs is
        measured, and judged, when it is converted.

        Args:
            stage: which stage.
            outputs: results for each of `inputs(stage)`.
            precision: of the artefact; results stored under its name are demanded exactly.
        """
        tolerance = TOLERANCES.get(precision, TOLERANCES["fp32"])
        for picture, found in zip(self._pictures, outputs, strict=False):  # the analysis has one
            for name in ("y", "z") if stage == "analysis" else ("x_hat",):
                reference = self._arrays.get(f"{name}{picture}_{precision}")
                limit = tolerance if reference is None else EXACT
                if reference is None:
                    reference = self._arrays[name + picture]
                problem = _output_problem(name, found, reference, limit)
                if problem:
                    return problem + (" (full colours)" if picture else "")
        return ""


def _output_problem(
    name: str,
    outputs: Mapping[str, npt.NDArray[Any]],
    reference: npt.NDArray[Any],
    limit: Tolerance,
) -> str:
    if name not in outputs:
        return f"gives no {name}, only {', '.join(sorted(outputs)) or 'nothing'}"
    found = outputs[name]
    if found.ndim != 4 or found.shape[0] != 1 or found.dtype != np.float32:
        return f"{name} is {found.dtype} of shape {found.shape}, not a float32 map"
    if name == "x_hat":
        return _pixels_problem(name, as_picture(found[0]), reference, limit)
    return _latents_problem(name, found[0], reference, limit)


def _pixels_problem(
    name: str, found: Float32Array, reference: npt.NDArray[np.uint8], limit: Tolerance
) -> str:
    height, width = reference.shape[:2]
    if found.shape[0] < height or found.shape[1] < width or found.shape[2:] != reference.shape[2:]:
        return f"{name} has shape {found.shape}, the reference {reference.shape}"
    found = found[:height, :width]
    if not np.isfinite(found).all():
        return f"{name} holds NaN or infinity"
    error = to_levels(found).astype(np.float32) - reference
    worst, rms = float(np.abs(error).max()), float(np.sqrt(np.mean(np.square(error))))
    if worst > limit.levels or rms > limit.rms_levels:
        return (
            f"{name} differs from the reference by up to {worst:.0f} levels (rms {rms:.2f}), "
            f"allowed {limit.levels} (rms {limit.rms_levels:.2f})"
        )
    return ""


def _latents_problem(
    name: str, found: Float32Array, reference: Float32Array, limit: Tolerance
) -> str:
    if found.shape != reference.shape:
        return f"{name} has shape {found.shape}, the reference {reference.shape}"
    if not np.isfinite(found).all():
        return f"{name} holds NaN or infinity"
    worst = float(np.abs(found - reference).max())
    allowed = limit.latents * float(np.abs(reference).max())
    if worst > allowed:
        return f"{name} differs from the reference by up to {worst:.4g}, allowed {allowed:.4g}"
    return ""
