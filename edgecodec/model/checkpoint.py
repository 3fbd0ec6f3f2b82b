"""Checkpoints: one torch file with configuration, averaged weights and the state of training.

While training goes on it holds everything needed to continue as if it had never stopped.

Only tensors, numbers and strings are stored, so that `torch.load(weights_only=True)` reads them
and a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecodec.files import check_folder, replacing
from edgecodec.model.config import CodecConfig
from edgecodec.model.folding import fold_latent_layers
from edgecodec.model.network import NeuralCodec
from edgecodec.model.quantizers import significant

FORMAT = "edgecodec-checkpoint-1"

SIGNIFICANT_BITS = 8
"""Of a release's weights. With half precision's 11 a bundle compresses to a fifth more, and the
default model is 0.03 % better; with 7 it loses 0.6 % (BD-rate on 12 validation photos)."""


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before hours of training are lost on it.

    Raises:
        ValueError: its folder is missing or cannot be written, or the path is no regular file.
    """
    check_folder(path)
    try:
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "not a regular file"
            raise ValueError(f"{path}: is {what}; give a file name")
        # By trial, as permission bits say nothing of read-only disks, and with a name as long
        # as the one that saving uses.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as exc:
        raise ValueError(f"{path}: cannot be written ({exc.strerror or exc})") from exc


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint so that it appears whole or not at all."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **payload}, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Returns:
        Its entries; `config` and `weights` are there and dictionaries, the latter of tensors.

    Raises:
        ValueError: the file is missing, no checkpoint of ours, or damaged.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    # Whatever class: a damaged pickle makes torch raise nearly anything.
    except Exception as exc:
        # Torch's own words for a foreign file advise to load it without safeguards.
        # For a file cut short it reports an OSError of its own, "Invalid argument".
        reason = _kind_of_file(path, exc) or "not a torch file of plain tensors, or damaged"
        if isinstance(exc, (FileNotFoundError, IsADirectoryError, PermissionError)):
            reason = str(exc.strerror)
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from exc
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        kind = _kind_of_dict(payload)
        raise ValueError(
            f"{path}: not an edgecodec checkpoint (made by `edgecodec train`){kind}; "
            "codecs trained elsewhere are converted through a function that returns them "
            "(docs/own-codec.md)"
        )
    if "average_offset" in payload:
        _expand(payload, path)
    if not isinstance(payload.get("config"), dict):
        raise ValueError(f"{path}: checkpoint has no configuration")
    _check_tensors(payload.get("weights"), "weights", path)
    if "raw" in payload:
        _check_tensors(payload["raw"], "raw", path)
    return payload


def slim_checkpoint(source: Path, target: Path) -> None:
    """Write a run that can be resumed in 10 instead of 16 bytes per weight.

    Weights stay as they are; what the average differs by from them, and the moments of the
    optimiser, lose all but 8 significant bits. `load_checkpoint` reads it as any other.

    Raises:
        ValueError: `source` is no readable checkpoint, or not of a run.
    """
    payload = load_checkpoint(source)
    raw, weights, optimiser = (payload.get(n, {}) for n in ("raw", "weights", "optimiser"))
    if not (raw and optimiser and weights.keys() <= raw.keys()):
        raise ValueError(f"{source}: holds weights only, no run to resume")
    del payload["weights"]
    payload["average_offset"] = {k: (v - raw[k]).bfloat16() for k, v in weights.items()}
    moments = {
        index: {k: v.bfloat16() if k != "step" else v for k, v in state.items()}
        for index, state in optimiser["state"].items()
    }
    save_checkpoint(target, {**payload, "optimiser": {**optimiser, "state": moments}})


def _expand(payload: dict[str, Any], path: Path) -> None:
    """Make what `slim_checkpoint` wrote a checkpoint like any other."""
    offset, raw = payload.pop("average_offset"), payload.get("raw", {})
    _check_tensors(offset, "average_offset", path)
    _check_tensors(raw, "raw", path)
    try:
        payload["weights"] = {k: raw[k] + v.float() for k, v in offset.items()}
    except (LookupError, RuntimeError) as exc:
        raise _misfit(path, exc) from exc


_IN_FUNCTION = "load it in a function that returns your codec (docs/own-codec.md)"
_WRAPPERS = {"module.": "torch.nn.DataParallel", "_orig_mod.": "torch.compile"}
_STATES = ("state_dict", "model_state_dict", "model", "weights")
_HEAD_BYTES = 9


