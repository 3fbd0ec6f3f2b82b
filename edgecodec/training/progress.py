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


def _similarity(value: float) -> tuple[float, float]:
    """Return MS-SSIM plain and in dB, both rounded; 70 dB is as far as float32 tells from 1."""
    return round(value, 6), round(ms_ssim_db(min(value, 1.0 - 1e-7)), 3)


class Progress:
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
