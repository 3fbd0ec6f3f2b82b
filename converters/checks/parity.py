"""Compare artefacts with the torch modules they come from, on real photos.

Run through the backends of `edgecodec.runtimes`, as a device would. What the tolerances mean:

* fp32: the order of additions differs between runtimes. Latents move by some 1e-4 and a pixel by
  one level where it was next to a half.
* fp16: with the eleven bits of float16 a few per cent of the pixels move by one level; sums in
  half precision, which some processors make, may cost more.
* bf16: with the eight bits of bfloat16 a quarter of the pixels or more move, mostly by one level,
  and latents by more the larger they are. What that costs is the gate's to say.

Files stay decodable all the same: what is decoded is made of integers before the synthesis begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgecodec.bundle.manifest import Precision
from edgecodec.coding.pixels import as_picture
from edgecodec.converters.graph.nodes import Graph
from edgecodec.converters.int8.oracle import run_oracle
from edgecodec.errors import (
    BackendError,
    BackendUnavailableError,
    GoldenVectorError,
    ParityError,
)
from edgecodec.runtimes.backends.checked_session import in_pixels
from edgecodec.runtimes.base import Artefact, Float32Array, Session, SessionOptions, StageName
from edgecodec.runtimes.registry import get_backend
from edgecodec.runtimes.selection.golden import Golden

Y_UNIT = 16
"""y_hat counts in units of 1/16 (see edgecodec.runtimes.base)."""

_EXACT_SAMPLES = 2
_LARGEST = float(np.finfo(np.float32).max)
_Pair = tuple[Float32Array, Float32Array]


@dataclass(frozen=True)
class ParityLimits:
    """What an artefact may differ by.

    Attributes:
        latent: largest absolute difference of y and z; the finest quantization step is about 1.
        levels: largest difference of a pixel after clipping and rounding.
        rms: root mean square difference of x_hat before rounding; 0.75 is a PSNR of 50.6 dB.
    """

    latent: float
    levels: int
    rms: float


TOLERANCES = {
    "fp32": ParityLimits(0.005, 1, 0.02),
    "fp16": ParityLimits(2.0, 8, 0.75),
    "bf16": ParityLimits(8.0, 8, 0.75),
    # What int8 may cost is the gate's to say; here only what is no number is refused.
    "int8": ParityLimits(_LARGEST, 255, _LARGEST),
}


@dataclass(frozen=True, eq=False)
class Sample:
    """One photo through the torch modules; arrays are float32, (1, height, width, channels).

    Attributes:
        analysis_inputs: x.
        analysis_outputs: y and z.
        synthesis_inputs: y_hat: y at the finest resolution the format has.
        synthesis_outputs: x_hat.
    """

    analysis_inputs: Mapping[str, Float32Array]
    analysis_outputs: Mapping[str, Float32Array]
    synthesis_inputs: Mapping[str, Float32Array]
    synthesis_outputs: Mapping[str, Float32Array]

    def of(self, stage: StageName) -> tuple[Mapping[str, Float32Array], Mapping[str, Float32Array]]:
        """Return inputs and outputs of a stage."""
        if stage == "analysis":
            return self.analysis_inputs, self.analysis_outputs
        return self.synthesis_inputs, self.synthesis_outputs


def channels_last(tensor: torch.Tensor) -> Float32Array:
    """Return (N, C, H, W) as a contiguous (N, H, W, C) float32 array."""
    return np.ascontiguousarray(tensor.permute(0, 2, 3, 1).numpy(), np.float32)


def channels_first(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return (N, H, W, C) of any type as a (N, C, H, W) float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2), np.float32))


@torch.inference_mode()
def make_samples(
    analysis: nn.Module, synthesis: nn.Module, photos: Sequence[npt.NDArray[np.uint8]]
) -> list[Sample]:
    """Run the reference.

    Args:
        analysis: (1, 3, H, W) -> y, z.
        synthesis: y_hat -> (1, 3, H, W).
        photos: (H, W, 3), sides multiples of 32.
    """
    samples = []
    for photo in photos:
        x = channels_first(photo[None])
        y, z = analysis(x)
        y_hat = torch.round(y * Y_UNIT).clamp(-32768, 32767)
        samples.append(
            Sample(
                {"x": channels_last(x)},
                {"y": channels_last(y), "z": channels_last(z)},
                {"y_hat": channels_last(y_hat)},
                {"x_hat": channels_last(synthesis(y_hat))},
            )
        )
    return samples


class Reference:
    """What artefacts are compared with: the torch modules, and the oracle for what is exact.

    Args:
        modules: by stage.
        photos: (H, W, 3), sides multiples of 32.
        graphs: by stage and precision; of these the exact int8 synthesis is asked for.
        golden: what a device will ask of every artefact.
    """

    def __init__(
        self,
        modules: Mapping[StageName, nn.Module],
        photos: Sequence[npt.NDArray[np.uint8]],
        graphs: Mapping[tuple[StageName, Precision], Graph],
        golden: Golden,
    ) -> None:
        self._golden = golden
        self._samples = make_samples(modules["analysis"], modules["synthesis"], photos)
        exact = graphs.get(("synthesis", "int8"))
        self._answers: list[_Pair] = []
        if exact is None:
            return
        for sample in self._samples[:_EXACT_SAMPLES]:
            y_hat = sample.synthesis_inputs["y_hat"]
            # Whole and cut to an odd size, where other kernels may be chosen.
            for part in (y_hat, np.ascontiguousarray(y_hat[:, :5, :9])):
                self._answers.append((part, run_oracle(exact, {"y_hat": part})["x_hat"]))

    def check(
        self, artefact: Artefact, backend: str, warn: Callable[[str], None]
    ) -> dict[str, Any]:
        """Do what `check_artefact` does, with the oracle's answers for an exact artefact."""
        exact = artefact.precision == "int8" and artefact.stage == "synthesis"
        answers = self._answers if exact else ()
        return check_artefact(artefact, backend, self._samples, warn, answers, self._golden)


