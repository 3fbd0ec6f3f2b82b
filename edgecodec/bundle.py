"""The unit of deployment: a folder or a zip file with manifest, integer tables and graphs.

    manifest.json     what is here, with a SHA-256 of every other file
    tables.bin        integer CDFs, hyper-synthesis and gains (docs/FORMAT.md)
    golden.npz        a small picture with its expected latents and pixels
    onnx/ openvino/ tflite/ torch/   graphs: <stage>.<precision>.<suffix>

All artefacts of a bundle share the tables, so that any of them decodes any other's files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecodec.container import HYPER_STRIDE
from edgecodec.errors import BundleError
from edgecodec.tables import LATENTS_PER_HYPER

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TABLES = "tables.bin"
GOLDEN = "golden.npz"
ZIP = ".zip"
UNPACKED_LIMIT = 256 << 20
"""Bytes that the files of a zipped bundle may have in all."""
_MANIFEST_LIMIT = 1 << 20


@dataclass(frozen=True)
class ArtefactEntry:
    """One stage for one target and precision, as the manifest lists it.

    Attributes:
        stage: `analysis` or `synthesis`.
        target: `onnx`, `openvino`, `tflite` or `torch`.
        precision: `fp32`, `fp16` or `int8`.
        path: the file a runtime loads, relative to the bundle.
        bytes: size of all its files.
        exact: whether every runtime gives the same integers.
        parity: differences from the reference as measured at conversion, by output name.
        operators: how often each operator occurs.
    """

    stage: str
    target: str
    precision: str
    path: str
    bytes: int
    exact: bool = False
    parity: dict[str, Any] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)


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
        analysis_halo: pixels around a tile that the analysis must see, multiple of hyper_stride.
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
    hyper_stride = HYPER_STRIDE
    checks = {
        "latent_channels": m.latent_channels > 0,
        "hyper_channels": m.hyper_channels > 0,
        "latent_stride": m.latent_stride * LATENTS_PER_HYPER == hyper_stride,
        "hyper_stride": m.hyper_stride == hyper_stride,
        "analysis_halo": m.analysis_halo >= 0 and m.analysis_halo % hyper_stride == 0,
        "synthesis_halo": m.synthesis_halo >= 0,
        "files": all(isinstance(value, str) for value in m.files.values()),
    }
    return [name for name, good in checks.items() if not good]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def short_id(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:16]


def default_bundle_path() -> Path:
    """Return the folder of the bundle that ships with the package."""
    return Path(__file__).with_name("data") / "default.bundle"


class Bundle:
    """A bundle opened for reading. Files are checked against their hash when first used.

    Args:
        path: folder or zip file; None takes the one that ships with the package.

    Raises:
        BundleError: nothing there, or not a bundle.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = default_bundle_path() if path is None else Path(path)
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        if not self.path.exists():
            raise BundleError(f"{self.path}: no such bundle")
        packed = not self.path.is_dir()
        self.root = self._scratch() if packed else self.path
        try:
            self.manifest = self._unpack() if packed else self._read_manifest()
        except BundleError:
            self.close()
            raise
        self._checked: set[str] = set()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read_manifest(self) -> Manifest:
        try:
            text = (self.root / MANIFEST).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise BundleError(f"{self.path}: not a bundle, {MANIFEST} cannot be read") from exc
        return Manifest.from_json(text, str(self.path))

    def _scratch(self) -> Path:
        self._unpacked = tempfile.TemporaryDirectory(prefix="edgecodec-")
        return Path(self._unpacked.name)

    def _unpack(self) -> Manifest:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return self._extract(archive)
        except BundleError:
            raise
        except zipfile.BadZipFile as exc:
            raise BundleError(f"{self.path}: neither a folder nor an intact zip file") from exc
        except Exception as exc:  # zlib.error, NotImplementedError, RuntimeError, ...
            raise BundleError(f"{self.path}: the zip file is damaged ({exc})") from exc

    def _extract(self, archive: zipfile.ZipFile) -> Manifest:
        """Take the manifest out of an archive, then what it lists and nothing else."""
        members = {member.filename: member for member in archive.infolist()}
        if MANIFEST not in members:
            raise BundleError(f"{self.path}: not a bundle, it holds no {MANIFEST}")
        if members[MANIFEST].file_size > _MANIFEST_LIMIT:
            raise BundleError(f"{self.path}: not a bundle, its {MANIFEST} is too large")
        archive.extract(members[MANIFEST], self.root)
        manifest = self._read_manifest()
        listed = [members[name] for name in manifest.files if name in members]
        # zipfile reads no more than `file_size` bytes of a member, whatever is packed in it.
        size = sum(member.file_size for member in listed)
        if size > UNPACKED_LIMIT:
            raise BundleError(
                f"{self.path}: its files have {size / 2**20:.0f} MB in all, more than the "
                f"{UNPACKED_LIMIT >> 20} MB that a zip file may hold; unpack it into a folder"
            )
        for member in listed:
            archive.extract(member, self.root)  # refuses to leave `root`
        return manifest

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle after checking its content.

        Raises:
            BundleError: not listed, missing, or its hash differs.
        """
        expected = self.manifest.files.get(name)
        parts = PurePosixPath(name)
        if expected is None or parts.is_absolute() or ".." in parts.parts:
            raise BundleError(f"{self.path}: the manifest lists no file {name}")
        path = self.root / name
        if name not in self._checked:
            if not path.is_file():
                raise BundleError(f"{self.path}: {name} is missing; convert or install it again")
            if sha256_of(path) != expected:
                raise BundleError(
                    f"{self.path}: {name} is damaged, its hash differs from the manifest's; "
                    "convert or install it again"
                )
            self._checked.add(name)
        return path

    def tables(self) -> bytes:
        """Return `tables.bin`.

        Raises:
            BundleError: missing, damaged, or not the tables the manifest names.
        """
        data = self.file(TABLES).read_bytes()
        if short_id(data) != self.manifest.tables_id:
            raise BundleError(f"{self.path}: {TABLES} is not the one the manifest names")
        return data

    def artefact_file(self, entry: ArtefactEntry) -> Path:
        """Return the file of an artefact; those beside it of the same stem are checked too."""
        stem = entry.path.rsplit(".", 1)[0] + "."
        for name in self.manifest.files:
            if name.startswith(stem):
                self.file(name)
        return self.file(entry.path)

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """Return the golden vector.

        Keys: `x` (H, W, 3) uint8; `quality` int; `file` uint8, the expected bytes decode to
        `y_hat` (h, w, M) int16; `x_hat` (H, W, 3) uint8 of the reference; `y` (h, w, M) and
        `z` (h/2, w/2, Z) float32 of the reference.
        """
        try:
            with np.load(self.file(GOLDEN), allow_pickle=False) as archive:
                return dict(archive.items())
        except (ValueError, OSError, zipfile.BadZipFile) as exc:
            raise BundleError(f"{self.path}: {GOLDEN} cannot be read") from exc

    def close(self) -> None:
        """Remove the unpacked copy of a zip file."""
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None


@contextlib.contextmanager
def writing_bundle(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder to fill that becomes `target` when all went well, and vanishes otherwise.

    A `target` ending in `.zip` becomes a zip file. An earlier bundle is replaced only at the end,
    and only with `force`.

    Raises:
        BundleError: `target` exists and is not a bundle, or is one and `force` is not set; its
            folder is missing; it cannot be written.
    """
    try:
        _check_target(target, force)
        place = target.resolve()  # `.` has no name
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
            folder = Path(scratch) / "bundle"
            folder.mkdir()
            yield folder
            _check_target(target, force)  # again, as filling it may have taken minutes
            _move(folder, place, target.suffix == ZIP)
    except BrokenPipeError:
        raise  # of who listens to the progress, not of the file
    except OSError as exc:
        raise BundleError(f"{target}: cannot be written ({exc})") from exc


def _check_target(target: Path, force: bool) -> None:
    """Refuse a target that cannot be written, or whose replacement could lose data."""
    if not target.parent.is_dir():
        raise BundleError(f"{target.parent}: no such folder")
    zipped, is_folder = target.suffix == ZIP, target.is_dir()
    if not target.exists() or (is_folder and not zipped and not any(target.iterdir())):
        return
    if is_folder == zipped or not _holds_manifest(target):
        kind = "a zipped bundle" if zipped else "a bundle"
        raise BundleError(f"{target}: exists and is not {kind}; choose another name")
    if not force:
        raise BundleError(f"{target}: exists already; add --force to replace it")


def _holds_manifest(path: Path) -> bool:
    if path.is_dir():
        return (path / MANIFEST).is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _move(folder: Path, target: Path, zipped: bool) -> None:
    """Put a filled folder, or a zip file of its content, where the target is to be."""
    if zipped:
        packed = folder.with_suffix(ZIP)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(path, path.relative_to(folder).as_posix())
        packed.replace(target)
        return
    old = folder.with_name("old")
    if target.is_dir():
        target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder` but the manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
