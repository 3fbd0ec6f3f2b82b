"""The manifest of a bundle: what is in it, for whom, and the hashes of its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args
from unicodedata import normalize

from edgecodec.errors import BundleError
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 20
FORMAT_VERSION = 1

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""All that an artefact can have."""


@dataclass(frozen=True)
class ArtefactEntry:
    """One stage for one target and precision, as the manifest lists it.

    Attributes:
        stage: `analysis` or `synthesis`.
        target: `onnx`, `openvino`, `tflite` or `torch`.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        path: the file a runtime loads, relative to the bundle.
        bytes: size of all its files.
        exact: whether every runtime gives the same integers.
        parity: differences from the reference as measured at conversion, by output name.
        operators: how often each operator occurs.
        loss: BD-rate of real files against the reference, as measured at conversion.
        requires: runtime and its least version, such as `onnxruntime>=1.17`.
    """

    stage: str
    target: str
    precision: str
    path: str
    bytes: int
    exact: bool = False
    parity: dict[str, Any] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    requires: str = ""


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`.

    Attributes:
        name: what people call the model.
        model_id: SHA-256 over the weights, shortened to 16 hexadecimal digits.
        tables_id: SHA-256 over `tables.bin`, shortened to 16 hexadecimal digits; in every file.
        latent_channels: M.
        hyper_channels: Z.
        latent_stride: pixels per latent.
        hyper_stride: pixels per hyper-latent; images are padded to a multiple of it.
        analysis_halo: pixels around a tile that the analysis is given, multiple of hyper_stride.
        synthesis_halo: latents around a tile that the synthesis must see.
        artefacts: the graphs.
        calibration: what the conversion was checked on.
        files: SHA-256 of every file but the manifest, by relative path.
        format: version of the bundle format.
    """

    name: str
    model_id: str
    tables_id: str
    latent_channels: int
    hyper_channels: int
    latent_stride: int
    hyper_stride: int
    analysis_halo: int
    synthesis_halo: int
    artefacts: tuple[ArtefactEntry, ...]
    calibration: dict[str, Any]
    files: dict[str, str]
    format: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Manifest:
        """Parse `manifest.json`.

        Raises:
            BundleError: not JSON, another format version, or fields missing or of wrong kind.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise BundleError(f"{source}: the manifest is not JSON ({exc})") from exc
        if not isinstance(values, dict) or values.get("format") != FORMAT_VERSION:
            raise BundleError(
                f"{source}: not a bundle of format {FORMAT_VERSION}; "
                "convert the checkpoint again with this version of edgecodec"
            )
        try:
            entries = tuple(ArtefactEntry(**entry) for entry in values.pop("artefacts"))
            manifest = cls(artefacts=entries, **values)
        except (KeyError, TypeError) as exc:
            raise BundleError(f"{source}: the manifest is incomplete ({exc})") from exc
        wrong = [*_wrong_kinds(manifest), *(w for e in entries for w in _wrong_kinds(e))]
        wrong += [] if wrong else _wrong_values(manifest)
        if wrong:
            raise BundleError(f"{source}: the manifest is damaged: {', '.join(wrong)} cannot be")
        return manifest


def manifest_text(folder: Path, bundle: Path) -> str:
    """Return what `manifest.json` in a folder holds.

    Args:
        folder: where it lies.
        bundle: what it is of, for errors.

    Raises:
        BundleError: missing, too large, or not text.
    """
    path = folder / MANIFEST
    try:
        # A link to a device or a pipe would never end.
        if path.exists() and not (path.is_file() and path.stat().st_size <= MANIFEST_LIMIT):
            raise BundleError(f"{bundle}: not a bundle, its {MANIFEST} is too large")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BundleError(f"{bundle}: not a bundle, {MANIFEST} cannot be read") from exc


_KINDS = {"str": str, "int": int, "bool": bool}


def _wrong_kinds(record: Manifest | ArtefactEntry) -> list[str]:
    """Name the fields that do not hold what their annotation says."""
    wrong = []
    for item in fields(record):
        value = getattr(record, item.name)
        kind = _KINDS.get(str(item.type), tuple if item.name == "artefacts" else dict)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            wrong.append(item.name)
    return wrong


def _wrong_values(m: Manifest) -> list[str]:
    """Name the fields whose values no bundle of this format has."""
    checks = {
        "latent_channels": m.latent_channels > 0,
        "hyper_channels": m.hyper_channels > 0,
        "latent_stride": m.latent_stride == LATENT_STRIDE,
        "hyper_stride": m.hyper_stride == HYPER_STRIDE,
        "analysis_halo": m.analysis_halo >= 0 and m.analysis_halo % HYPER_STRIDE == 0,
        "synthesis_halo": m.synthesis_halo >= 0,
        # Names must stay different where a file system knows no case, or composes letters.
        "files": all(isinstance(value, str) for value in m.files.values())
        and len({normalize("NFC", name).casefold() for name in m.files}) == len(m.files),
    }
    return [name for name, good in checks.items() if not good]