def _kind_of_file(path: Path, exc: Exception) -> str:
    """Return what a file is that torch refuses, and what to do with it; empty where unknown."""
    try:
        with path.open("rb") as file:
            head, size = file.read(_HEAD_BYTES), path.stat().st_size
    except OSError:
        return ""
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < size:
        return f"a safetensors file, weights without their network: {_IN_FUNCTION}"
    if _is_exported_program(path):
        return f"a program of torch.export: make the network itself and {_IN_FUNCTION}"
    if "TorchScript" in str(exc):
        return f"a TorchScript archive: make the network itself and {_IN_FUNCTION}"
    if "Unsupported" in str(exc) and "GLOBAL" in str(exc):
        return (
            "a whole module or other objects, not tensors alone, and to read them would run code "
            "from the file: save its state_dict() where it was trained, then load that in a "
            "function that returns your codec (docs/own-codec.md)"
        )
    return ""


def _is_exported_program(path: Path) -> bool:
    """Say whether it is a .pt2 archive, as torch 2.8 and later write it or as those before."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return bool(names & {"archive_format", "serialized_exported_program.json"})


def _kind_of_dict(payload: object) -> str:
    """Return what a torch file that is no checkpoint of ours holds, empty where unknown."""
    if not isinstance(payload, dict):
        return ""
    key = next((key for key in _STATES if isinstance(payload.get(key), dict)), None)
    state: dict[object, object] = payload if key is None else payload[key]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        return ""
    where = "" if key is None else f" under {key!r}"
    return f", but a state dict{where}, weights without their network{wrapper_hint(state)}"


def wrapper_hint(names: Iterable[object]) -> str:
    """Return what to do about names of weights that a wrapper put a prefix before, or nothing."""
    text = [str(name) for name in names]
    for prefix, wrapper in _WRAPPERS.items():
        if text and all(name.startswith(prefix) for name in text):
            return (
                f"; {wrapper} put {prefix!r} before their names, take it off: "
                f"{{k.removeprefix({prefix!r}): v for k, v in state.items()}}"
            )
    return ""


def _check_tensors(value: Any, kind: str, path: Path) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: checkpoint has no {kind}")
    for name, tensor in value.items():
        floats = isinstance(tensor, Tensor) and tensor.is_floating_point()
        if not (isinstance(name, str) and floats):
            raise ValueError(f"{path}: {kind} {name!r}: not a tensor of floating point numbers")


def load_codec(path: Path) -> NeuralCodec:
    """Return the codec of a checkpoint, with its averaged weights, in evaluation mode.

    Raises:
        ValueError: no readable checkpoint, or weights that do not fit its configuration.
    """
    return build_codec(load_checkpoint(path), path).eval()


def build_codec(payload: dict[str, Any], path: Path) -> NeuralCodec:
    """Return the codec of a checkpoint that has been read, with its averaged weights.

    Raises:
        ValueError: configuration and weights do not belong together; names `path`.
    """
    try:
        codec = NeuralCodec(CodecConfig.from_dict(payload["config"]))
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as exc:
        raise _misfit(path, exc) from exc
    fill_codec(codec, payload["weights"], path)
    return codec


def fill_codec(codec: NeuralCodec, weights: dict[str, Tensor], path: Path) -> None:
    """Give a codec the weights of a checkpoint, in whatever precision they are stored.

    Raises:
        ValueError: they do not fit; names `path`.
    """
    try:
        codec.load_state_dict({k: v.float() for k, v in weights.items()})
    except RuntimeError as exc:
        raise _misfit(path, exc, wrapper_hint(weights)) from exc


def _misfit(path: Path, exc: Exception, hint: str = "") -> ValueError:
    reason = " ".join(str(exc).split())[:300]
    return ValueError(f"{path}: checkpoint does not fit its configuration ({reason}){hint}")


def export_weights(source: Path, target: Path) -> None:
    """Keep configuration and weights alone, as small as they go: what a release ships.

    The layers beside the latents are folded, and the weights of the transforms rounded to
    SIGNIFICANT_BITS; everything is stored in half precision.

    Raises:
        ValueError: `source` is no readable checkpoint, or its weights do not fit.
    """
    payload = load_checkpoint(source)
    codec = build_codec(payload, source)
    step = payload.get("step", 0)
    if not isinstance(step, int):
        raise ValueError(f"{source}: checkpoint has no step number")
    fold_latent_layers(codec, magnitudes=True)
    for net in (codec.g_a, codec.h_a, codec.g_s):
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = significant(layer.weight.data, SIGNIFICANT_BITS)
    weights = {k: v.half() for k, v in codec.state_dict().items()}
    save_checkpoint(target, {"config": codec.cfg.to_dict(), "weights": weights, "step": step})
