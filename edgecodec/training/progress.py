"""What a training run tells: JSON lines for programs, one line each for people."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import IO, Any

import numpy as np
import torch

from edgecodec.evaluation.metrics import ms_ssim_db
from edgecodec.training.loss import Losses
from edgecodec.training.options import TrainingOptions
from edgecodec.training.validation import Judged

_LEAST_MSE = 1e-4
"""Of a crop of flat areas alone, which come out exact."""


def _similarity(value: float) -> tuple[float, float]:
    """Return MS-SSIM plain and in dB, both rounded; 70 dB is as far as float32 tells from 1."""
    return round(value, 6), round(ms_ssim_db(min(value, 1.0 - 1e-7)), 3)


class Progress:
    """What a run tells: JSON lines in its journal, one line each for people in `log`."""

    def __init__(self, options: TrainingOptions, end: float, journal: IO[str], log: IO[str]):
        self._options, self._end, self._journal, self._log = options, end, journal, log
        self._window: deque[dict[str, float]] = deque(maxlen=200)
        self.images, self._mark = 0, time.monotonic()

    def add(self, losses: Losses) -> None:
        """Count a step into the averages; waits for the device."""
        parts = {
            "loss": losses.loss,
            "bpp": losses.bpp.mean(),
            "psnr": (10 * torch.log10(255**2 / losses.mse.clamp_min(_LEAST_MSE))).mean(),
        }
        for name in ("ms_ssim", "ssimulacra2", "block_mse"):
            part = getattr(losses, name)
            if part is not None:
                parts[name] = part.mean()
        self._window.append({name: float(part) for name, part in parts.items()})

    def report(self, step: int, seconds: float, batch: int) -> None:
        """Tell the averages, the speed since the last report and the time left."""
        now = time.monotonic()
        speed = self.images / (now - self._mark)
        self.images, self._mark = 0, now
        # After a change of the objective the window begins anew.
        latest = [row for row in self._window if row.keys() == self._window[-1].keys()]
        means = {name: float(np.mean([row[name] for row in latest])) for name in latest[-1]}
        left = min((self._options.steps - step) * batch / speed, self._end - now)
        row = {
            "step": step,
            "loss": round(means["loss"], 5),
            "bpp": round(means["bpp"], 4),
            "psnr": round(means["psnr"], 3),
            "images_per_s": round(speed, 1),
            "seconds": round(seconds, 1),
            "learning_rate": self._options.rate(step),
        }
        shown = ""
        if "ms_ssim" in means:
            row["ms_ssim"], row["ms_ssim_db"] = _similarity(means["ms_ssim"])
            shown = f"MS-SSIM {row['ms_ssim']:.5f} {row['ms_ssim_db']:.2f} dB  "
        if "ssimulacra2" in means:
            row["ssimulacra2"] = round(means["ssimulacra2"], 3)
            shown = f"SSIMULACRA2 {row['ssimulacra2']:.2f}  "
        if "block_mse" in means:
            row["block_mse"] = round(means["block_mse"], 4)
        self._tell(
            row,
            f"step {step}/{self._options.steps}  loss {means['loss']:.4f}  "
            f"bpp {means['bpp']:.3f}  PSNR {means['psnr']:.2f} dB  {shown}"
            f"{speed:.1f} images/s  {left / 60:.0f} min left",
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
        row["validation_ssimulacra2"] = {q: round(r.ssimulacra2, 3) for q, r in result.items()}
        for q, judged in result.items():
            shown[q] += f" SSIMULACRA2 {judged.ssimulacra2:.2f}"
        self._tell(row, f"validation {'  '.join(shown.values())}")
        self._mark = time.monotonic()

    def _tell(self, row: dict[str, Any], line: str) -> None:
        print(json.dumps(row), file=self._journal, flush=True)
        print(line, file=self._log, flush=True)
