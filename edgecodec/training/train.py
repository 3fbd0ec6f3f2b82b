"""Training: rate-distortion optimisation over all qualities at once.

Imports only torch, NumPy, Pillow and the standard library, because GPU hosts often have no
package index. Interrupt it at any time: `resume` continues with the same optimiser, schedule,
crops and noise.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from edgecodec.arrays import UInt8Array
from edgecodec.format.strides import HYPER_STRIDE
from edgecodec.model.checkpoint import build_codec, check_target, fill_codec, save_checkpoint
from edgecodec.model.config import CodecConfig
from edgecodec.model.network import NeuralCodec
from edgecodec.training.growth import check_growth, grow
from edgecodec.training.initialisation import start_from_photos
from edgecodec.training.loss import Losses, rate_distortion_loss
from edgecodec.training.options import SavedRun, TrainingOptions
from edgecodec.training.photos import CropStream, load_photos, to_images
from edgecodec.training.progress import Progress
from edgecodec.training.rounding import measure_units, plain_weights, round_blocks
from edgecodec.training.validation import Judged, validate

_MEASURED = 10
"""Batches, and crops in each, that units of roundings are measured on."""

_GROWN_ON = 16
"""Crops that a codec is grown on."""


def _journal_path(out: Path) -> Path:
    return out.with_suffix(".log.jsonl")


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where it cannot work, by compiling next to nothing.

    Raises:
        ValueError: no C++ compiler, or whatever else `torch.compile` lacks.
    """
    # From the cache it would work without a compiler.
    trial = torch.compile(lambda t: t.exp() + 1, options={"fx_graph_cache": False})
    try:
        trial(torch.zeros(8, device=device))
    # Whatever class: the compiler's, the loader's and torch's own failures come out as they are.
    except Exception as exc:
        # Torch's advice on debugging follows on further lines.
        reason = next(iter(str(exc).splitlines()), "")[:200]
        raise ValueError(
            f"torch.compile does not work here; install a C++ compiler such as g++, or leave out "
            f"--compile ({type(exc).__name__}: {reason})"
        ) from exc