def check_artefact(
    artefact: Artefact,
    backend: str,
    samples: Sequence[Sample],
    warn: Callable[[str], None],
    answers: Sequence[_Pair] = (),
    golden: Golden | None = None,
) -> dict[str, Any]:
    """Run an artefact and return its differences from the reference, by output name.

    Beside them stand `checked`, `backend`, `version` and `photos`, and `exact_inputs` where it had
    to be exact; where the runtime is not installed only `checked`, which is false, and `reason`.

    Args:
        artefact: what to run.
        backend: name of the runtime that runs it.
        samples: what it should give.
        warn: told when nothing could be checked.
        answers: y_hat and x_hat of a synthesis that must be exact.
        golden: what a device will ask of it.

    Raises:
        ParityError: it differs by more than the tolerance of its precision, or from an answer.
        GoldenVectorError: every device would refuse it.
        BackendError: the runtime refuses it.
    """
    runtime = get_backend(backend)
    available = runtime.probe()
    if not available.ok:
        warn(f"NOT CHECKED: {artefact.path.name}, because {backend} {available.reason}")
        return {"checked": False, "reason": f"{backend}: {available.reason}"}
    try:
        session = runtime.load(artefact, SessionOptions())
    except BackendUnavailableError as exc:
        warn(f"NOT CHECKED: {artefact.path.name}, because {exc}")
        return {"checked": False, "reason": str(exc)}
    try:
        measured = _measure(session, artefact, backend, samples)
        _judge(artefact, measured)
        _check_answers(session, artefact, answers)
        if golden is not None:
            _check_golden(session, artefact, golden)
    finally:
        session.close()
    return {
        "checked": True,
        "backend": backend,
        "version": available.version,
        "photos": len(samples),
        **({"exact_inputs": len(answers)} if answers else {}),
        **measured,
    }


def _measure(
    session: Session, artefact: Artefact, backend: str, samples: Sequence[Sample]
) -> dict[str, dict[str, float]]:
    collected: dict[str, list[_Pair]] = {}
    for sample in samples:
        inputs, expected = sample.of(artefact.stage)
        found = in_pixels(session.run(inputs))
        for name, array in expected.items():
            if name not in found or found[name].shape != array.shape:
                raise BackendError(backend, f"{artefact.path.name} gives no {name} of its shape")
            collected.setdefault(name, []).append((found[name], array))
    return {name: _compare(name, pairs) for name, pairs in collected.items()}


def _compare(name: str, pairs: Sequence[_Pair]) -> dict[str, float]:
    """Return the differences of one output over all photos.

    `moved` is the share of elements that are another integer after rounding: pixels for x_hat,
    symbols at a quantization step of 1 for y and z.
    """
    # inf and NaN must not pass: nan_to_num makes them differences beyond any tolerance.
    errors = np.concatenate(
        [np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf).ravel() for a, b in pairs]
    )
    steps = [np.abs(_integers(name, a) - _integers(name, b)).ravel() for a, b in pairs]
    moved = np.concatenate(steps)
    found = {
        "max_abs_err": float(errors.max()),
        "rms_err": float(np.sqrt(np.mean(np.square(errors, dtype=np.float64)))),
        "moved": float(np.mean(moved > 0)),
    }
    if name == "x_hat":
        found["max_level_err"] = float(moved.max())
    return found


def _integers(name: str, array: Float32Array) -> Float32Array:
    limits = (0, 255) if name == "x_hat" else (-32768, 32767)
    return np.rint(np.clip(np.nan_to_num(array, nan=1e9), *limits))


def _judge(artefact: Artefact, measured: Mapping[str, Mapping[str, float]]) -> None:
    tolerance = TOLERANCES[artefact.precision]
    what = f"{artefact.target} {artefact.precision} output"
    for name, values in measured.items():
        checks = [(name, values["max_abs_err"], tolerance.latent)]
        if "max_level_err" in values:
            checks = [
                (name, values["max_level_err"], tolerance.levels),
                (f"{name} (rms)", values["rms_err"], tolerance.rms),
            ]
        for part, error, allowed in checks:
            if not error <= allowed:
                raise ParityError(artefact.stage, f"{what} {part}", error, allowed)


def _check_answers(session: Session, artefact: Artefact, answers: Sequence[_Pair]) -> None:
    differences = [
        np.abs(as_picture(session.run({"y_hat": y_hat})["x_hat"]) - x_hat)
        for y_hat, x_hat in answers
    ]
    worst = max((float(difference.max()) for difference in differences), default=0.0)
    if worst > 0:
        what = f"{artefact.target} int8 output x_hat, which must be exact,"
        raise ParityError(artefact.stage, what, worst, 0.0)


def _check_golden(session: Session, artefact: Artefact, golden: Golden) -> None:
    """Ask what a device asks before it trusts a runtime; its tolerances are relative, these not."""
    outputs = [session.run(given) for given in golden.inputs(artefact.stage)]
    if problem := golden.problem(artefact.stage, outputs, artefact.precision):
        raise GoldenVectorError(
            f"{artefact.target} {artefact.precision}: every device would refuse it, {problem}",
            artefact.stage,
        )
