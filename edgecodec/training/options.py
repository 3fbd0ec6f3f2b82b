"""How a run is trained: its options, and those of a run to continue."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from edgecodec.model.checkpoint import load_checkpoint

Objective = Literal["mse", "msssim"]
OBJECTIVES: tuple[Objective, ...] = ("mse", "msssim")

MS_SSIM_MIN_SIZE = 192
"""Smallest side of a crop for MS-SSIM: the multiple of 64 that holds its five scales."""

_PIXELS_PER_STEP = 8 * 128**2
_MS_SSIM_SIZE = 256
_FINE_TUNING_RATE = 2e-4
_QAT_STEPS = 6500


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the schedule is a function of the step number alone.

    The last `final_share` of the steps uses crops of `final_size` at the same number of pixels.
    `objective` is the distortion: `mse`, or `msssim` for 1 - MS-SSIM. `rounded` makes the residual
    blocks round as their int8 form does (quantization-aware training).

    Raises:
        ValueError: a value that cannot be, or crops too small for the objective.
    """

    steps: int = 100_000
    batch: int = 8
    size: int = 128
    final_size: int = 256
    final_share: float = 0.2
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup: int = 500
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    validate_every: int = 5000
    validate_photos: int = 32
    save_minutes: float = 3.0
    objective: Objective = "mse"
    rounded: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be mse or msssim, not {self.objective!r}")
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
        if self.objective == "msssim" and min(self.size, self.final_size) < MS_SSIM_MIN_SIZE:
            raise ValueError(
                f"size {min(self.size, self.final_size)} is too small for the objective msssim, "
                f"whose five scales need crops of {MS_SSIM_MIN_SIZE} pixels or more"
            )

    @classmethod
    def for_new_run(cls, *, fine_tuning: bool = False, **given: Any) -> TrainingOptions:
        """Return options whose defaults suit the objective and the start.

        MSE trains on crops of `size` and, at the end, of twice that. MS-SSIM trains on crops of
        256 pixels all along, as many as have the pixels of 8 crops of 128. Fine-tuning starts at
        a fifth of the learning rate: at the full one, Adam with its moments at zero would undo
        much of what the weights know. Rounding is learned in a short run at that
        rate.

        Args:
            fine_tuning: the run starts from trained weights.
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
            options.setdefault("final_size", 2 * options["size"])
        if options.get("rounded"):
            options.setdefault("steps", _QAT_STEPS)
        if fine_tuning or options.get("rounded"):
            options.setdefault("learning_rate", _FINE_TUNING_RATE)
        return cls(**options)

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then cosine decay to nearly nothing."""
        t = min(1.0, step / self.steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * t))
        span = self.learning_rate - self.final_learning_rate
        return min(1.0, (step + 1) / self.warmup) * (self.final_learning_rate + span * cosine)

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
