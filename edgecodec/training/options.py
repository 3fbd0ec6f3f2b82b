"""How a run is trained: its options, and those of a run to continue."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from edgecodec.model.checkpoint import load_checkpoint

Objective = Literal["mse", "msssim", "visual"]
OBJECTIVES: tuple[Objective, ...] = ("mse", "msssim", "visual")

MS_SSIM_MIN_SIZE = 192
"""Smallest side of a crop for MS-SSIM and SSIMULACRA2: the multiple of 64 that holds the five
scales of either."""

_PIXELS_PER_STEP = 4 * 192**2
_MS_SSIM_SIZE = 256
_FINE_TUNING_RATE = 2e-4
_GROWN_RATE = 5e-4
_QAT_STEPS = 6500


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the schedule is a function of the step number alone.

    The learning rate is constant, after a warm-up, until the last `decay_share` of the steps. As
    long as neither that nor rounding has begun, a resumed run may be given more or fewer steps;
    another objective at any time. The last `final_share` of the steps uses crops of `final_size`
    at about the same number of pixels.

    `objective` is the distortion: `mse`; `msssim` for 1 - MS-SSIM; `visual` for SSIMULACRA2 with a
    share of the MSE. `synthetic` is the share of crops that are drawn instead of cut from photos.
    In the last `rounding_share` of the steps the residual blocks round as their int8 form does
    (quantization-aware training); with `rounded` all along.

    Raises:
        ValueError: a value that cannot be, or crops too small for the objective.
    """

    steps: int = 100_000
    batch: int = 4
    size: int = 192
    final_size: int = 256
    final_share: float = 0.1
    learning_rate: float = 1e-3
    decay_share: float = 0.2
    rounding_share: float = 0.25
    warmup: int = 500
    clip: float = 1.0
    beta2: float = 0.99
    ema: float = 0.9995
    synthetic: float = 0.2
    seed: int = 0
    validate_every: int = 2500
    validate_photos: int = 16
    validate_size: int = 256
    save_minutes: float = 3.0
    objective: Objective = "mse"
    rounded: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise ValueError(f"objective must be one of {known}, not {self.objective!r}")
        if not isinstance(self.rounded, bool):
            raise ValueError(f"rounded must be true or false, not {self.rounded!r}")
        for field in fields(self):
            if field.name in ("objective", "rounded"):
                continue
            value = getattr(self, field.name)
            whole = field.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"{field.name} must be a number, not {value!r}")
            least = 0 if not whole or field.name in ("seed", "validate_photos") else 1
            if not least <= value < math.inf or (field.name == "learning_rate" and not value):
                raise ValueError(f"{field.name} cannot be {value!r}")
        for name in ("final_share", "decay_share", "rounding_share", "synthetic", "ema", "beta2"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} cannot be {getattr(self, name)!r}")
        if self.objective != "mse" and min(self.size, self.final_size) < MS_SSIM_MIN_SIZE:
            raise ValueError(
                f"size {min(self.size, self.final_size)} is too small for the objective "
                f"{self.objective}, whose five scales need crops of {MS_SSIM_MIN_SIZE} pixels or "
                "more"
            )

    @classmethod
    def for_new_run(
        cls, *, fine_tuning: bool = False, grown: bool = False, **given: Any
    ) -> TrainingOptions:
        """Return options whose defaults suit the objective and the start.

        Training is on crops of `size` and, at the end, of 64 pixels more. MS-SSIM trains on crops
        of 256 pixels all along, as many as have about the same pixels. Fine-tuning starts at
        a fifth of the learning rate: at the full one, Adam with its moments at zero would undo
        much of what the weights know; a codec that grew from another, at half of it. Rounding is
        learned in a short run at the rate of fine-tuning.

        Args:
            fine_tuning: the run starts from trained weights.
            grown: it starts from those of a smaller shape.
            given: fields that are not left to their defaults.

        Raises:
            ValueError: the options cannot be.
        """
        options = dict(given)
        if options.get("objective") == "msssim":
            size = options.setdefault("size", _MS_SSIM_SIZE)
            options.setdefault("batch", max(1, _PIXELS_PER_STEP // size**2))
            options.setdefault("final_size", size)
        elif "size" in options:
            options.setdefault("final_size", options["size"] + 64)
        if options.get("rounded"):
            options.setdefault("steps", _QAT_STEPS)
        if fine_tuning or options.get("rounded"):
            options.setdefault("learning_rate", _FINE_TUNING_RATE)
        if grown:
            options.setdefault("learning_rate", _GROWN_RATE)
        return cls(**options)

    @property
    def decay_start(self) -> int:
        """First step whose learning rate is lower than that before it."""
        return math.ceil(self.steps * (1.0 - self.decay_share))

    @property
    def rounding_start(self) -> int:
        """First step in which blocks round."""
        return 0 if self.rounded else math.ceil(self.steps * (1.0 - self.rounding_share))

    @property
    def _last_part(self) -> int:
        """First step that depends on the length of the schedule."""
        return self.decay_start if self.rounded else min(self.decay_start, self.rounding_start)

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, constant, then 1 - sqrt of the decay done.

        That shape ends lower than a linear or a cosine decay of the same length (Haegele et al.
        2024, arXiv:2405.18392). Where rounding begins it warms up again, as the optimiser knows
        nothing yet of weights in another basis.
        """
        since = step - self.rounding_start if step >= self.rounding_start else step
        rate = self.learning_rate * min(1.0, (since + 1) / self.warmup)
        done = step - self.decay_start
        if done <= 0:
            return rate
        return rate * (1.0 - math.sqrt(min(1.0, done / (self.steps - self.decay_start))))

    def changed(self, step: int, **given: Any) -> TrainingOptions:
        """Return the options of a run that goes on otherwise from a step.

        Args:
            step: it has reached.
            given: `steps` and `objective`, the fields that may change.

        Raises:
            ValueError: the schedule ends before `step`, or the last part of one of the two
                schedules has begun by then, so that the learning rate would jump.
        """
        new = replace(self, **given)
        if new.steps < step:
            raise ValueError(f"steps {new.steps}: the run has reached step {step} already")
        begins = min(self._last_part, new._last_part)
        if new.steps != self.steps and step > begins:
            raise ValueError(
                f"steps {new.steps}: at step {step} the last part of the schedule of {self.steps} "
                f"steps, or of the new one, has begun (at {begins}); its length is settled"
            )
        return new

    def crop(self, step: int) -> tuple[int, int]:
        """Return batch and crop size of a step."""
        if step < self.steps * (1.0 - self.final_share):
            return self.batch, self.size
        return max(1, self.batch * self.size**2 // self.final_size**2), self.final_size


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint that has been read, to train on from."""

    path: Path
    entries: dict[str, Any]
    """What `load_checkpoint` found in it."""

    @classmethod
    def load(cls, path: Path) -> SavedRun:
        """Read a checkpoint.

        Raises:
            ValueError: as `load_checkpoint`.
        """
        return cls(path, load_checkpoint(path))

    def check_resumable(self) -> None:
        """Refuse a checkpoint of weights alone, as a release is.

        Raises:
            ValueError: the state of training is missing.
        """
        needed = ("options", "raw", "optimiser", "step", "seconds", "random")
        missing = [name for name in needed if name not in self.entries]
        if missing:
            raise ValueError(
                f"{self.path}: holds weights only, not {', '.join(missing)}; add --restart to "
                "train on from them"
            )

    def progress(self) -> tuple[TrainingOptions, int]:
        """Return the options of the run and the step it has reached.

        Raises:
            ValueError: the state of training is missing or damaged.
        """
        self.check_resumable()
        try:
            return TrainingOptions(**self.entries["options"]), int(self.entries["step"])
        except (TypeError, ValueError) as exc:
            raise ValueError(f"{self.path}: state of training is damaged ({exc})") from exc
