"""Checkpoints: one torch file with configuration, averaged weights and the state of training.

While training goes on it holds everything needed to continue as if it had never stopped.

Only tensors, numbers and strings are stored, so that `torch.load(weights_only=True)` reads them
and a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from edgecodec.model.config import CodecConfig
from edgecodec.model.network import NeuralCodec

FORMAT = "edgecodec-checkpoint-1"


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        torch.save({"format": FORMAT, **payload}, temporary)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        ValueError: the file is missing, no checkpoint of ours, or damaged.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as exc:
        # Torch's own words for a foreign file advise to load it without safeguards.
        reason = exc.strerror if isinstance(exc, OSError) else "not a torch file of plain tensors"
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from exc
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise ValueError(f"{path}: not an edgecodec checkpoint (made by `edgecodec train`)")
    return payload


def load_codec(path: Path) -> NeuralCodec:
    """Return the codec of a checkpoint, with its averaged weights, in evaluation mode.

    Raises:
        ValueError: no readable checkpoint, or weights that do not fit its configuration.
    """
    payload = load_checkpoint(path)
    try:
        codec = NeuralCodec(CodecConfig.from_dict(payload["config"]))
        codec.load_state_dict({k: v.float() for k, v in payload["weights"].items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as exc:
        reason = " ".join(str(exc).split())[:300]
        raise ValueError(f"{path}: checkpoint does not fit its configuration ({reason})") from exc
    return codec.eval()


def export_weights(source: Path, target: Path) -> None:
    """Keep configuration and weights alone, in half precision: what a release ships."""
    payload = load_checkpoint(source)
    weights = {k: v.half() for k, v in payload["weights"].items()}
    save_checkpoint(
        target, {"config": payload["config"], "weights": weights, "step": payload["step"]}
    )
