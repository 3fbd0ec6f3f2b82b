"""Training: rate-distortion optimisation over all qualities at once.

Imports only torch, NumPy, Pillow and the standard library, because GPU hosts often have no
package index. Interrupt it at any time: `resume` continues with the same optimiser, schedule,
crops and noise.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Generator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgecodec.metrics import MS_SSIM_MIN_SIDE, ms_ssim_db
from edgecodec.model.checkpoint import (
    build_codec,
    check_target,
    fill_codec,
    load_checkpoint,
    save_checkpoint,
)
from edgecodec.model.config import HYPER_STRIDE, CodecConfig
from edgecodec.model.data import CropStream, UInt8Array, load_photos
from edgecodec.model.distortion import ms_ssim
from edgecodec.model.initialisation import start_from_photos
from edgecodec.model.network import NeuralCodec

Objective = Literal["mse", "msssim"]
OBJECTIVES: tuple[Objective, ...] = ("mse", "msssim")

MS_SSIM_LAMBDA = 1280.0
"""What lambda is multiplied by for `1 - MS-SSIM` in place of the MSE of levels 0..255.

The ratio of CompressAI's pairs of lambdas (2.4 / 0.0018 to 60.5 / 0.0483): at these two values,
networks trained for either distortion spend about the same rate.
"""

MS_SSIM_MIN_SIZE = 192
"""Smallest side of a crop for MS-SSIM: the multiple of 64 that holds its five scales."""

_PIXELS_PER_STEP = 8 * 128**2
_MS_SSIM_SIZE = 256
_FINE_TUNING_RATE = 2e-4


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the schedule is a function of the step number alone.

    The last `final_share` of the steps uses crops of `final_size` at the same number of pixels.
    `objective` is the distortion: `mse`, or `msssim` for 1 - MS-SSIM.

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

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be mse or msssim, not {self.objective!r}")
        for field in fields(self):
            if field.name == "objective":
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
        much of what the weights know.

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
        if fine_tuning:
            options.setdefault("learning_rate", _FINE_TUNING_RATE)
        return cls(**options)

    @classmethod
    def from_checkpoint(cls, path: Path) -> tuple[TrainingOptions, int]:
        """Return the options of a run that can be resumed, and the step it has reached.

        Raises:
            ValueError: no checkpoint, or one without the state of training.
        """
        state = _load_resumable(path)
        try:
            return cls(**state["options"]), int(state["step"])
        except (TypeError, ValueError) as exc:
            raise ValueError(f"{path}: state of training is damaged ({exc})") from exc

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


def to_images(batch: UInt8Array, device: torch.device) -> Tensor:
    """Return (N, H, W, 3) uint8 as (N, 3, H, W) float32, channels last in memory."""
    return torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float()


class Losses(NamedTuple):
    """What the loss of a batch of N images is made of."""

    loss: Tensor
    """To be minimised, one number."""
    bpp: Tensor
    """(N,) bits per pixel, information content."""
    mse: Tensor
    """(N,) mean squared error of levels 0..255."""
    ms_ssim: Tensor | None
    """(N,) MS-SSIM; None where the objective does without."""

    def detached(self) -> Losses:
        """Return the numbers without the graph behind them."""
        similarity = None if self.ms_ssim is None else self.ms_ssim.detach()
        return Losses(self.loss.detach(), self.bpp.detach(), self.mse.detach(), similarity)


def rate_distortion_loss(
    codec: NeuralCodec, x: Tensor, quality: Tensor, objective: Objective = "mse"
) -> Losses:
    """Return the loss of a batch, with rate and distortion per image.

    `bpp + lambda * MSE`, or `bpp + 1280 lambda * (1 - MS-SSIM)`, divided by sqrt(lambda) so that
    the qualities balance: the step of the quantizer goes with 1 / sqrt(lambda), the gradient of
    the rate with its inverse, and those of the highest qualities would drown all others. The
    divisor is the same for both distortions, since near the optimum the gradient of the
    distortion is as large as that of the rate, whatever the distortion: measured at the start
    from photos, the norm for `msssim` is 1.0 to 1.4 times that for `mse`, from the lowest to the
    highest qualities. One learning rate and one limit of the norm serve both.

    Args:
        codec: in training or evaluation mode.
        x: (N, 3, H, W) float32, levels 0..255; for `msssim` 161 pixels a side or more.
        quality: (N,) in 1..100.
        objective: the distortion.
    """
    x_hat, bits_y, bits_z = codec(x, quality)
    mse = ((x_hat - x) ** 2).mean((1, 2, 3))
    bpp = (bits_y + bits_z) / (x.shape[2] * x.shape[3])
    ratio = codec.cfg.lambda_max / codec.cfg.lambda_min
    lam = codec.cfg.lambda_min * ratio ** ((quality - 1.0) / 99.0)
    similarity = ms_ssim(x, x_hat) if objective == "msssim" else None
    distortion = mse if similarity is None else MS_SSIM_LAMBDA * (1.0 - similarity)
    return Losses(((bpp + lam * distortion) / lam.sqrt()).mean() * 0.1, bpp, mse, similarity)


class Judged(NamedTuple):
    """Averages over the photos of a validation at one quality."""

    bpp: float
    """Bits per pixel, information content."""
    psnr: float
    """Decibels."""
    ms_ssim: float | None
    """Over the photos of 161 pixels a side or more; None where there are none."""


def validate(
    codec: NeuralCodec, photos: list[UInt8Array], device: torch.device
) -> dict[int, Judged]:
    """Return rate and distortion per quality on centre crops of at most 512 pixels a side."""
    codec.eval()
    result = {}
    for q in (5, 25, 50, 75, 95):
        rates, values, similarities = [], [], []
        for photo in photos:
            h, w = (min(512, n // HYPER_STRIDE * HYPER_STRIDE) for n in photo.shape[:2])
            top, left = (photo.shape[0] - h) // 2, (photo.shape[1] - w) // 2
            # A copy, because decoded photos are read-only and torch warns of sharing such memory.
            crop = photo[top : top + h, left : left + w].copy()
            x = to_images(crop[None], device)
            with torch.inference_mode():
                x_hat, bits_y, bits_z = codec(x, torch.tensor([float(q)], device=device))
                x_hat = x_hat.clamp(0, 255).round()
                if min(h, w) >= MS_SSIM_MIN_SIDE:
                    similarities.append(float(ms_ssim(x, x_hat)))
            error = x_hat - x
            values.append(10 * math.log10(255**2 / max(1e-9, float((error**2).mean()))))
            rates.append(float(bits_y + bits_z) / (h * w))
        similarity = float(np.mean(similarities)) if similarities else None
        result[q] = Judged(float(np.mean(rates)), float(np.mean(values)), similarity)
    codec.train()
    return result


def _load_resumable(path: Path) -> dict[str, Any]:
    state = load_checkpoint(path)
    needed = ("options", "raw", "optimiser", "step", "seconds", "random")
    missing = [name for name in needed if name not in state]
    if missing:
        raise ValueError(
            f"{path}: holds weights only, not {', '.join(missing)}; add --restart to train on "
            "from them"
        )
    return state


def _journal_path(out: Path) -> Path:
    return out.with_suffix(".log.jsonl")


class Trainer:
    """One training run: networks, averaged weights, optimiser, random state and log.

    Args:
        options: see TrainingOptions.
        out: checkpoint to write; the log goes beside it with the suffix `.log.jsonl`.
        device: where to compute.
        config: shape of a new codec; a resumed one keeps its own.
        resume: checkpoint to continue from, or None.
        restart: take only the weights of `resume` and begin the schedule anew.
        compiled: compile the loss with `torch.compile`, which needs a C++ compiler.
    """

    def __init__(
        self,
        options: TrainingOptions,
        out: Path,
        device: torch.device,
        *,
        config: CodecConfig | None = None,
        resume: Path | None = None,
        restart: bool = False,
        compiled: bool = False,
    ) -> None:
        self.options, self.out, self.device = options, out, device
        # Shapes change once, with the size of the crops: two static programs beat a dynamic one.
        self._loss = (
            torch.compile(rate_distortion_loss, dynamic=False) if compiled else rate_distortion_loss
        )
        torch.manual_seed(options.seed)
        state: dict[str, Any] = {}
        if resume is not None:
            state = load_checkpoint(resume) if restart else _load_resumable(resume)
            codec = build_codec(state, resume)
        else:
            codec = NeuralCodec(config)
        self.codec = codec.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.codec.train()
        self.average = self._copy()
        self.optimiser = torch.optim.Adam(
            self.codec.parameters(), lr=options.learning_rate, fused=True
        )
        self.step = 0
        self.seconds = 0.0
        if resume is not None and not restart:
            self._restore(state, resume)

    def _copy(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.codec.state_dict().items()}

    def start_from_photos(self, photos: list[UInt8Array]) -> None:
        """Begin a new run with the principal components of its photos."""
        start_from_photos(self.codec, photos, self.options.seed)
        self.average = self._copy()

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        fill_codec(self.codec, state["raw"], path)
        try:
            self.optimiser.load_state_dict(state["optimiser"])
            for parameter, moments in self.optimiser.state.items():
                # Torch would notice only at the first step.
                if any(moments[m].shape != parameter.shape for m in ("exp_avg", "exp_avg_sq")):
                    raise ValueError("moments of another codec")
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            if self.step < 0:
                raise ValueError(f"step {self.step}")
            torch.set_rng_state(state["random"])
            if self.device.type == "cuda" and "random_cuda" in state:
                torch.cuda.set_rng_state(state["random_cuda"])
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as exc:
            reason = " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
            raise ValueError(f"{path}: state of training is damaged ({reason})") from exc

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state: dict[str, Any] = {
            "config": self.codec.cfg.to_dict(),
            "options": asdict(self.options),
            "weights": {k: v.cpu() for k, v in self.average.items()},
            "raw": {k: v.cpu() for k, v in self.codec.state_dict().items()},
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state()
        save_checkpoint(self.out, state)

    def _one_step(self, batch: UInt8Array) -> Losses:
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.rate(self.step)
        x = to_images(batch, self.device)
        rng = np.random.default_rng((self.options.seed, self.step, 1))
        # Stratified: every batch spans the whole range of qualities.
        offsets = (np.arange(len(batch)) + rng.random(len(batch))) / len(batch)
        quality = torch.from_numpy(1.0 + 99.0 * offsets).float().to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            losses = self._loss(self.codec, x, quality, self.options.objective)
        self.optimiser.zero_grad(set_to_none=True)
        losses.loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), self.options.clip)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
        self.step += 1
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            state = self.codec.state_dict()
            torch._foreach_lerp_(list(self.average.values()), list(state.values()), 1.0 - decay)
        return losses.detached()

    def _validation(self, photos: list[UInt8Array]) -> dict[int, Judged]:
        judged = NeuralCodec(self.codec.cfg).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        judged.load_state_dict(self.average)
        return validate(judged, photos, self.device)

    def _batches(self, photos: list[UInt8Array]) -> Generator[UInt8Array, None, None]:
        """Yield the crops of each step that is left; the caller moves `step` on."""
        o = self.options
        while self.step < o.steps:
            batch, size = shape = o.crop(self.step)
            stream = CropStream(photos, batch=batch, size=size, seed=o.seed, start=self.step)
            try:
                while self.step < o.steps and o.crop(self.step) == shape:
                    yield stream.next()
            finally:
                stream.close()

    def run(
        self, photos: list[UInt8Array], valid: list[UInt8Array], minutes: float | None, log: IO[str]
    ) -> None:
        """Train until the schedule ends or `minutes` have passed, then save.

        Progress goes to `log`, one JSON line per report beside the checkpoint. `validation` has
        bpp and PSNR per quality, `validation_ms_ssim` MS-SSIM plain and in dB; the rows of the
        training itself have `ms_ssim` and `ms_ssim_db` where that is the objective.
        """
        o = self.options
        begin = last_save = time.monotonic()
        before = self.seconds
        end = math.inf if minutes is None else begin + minutes * 60
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context(_journal_path(self.out).open("a"))
            progress = _Progress(o, end, journal, log)
            for batch in stack.enter_context(contextlib.closing(self._batches(photos))):
                now = time.monotonic()
                self.seconds = before + now - begin
                if now > end:
                    break
                losses = self._one_step(batch)
                progress.images += len(batch)
                if self.step % 10 == 0 or self.device.type == "cpu":
                    progress.add(losses)
                if self.step % 200 == 0:
                    progress.report(self.step, self.seconds, len(batch))
                if valid and (self.step % o.validate_every == 0 or self.step == o.steps):
                    progress.validated(self.step, self._validation(valid))
                if time.monotonic() - last_save > o.save_minutes * 60:
                    self.save()
                    last_save = time.monotonic()
            self.seconds = before + time.monotonic() - begin
            self.save()


def _similarity(value: float) -> tuple[float, float]:
    """Return MS-SSIM plain and in dB, both rounded; 70 dB is as far as float32 tells from 1."""
    return round(value, 6), round(ms_ssim_db(min(value, 1.0 - 1e-7)), 3)


class _Progress:
    """What a run tells: JSON lines in its journal, one line each for people in `log`."""

    def __init__(self, options: TrainingOptions, end: float, journal: IO[str], log: IO[str]):
        self._options, self._end, self._journal, self._log = options, end, journal, log
        self._window: deque[tuple[float, ...]] = deque(maxlen=200)
        self.images, self._mark = 0, time.monotonic()

    def add(self, losses: Losses) -> None:
        """Count a step into the averages; waits for the device."""
        parts = [losses.loss, losses.bpp.mean(), (10 * torch.log10(255**2 / losses.mse)).mean()]
        if losses.ms_ssim is not None:
            parts.append(losses.ms_ssim.mean())
        self._window.append(tuple(float(part) for part in parts))

    def report(self, step: int, seconds: float, batch: int) -> None:
        """Tell the averages, the speed since the last report and the time left."""
        now = time.monotonic()
        speed = self.images / (now - self._mark)
        self.images, self._mark = 0, now
        loss, bpp, psnr, *similarity = (float(v) for v in np.mean(self._window, 0))
        left = min((self._options.steps - step) * batch / speed, self._end - now)
        row = {
            "step": step,
            "loss": round(loss, 5),
            "bpp": round(bpp, 4),
            "psnr": round(psnr, 3),
            "images_per_s": round(speed, 1),
            "seconds": round(seconds, 1),
            "learning_rate": self._options.rate(step),
        }
        shown = ""
        if similarity:
            row["ms_ssim"], row["ms_ssim_db"] = _similarity(similarity[0])
            shown = f"MS-SSIM {row['ms_ssim']:.5f} {row['ms_ssim_db']:.2f} dB  "
        self._tell(
            row,
            f"step {step}/{self._options.steps}  loss {loss:.4f}  bpp {bpp:.3f}  "
            f"PSNR {psnr:.2f} dB  {shown}{speed:.1f} images/s  {left / 60:.0f} min left",
        )

    def validated(self, step: int, result: dict[int, Judged]) -> None:
        """Tell a validation, whose time does not count into the speed."""
        row: dict[str, Any] = {
            "step": step,
            "validation": {q: (judged.bpp, judged.psnr) for q, judged in result.items()},
        }
        shown = {q: f"q{q}: {r.bpp:.3f} bpp {r.psnr:.2f} dB" for q, r in result.items()}
        pairs = {q: _similarity(r.ms_ssim) for q, r in result.items() if r.ms_ssim is not None}
        if pairs:
            row["validation_ms_ssim"] = pairs
            for q, (plain, decibels) in pairs.items():
                shown[q] += f" MS-SSIM {plain:.5f} {decibels:.2f} dB"
        self._tell(row, f"validation {'  '.join(shown.values())}")
        self._mark = time.monotonic()

    def _tell(self, row: dict[str, Any], line: str) -> None:
        print(json.dumps(row), file=self._journal, flush=True)
        print(line, file=self._log, flush=True)


def train(
    images: list[Path],
    valid: list[Path],
    out: Path,
    options: TrainingOptions,
    *,
    device: str = "auto",
    resume: Path | None = None,
    restart: bool = False,
    minutes: float | None = None,
    config: CodecConfig | None = None,
    compiled: bool = False,
    log: IO[str],
) -> None:
    """Train a codec and write its checkpoint.

    Args:
        images: folders or tar files of photos.
        valid: photos to report on, never trained on; may be empty.
        out: checkpoint to write.
        options: schedule and sizes; to resume, `TrainingOptions.from_checkpoint` has them.
        device: `auto`, `cpu` or `cuda`.
        resume: checkpoint to continue from.
        restart: begin the schedule anew from the weights of `resume`.
        minutes: stop after this time; the checkpoint can be resumed.
        config: shape of a new codec.
        compiled: compile the loss first (a minute or two), then train up to 1.4 times as fast on
            a CPU; needs a C++ compiler.
        log: where progress is printed.

    Raises:
        ValueError: photos, checkpoint or device unusable, or `out` cannot be written.
    """
    check_target(out)
    check_target(_journal_path(out))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here; use --device cpu")
    begin = time.monotonic()
    trainer = Trainer(
        options,
        out,
        torch.device(device),
        config=config,
        resume=resume,
        restart=restart,
        compiled=compiled,
    )
    photos = load_photos(images, min_side=options.final_size)
    if resume is None:
        trainer.start_from_photos(photos)
    held_out = load_photos(valid, min_side=HYPER_STRIDE)[: options.validate_photos] if valid else []
    print(
        f"{len(photos)} photos, {len(held_out)} for validation, read in "
        f"{time.monotonic() - begin:.0f} s; training on {device} from step {trainer.step}",
        file=log,
        flush=True,
    )
    trainer.run(photos, held_out, minutes, log)