def _computes_in_half() -> bool:
    """Return whether this CPU has bfloat16 units; where it has none, a step takes 10 times as long.

    Measured on an AVX-512 CPU without them: 1.1 s in float32, 10 s in bfloat16.
    """
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class Trainer:
    """One training run: networks, averaged weights, optimiser, random state and log.

    Args:
        options: see TrainingOptions.
        out: checkpoint to write; the log goes beside it with the suffix `.log.jsonl`.
        device: where to compute.
        config: shape of a new codec; a resumed one keeps its own.
        resume: run to continue, or None.
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
        resume: SavedRun | None = None,
        restart: bool = False,
        compiled: bool = False,
    ) -> None:
        self.options, self.out, self.device = options, out, device
        self.half = device.type != "cpu" or _computes_in_half()
        # Shapes change once, with the size of the crops: two static programs beat a dynamic one.
        self._loss = (
            torch.compile(rate_distortion_loss, dynamic=False) if compiled else rate_distortion_loss
        )
        torch.manual_seed(options.seed)
        if resume is None:
            codec = NeuralCodec(config)
        else:
            if not restart:
                resume.check_resumable()
            codec = build_codec(resume.entries, resume.path)
        self.rounds = options.rounded
        if resume is not None and not restart:
            self.rounds = bool(resume.entries.get("rounds", options.rounded))
        if self.rounds:
            round_blocks(codec)
        self.codec = codec.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.codec.train()
        self.average = self._copy()
        self.optimiser = self._optimiser()
        self.step = 0
        self.seconds = 0.0
        if resume is not None and not restart:
            self._restore(resume.entries, resume.path)

    def _optimiser(self) -> torch.optim.Adam:
        return torch.optim.Adam(
            [p for p in self.codec.parameters() if p.requires_grad],
            lr=self.options.learning_rate,
            betas=(0.9, self.options.beta2),
            fused=True,
        )

    def _copy(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.codec.state_dict().items()}

    def start_from_photos(self, photos: list[UInt8Array]) -> None:
        """Begin a new run with the principal components of its photos."""
        start_from_photos(self.codec, photos, self.options.seed)
        self.average = self._copy()

    def grow_from(self, source: SavedRun, photos: list[UInt8Array]) -> None:
        """Begin a new run with the weights of a codec of a smaller shape."""
        o = self.options
        stream = CropStream(photos, batch=_GROWN_ON, size=o.size, seed=o.seed, start=0)
        try:
            images = to_images(stream.next(), torch.device("cpu"))
        finally:
            stream.close()
        small = build_codec(source.entries, source.path)
        self.codec.load_state_dict(grow(small, self.codec.cfg, images).state_dict())
        self.average = self._copy()

    def measure_units(self, photos: list[UInt8Array]) -> None:
        """Give blocks that round their units, by what photos need of them."""
        o = self.options
        stream = CropStream(photos, batch=_MEASURED, size=o.size, seed=o.seed, start=0)
        try:
            images = [to_images(stream.next(), self.device) for _ in range(_MEASURED)]
        finally:
            stream.close()
        measure_units(self.codec, images)
        self.average = self._copy()

    def begin_rounding(self, photos: list[UInt8Array]) -> None:
        """Make the blocks round from now on.

        The optimiser goes on with what it knows of weights that stay as they are; those that are
        folded, and the units, are new to it. The average begins anew.

        Args:
            photos: (H, W, 3) uint8, to measure units on.
        """
        old = {name: (p, p.detach().clone()) for name, p in self.codec.named_parameters()}
        known = self.optimiser.state
        round_blocks(self.codec)
        self.codec.to(self.device, memory_format=torch.channels_last).train()
        self.measure_units(photos)
        self.optimiser = self._optimiser()
        for name, parameter in self.codec.named_parameters():
            before, value = old.get(name, (None, None))
            if before is None or value is None or before not in known:
                continue
            if parameter.requires_grad and torch.equal(value, parameter.detach()):
                self.optimiser.state[parameter] = known[before]
        self.rounds = True

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        fill_codec(self.codec, state["raw"], path)
        # The checkpoint has no averages of the units of roundings.
        model = plain_weights(self.codec, self.average)
        units = {k: v for k, v in self._copy().items() if k not in model}
        self.average = {**self.average, **units}
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
            "weights": {k: v.cpu() for k, v in plain_weights(self.codec, self.average).items()},
            "raw": {k: v.cpu() for k, v in self.codec.state_dict().items()},
            "optimiser": self.optimiser.state_dict(),
            "rounds": self.rounds,
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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
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
        judged = NeuralCodec(self.codec.cfg)
        if self.rounds:
            round_blocks(judged)
        judged.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        judged.load_state_dict(self.average)
        return validate(judged, photos, self.device, self.options.validate_size)

    def _batches(self, photos: list[UInt8Array]) -> Generator[UInt8Array, None, None]:
        """Yield the crops of each step that is left; the caller moves `step` on."""
        o = self.options
        while self.step < o.steps:
            batch, size = shape = o.crop(self.step)
            stream = CropStream(
                photos,
                batch=batch,
                size=size,
                seed=o.seed,
                start=self.step,
                synthetic=o.synthetic,
            )
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
            progress = Progress(o, end, journal, log)
            for batch in stack.enter_context(contextlib.closing(self._batches(photos))):
                now = time.monotonic()
                self.seconds = before + now - begin
                if now > end:
                    break
                if not self.rounds and self.step >= o.rounding_start:
                    self.begin_rounding(photos)
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


def train(
    images: list[Path],
    valid: list[Path],
    out: Path,
    options: TrainingOptions,
    *,
    device: str = "auto",
    resume: SavedRun | None = None,
    restart: bool = False,
    grow_from: SavedRun | None = None,
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
        options: schedule and sizes; to resume, `SavedRun.progress` has them.
        device: `auto`, `cpu` or `cuda`.
        resume: run to continue.
        restart: begin the schedule anew from the weights of `resume`.
        grow_from: codec of a smaller shape that a new run begins with.
        minutes: stop after this time; the checkpoint can be resumed.
        config: shape of a new codec.
        compiled: compile the loss at the first step of each crop size (a minute or two), then
            train up to 1.4 times as fast on a CPU; needs a C++ compiler.
        log: where progress is printed.

    Raises:
        ValueError: photos, checkpoint or device unusable, `out` cannot be written, nothing can
            be compiled here, or `grow_from` has no place in the new shape.
    """
    check_target(out)
    check_target(_journal_path(out))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here; use --device cpu")
    if compiled:
        check_compiler(torch.device(device))
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
    if grow_from is not None:
        # Before photos are read, which takes a while.
        check_growth(build_codec(grow_from.entries, grow_from.path).cfg, trainer.codec.cfg)
    photos = load_photos(images, min_side=options.final_size)
    if grow_from is not None:
        trainer.grow_from(grow_from, photos)
    elif resume is None:
        trainer.start_from_photos(photos)
    if options.rounded and (resume is None or restart):
        trainer.measure_units(photos)
    held_out = load_photos(valid, min_side=HYPER_STRIDE)[: options.validate_photos] if valid else []
    print(
        f"{len(photos)} photos, {len(held_out)} for validation, read in "
        f"{time.monotonic() - begin:.0f} s; training on {device} from step {trainer.step}",
        file=log,
        flush=True,
    )
    trainer.run(photos, held_out, minutes, log)
